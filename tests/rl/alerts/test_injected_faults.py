"""Defects put into real runs of a tiny model: an alert, or a check that stops the run, names the cause within three steps. The same runs without
them say nothing."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from samepath.rl.alerts.diagnosis import Diagnosis, diagnose
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run
from tests.rl.alerts import faults
from tests.rl.conftest import TINY

QUICK = (
    "cold_start={steps: 1, batch_size: 4}",
    "task.num_held_out=2",
    "checkpoint.every=0",
    "rl.steps=3",
    "alerts.no_spread_steps=3",
)
"""Of every run, the clean ones too."""
MANY = ("rl.prompts_per_step=8", "rl.group_size=8")
SMALL_DELTA = ("rl.prompts_per_step=16", "rl.group_size=8", "rl.objective.off_policy_mask.delta=1.0e-6")
WIDE = ("rl.max_gap_at_lag_0=100",)
MIXED = (
    "task={kind: file, path: mixed.jsonl, held_out_fraction: 0.1, max_held_out: 2, columns: {dataset: dataset}}",
    "alerts.starved_dataset_steps=2",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A defect, and how it is named."""

    inject: Callable[[pytest.MonkeyPatch], None]
    rule: str
    """The alert; `stopped` where a check ends the run."""
    says: tuple[str, ...]
    """Parts of what is seen or of its cause."""
    overrides: tuple[str, ...] = ()


FAULTS = [
    Fault(inject=faults.mask_ignored, rule="mask_never", says=("mask is ignored",), overrides=SMALL_DELTA),
    Fault(
        inject=faults.mask_inverted, rule="mask_always", says=("100% of the sequences with negative",), overrides=MANY
    ),
    Fault(
        inject=faults.denominator_of_each_pass,
        rule="denominators",
        says=("each pass divides by its own tokens",),
        overrides=("learner.max_tokens_per_pass=60",),
    ),
    Fault(inject=faults.stale_worker, rule="stopped", says=("8 of 16 sequences", "one worker", "stale weights")),
    Fault(
        inject=faults.weights_never_sent,
        rule="setting_ignored",
        says=("rollout/weight_lag_max is 1, not rl.max_weight_lag = 0",),
    ),
    Fault(inject=faults.wrong_layer_replayed, rule="stopped", says=("leaves the recorded experts in", "experts")),
    Fault(inject=faults.candidates_dropped, rule="stopped", says=("All 16 sequences", "support")),
    Fault(
        inject=faults.temperature_dropped,
        rule="stopped",
        says=("All 16 sequences", "temperature"),
        overrides=("sampling.temperature=0.7",),
    ),
    Fault(
        inject=faults.length_limit_dropped,
        rule="setting_ignored",
        says=("rollout/length_max is 24, not sampling.max_new_tokens = 16",),
    ),
    Fault(
        inject=faults.updates_dropped,
        rule="setting_ignored",
        says=("learner/updates is 1, not rl.updates_per_rollout = 2",),
    ),
    Fault(inject=faults.rate_dropped, rule="setting_ignored", says=("learner/lr is 0.0005, not optimizer.lr = 0.001",)),
    Fault(
        inject=faults.group_size_dropped,
        rule="setting_ignored",
        says=("rollout/count is 8, not rl.prompts_per_step × rl.group_size = 16",),
    ),
    Fault(
        inject=faults.dead_rollouts_score_0,
        rule="failed_counted",
        says=("rollouts that broke get a reward, most likely 0",),
    ),
    Fault(
        inject=faults.rewards_break,
        rule="failed_share",
        says=("25% of 16 responses have no usable reward (reward/status.error = 4)",),
    ),
    Fault(inject=faults.rewards_constant, rule="no_spread", says=("the reward is constant",)),
    Fault(
        inject=faults.dataset_constant,
        rule="starved_dataset",
        says=("nothing was learned from minus in 2 steps", "its reward is constant"),
        overrides=MIXED,
    ),
    Fault(inject=faults.one_seed_for_all, rule="no_spread", says=("all samples of a prompt are the same",)),
    Fault(inject=faults.rows_begin_anew, rule="data_position", says=("100% of the groups of step 3", "after a resume")),
    Fault(inject=faults.kl_logged_as_0, rule="reference_moves", says=("a missing KL is logged as 0",)),
    Fault(inject=faults.entropy_logged_as_0, rule="logged_zero", says=("policy/entropy is exactly 0", "not measured")),
    Fault(
        inject=faults.reference_is_the_policy,
        rule="stopped",
        says=("the reference must keep the weights", "would move along"),
    ),
    Fault(inject=faults.optimizer_never_steps, rule="reference_moves", says=("the optimiser's steps reach no weight",)),
    Fault(inject=faults.baseline_dropped, rule="off_centre", says=("the baseline is left out",)),
    Fault(inject=faults.loss_detached, rule="no_gradient", says=("the gradient does not reach the weights",)),
    Fault(
        inject=faults.old_policy_is_the_new_one,
        rule="ratio",
        says=("policy/ratio is exactly 1", "one is a copy of the other"),
    ),
    Fault(inject=faults.logprobs_shifted, rule="gap", says=("policy/gap_at_lag_0 is",), overrides=WIDE),
    Fault(
        inject=faults.logprobs_shifted,
        rule="ratio",
        says=("numerator and denominator are of different tokens",),
        overrides=WIDE,
    ),
    Fault(
        inject=faults.routes_not_recorded,
        rule="stopped",
        says=("routes may be missing", "The engine does not record them"),
    ),
    Fault(inject=faults.token_changed, rule="stopped", says=("SegmentError",)),
    Fault(inject=faults.logprob_not_finite, rule="stopped", says=("must be finite",)),
    Fault(
        inject=faults.logprob_not_finite,
        rule="nonfinite",
        says=("learner/updates_nonfinite",),
        overrides=("rl.nonfinite=skip",),
    ),
]


def made(folder: Path, *overrides: str) -> Diagnosis:
    """Run the tiny recipe to its end, or to what stops it; what is found in its folder."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    rows = [
        {"question": f"{left}{sign}{right}=", "answer": left + right if sign == "+" else left - right, "dataset": name}
        for left in range(10, 20)
        for right in range(1, 6)
        for sign, name in (("+", "plus"), ("-", "minus"))
    ]
    (folder / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(folder / "tiny.yaml", [f"runs_dir={folder / 'runs'}", *QUICK, *overrides], Recipe)
    # What it says is in the folder.
    with suppress(RuntimeError, ValueError):
        start_run(recipe, folder)
    return diagnose(recipe.run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.inject.__name__}-{fault.rule}")
def test_fault_is_named_within_three_steps(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank_pictures: None
) -> None:
    fault.inject(monkeypatch)
    found = [one for one in made(tmp_path, *fault.overrides).findings if one.rule == fault.rule]
    assert found, "not seen"
    assert found[0].step <= 3
    text = f"{found[0].seen} {found[0].cause}"
    assert [words for words in fault.says if words not in text] == [], text


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", sorted({fault.overrides for fault in FAULTS}), ids=lambda one: " ".join(one) or "plain"
)
def test_same_run_without_a_fault_says_nothing(
    overrides: tuple[str, ...], tmp_path: Path, blank_pictures: None
) -> None:
    wide = WIDE[0] in overrides
    found = made(tmp_path, *overrides)
    assert found.status == "finished"
    assert [(one.rule, one.seen) for one in found.findings] == []
    assert not found.notes or wide


def test_run_of_two_datasets_says_what_it_learns_from_each(tmp_path: Path, blank_pictures: None) -> None:
    made(tmp_path, *MIXED, "rl.steps=1")
    (lines,) = [path.read_text() for path in tmp_path.glob("runs/*/metrics.jsonl")]
    records = [json.loads(line)["metrics"] for line in lines.splitlines()]
    metrics = next(one for one in records if "reward/mean" in one)
    groups = {name: metrics[f"dataset/{name}/groups"] for name in ("plus", "minus")}
    assert sum(groups.values()) == 4
    assert metrics["dataset/plus/token_share"] + metrics["dataset/minus/token_share"] == pytest.approx(1)


def test_one_fault_of_each_kind_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank_pictures: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quick sibling of the proof above: an alert is said once, on the console too, and a check's message is kept."""
    with monkeypatch.context() as patch:
        faults.baseline_dropped(patch)
        found = made(tmp_path, "rl.steps=2")
    assert [(one.step, one.rule) for one in found.findings] == [(1, "off_centre")]
    assert capsys.readouterr().out.count("warning: off_centre: the advantages of a group do not add up to 0") == 1
    faults.wrong_layer_replayed(monkeypatch)
    found = made(tmp_path, "name=stopped", "rl.steps=2")
    assert (found.status, found.steps_done) == ("stopped", 0)
    (finding,) = found.findings
    assert finding.seen.startswith("NumericsMismatchError: At equal weights")
