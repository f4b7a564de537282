"""A surrogate of the user's own is tried before any work, trains as it says, and is refused where a cut would change it."""

import math
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.learner.learner import Learner
from samepath.rl.objective.loss_inputs import LossInputs
from samepath.rl.objective.own_surrogate import SurrogateError, own_surrogate
from samepath.rl.objective.surrogate import surrogate
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.node import RecipeError
from samepath.rl.recipe.objective import ObjectiveSettings
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.run import start_run
from samepath.rl.tracking.jsonl import read_metrics
from samepath.rl.validate.validation import validate_recipe
from samepath.rollout.import_path import ImportPathError
from tests.conftest import ALPHABET, tiny_model
from tests.rl.learner.test_conversations import an_epoch, batch_of, long_conversation, settings_of, step
from tests.rl.objective.test_surrogate import one_token_each
from tests.update_runs import Descent, rollout_batch, updater

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "own_surrogate"
SMALL = (
    "runtime=inline",
    "tracking.kind=jsonl",
    "cold_start.steps=4",
    "cold_start.dense_warmup_steps=2",
    "cold_start.batch_size=16",
    "rl.steps=2",
    "rl.prompts_per_step=4",
    "rl.group_size=4",
    "evaluation.every=0",
    "task.num_held_out=8",
    "sampling.max_new_tokens=16",
)
HERE = "tests.rl.objective.test_own_surrogate"


def by_token(
    logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float, *, power: float = 1.0
) -> Tensor:
    ratio_M = (logprobs_M - inputs.old_logprobs_M).exp() ** power
    return ratio_M.clamp(1 - clip_low, 1 + clip_high) * inputs.advantages_B[inputs.rollout_M]


def by_rollout(logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> Tensor:
    sums_B = torch.zeros(len(inputs.advantages_B), dtype=logprobs_M.dtype).index_add(0, inputs.rollout_M, logprobs_M)
    return (sums_B * inputs.advantages_B)[inputs.rollout_M]


def grpo(logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> Tensor:
    return surrogate(ObjectiveSettings(clip_low=clip_low, clip_high=clip_high), logprobs_M, inputs).value_M


def without_gradient(logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> Tensor:
    return logprobs_M.detach()


def infinite(logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> Tensor:
    return logprobs_M / 0


def of_infinite_gradient(logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> Tensor:
    return (logprobs_M - logprobs_M.detach()).sqrt()


def scalar(logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> Tensor:
    return logprobs_M.sum()


def counted(logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> Tensor:
    return (logprobs_M * 0).long()


def a_number(logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> float:
    return 1.0


def drawn(logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> Tensor:
    return logprobs_M * torch.rand(())


def raises(logprobs_M: Tensor, inputs: LossInputs, clip_low: float, clip_high: float) -> Tensor:
    raise KeyError("what")


def of_two(logprobs_M: Tensor, inputs: LossInputs) -> Tensor:
    return logprobs_M


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("without_gradient", "gives a value without gradient: it must be computed from logprobs_M"),
        ("infinite", "gives a value that is no finite number"),
        ("of_infinite_gradient", "gives a gradient that is no finite number"),
        ("scalar", r"of the shape \[M\] of logprobs_M, \(5,\); got torch.float32 of \(\)"),
        ("counted", r"got torch.int64 of \(5,\)"),
        ("a_number", "must return a tensor.*; got float"),
        ("drawn", "gives other values for the same numbers"),
        ("raises", "raised KeyError: 'what'"),
        ("of_two", r"must take \(logprobs_M, inputs, clip_low, clip_high, \*\*surrogate_options\); its signature is"),
        ("HERE", "has no class or function 'HERE'; it has by_token, by_rollout"),
    ],
)
def test_function_that_cannot_be_used_is_refused_with_what_is_wrong(name: str, said: str) -> None:
    with pytest.raises(ImportPathError, match=said):
        own_surrogate(f"{HERE}:{name}", {}, 0.2, 0.28)


def test_module_that_is_not_there_and_option_that_it_does_not_take_are_named() -> None:
    with pytest.raises(
        ImportPathError, match=r"'nowhere:loss': there is no module 'nowhere'. Modules of your own stand beside"
    ):
        own_surrogate("nowhere:loss", {}, 0.2, 0.28)
    with pytest.raises(SurrogateError, match="unexpected keyword argument 'powr'"):
        own_surrogate(f"{HERE}:by_token", {"powr": 2}, 0.2, 0.28)


def test_module_that_fails_on_import_says_so_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_surrogate.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        own_surrogate("broken_surrogate:loss", {}, 0.2, 0.28)


def test_whether_a_cut_changes_it_is_found_out() -> None:
    assert own_surrogate(f"{HERE}:by_token", {}, 0.2, 0.28).by_token
    assert not own_surrogate(f"{HERE}:by_rollout", {}, 0.2, 0.28).by_token


def test_function_that_is_defined_anew_is_taken_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook."""
    assert own_surrogate(f"{HERE}:by_token", {}, 0.2, 0.28).by_token
    monkeypatch.setitem(globals(), "by_token", by_rollout)
    assert not own_surrogate(f"{HERE}:by_token", {}, 0.2, 0.28).by_token


def test_value_options_clip_and_ratio_are_those_of_the_function() -> None:
    settings = ObjectiveSettings.model_validate(
        {"surrogate": f"{HERE}:by_token", "surrogate_options": {"power": 2}, "clip_low": 0.5, "clip_high": 0.5}
    )
    logprobs_M, inputs = one_token_each([0.5, 1.0, 1.1, 2.0], [2.0, -2.0, 3.0, 1.0])
    terms = surrogate(settings, logprobs_M, inputs)
    # ratio² within [0.5, 1.5], times A.
    assert terms.value_M.tolist() == pytest.approx([1.0, -2.0, 3.63, 1.5])
    assert terms.ratio_M.tolist() == pytest.approx([0.5, 1.0, 1.1, 2.0])
    assert not terms.clipped_low_M.any()
    assert not terms.clipped_high_M.any()


def test_options_of_a_surrogate_that_takes_none_are_refused() -> None:
    with pytest.raises(ValidationError, match="surrogate `gspo` takes none; got power. Leave them out"):
        ObjectiveSettings.model_validate({"surrogate": "gspo", "surrogate_options": {"power": 2}})
    with pytest.raises(ValidationError):
        ObjectiveSettings.model_validate({"surrogate": "grppo"})


def moved(surrogate: str, **learner: object) -> Tensor:
    """All weights after one step."""
    model = tiny_model()
    rl = {"objective": {"surrogate": surrogate}, "max_gap_at_lag_0": 9}
    updater(model, rl, **learner).run(rollout_batch(character_tokenizer(ALPHABET)), 0, Descent(model, 0.1))
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_update_by_the_same_formula_as_a_function_gives_the_same_weights() -> None:
    assert torch.equal(moved(f"{HERE}:grpo"), moved("grpo"))
    assert not torch.equal(moved(f"{HERE}:by_rollout"), moved("grpo"))


def test_example_is_the_gradient_of_the_ratio_at_1_and_fades(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    own = own_surrogate("own_surrogate:soft_gate", {"tau": 1.0, "tau_negative": 2.0}, 0.2, 0.28)
    assert own.by_token
    logprobs_M, inputs = one_token_each([1.0, 3.0, 1.0, 3.0], [2.0, 2.0, -1.0, -1.0])
    value_M = own.value(logprobs_M, inputs, 0.2, 0.28)
    (gradient_M,) = torch.autograd.grad(value_M.sum(), logprobs_M)

    def slope(tau: float, ratio: float) -> float:
        gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
        return 4 * gate * (1 - gate) * ratio

    assert gradient_M.tolist() == pytest.approx([2.0, 2 * slope(1, 3), -1.0, -slope(2, 3)])
    assert value_M[0].item() == pytest.approx(2 * 4 / 2)


@pytest.mark.parametrize(("name", "refused"), [("by_token", False), ("by_rollout", True)])
def test_rollout_larger_than_a_pass_needs_a_surrogate_that_looks_at_tokens_alone(name: str, refused: bool) -> None:
    plain = settings_of("grpo", "sequence_mean")
    rl = plain.model_copy(update={"objective": plain.objective.model_copy(update={"surrogate": f"{HERE}:{name}"})})
    batch = batch_of([long_conversation(0), long_conversation(1)], an_epoch)
    whole, whole_gradient_M, _, _ = step(batch, rl, 100_000, 0.3)
    if refused:
        with pytest.raises(
            SurrogateError, match="another value where its rollout is cut.*Raise learner.max_tokens_per_pass"
        ):
            step(batch, rl, 16, 0.3)
        return
    loss, gradient_M, _, parts = step(batch, rl, 16, 0.3)
    assert len(parts) == 6
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient_M, whole_gradient_M, rtol=1e-6, atol=1e-7)


def test_recipe_is_refused_before_any_work(tiny_recipe, tmp_path: Path) -> None:
    recipe = tiny_recipe(f"rl.objective.surrogate={HERE}:without_gradient")
    (found,) = [one for one in validate_recipe(recipe, tmp_path).findings if "surrogate" in one.detail]
    assert found.outcome == "wrong"
    with pytest.raises(SurrogateError, match="without gradient"):
        Learner(recipe, tmp_path, recipe.run_dir, None)


@pytest.mark.parametrize("elsewhere", ["learner.ranks=2", "runtime=ray"])
def test_function_of_a_cell_is_refused_where_other_processes_need_it(tiny_recipe, elsewhere: str) -> None:
    assert tiny_recipe("rl.objective.surrogate=__main__:mine")
    with pytest.raises(RecipeError, match="stands in this process alone.*move it into a module"):
        tiny_recipe("rl.objective.surrogate=__main__:mine", elsewhere)


@pytest.mark.slow
def test_example_recipe_trains_by_its_function(
    blank_pictures: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLE)
    # The run appends the folder of the recipe.
    monkeypatch.setattr(sys, "path", [*sys.path])
    recipe = load_recipe("recipe.yaml", [f"runs_dir={tmp_path}", *SMALL], Recipe)
    start_run(recipe, Path())
    metrics = read_metrics(recipe.run_dir / "metrics.jsonl")
    assert all(metrics[step]["policy/gap_at_lag_0"] == 0 for step in (1, 2))
    assert "own_surrogate" in sys.modules
