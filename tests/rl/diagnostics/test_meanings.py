"""One table says what every metric means: whatever the code logs is in it, and the documentation shows it as it stands."""

import ast
import re
from pathlib import Path

import pytest

from samepath.rl.diagnostics.meanings import meaning_groups, meaning_of, metric_tables, written_out

ROOT = Path(__file__).resolve().parents[3]
GROUPS = "policy|kl|routing|reward|rollout|segments|conversation|learner|time|weights|eval|evaluation|cold_start|indexer|faults|sparse|text"
LEFT_OUT = {
    "rollout/length",
    "policy/off_policy",
    "policy/support_size",
    "kl/reference_unbiased_after_mask",
    "reward/status.",
    "rollout/failure.",
    "text/css",
    "text/javascript",
    "text/html",
    "text/plain",
}
"""Beginnings of names, which are no metric themselves, and types of files."""


def constants() -> set[str]:
    """Every text of the code that looks like a metric's whole name; those made of parts are seen in runs (tests/test_examples.py)."""
    found = set()
    for folder in ("rl", "rollout"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found |= {node.value} if re.fullmatch(rf"({GROUPS})/[a-z0-9_.]+", node.value) else set()
    return found


def test_every_metric_that_the_code_names_has_a_meaning() -> None:
    found = constants() - LEFT_OUT
    assert len(found) > 60
    assert sorted(name for name in found if meaning_of(name) is None and not name.endswith((".", "_"))) == []


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("policy/off_policy_p99", "policy/off_policy"),
        ("routing/flip_rate.layer_03", "routing/flip_rate"),
        ("reward/part.style/a", "reward/part.<name>"),
        ("evaluation/aime.24/pass_at_8", "evaluation/<set>/pass_at_<k>"),
        ("conversation/problem.not_json", "conversation/problem.<problem>"),
        ("kl/sampler_k3_numerics", "kl/sampler_k1_numerics"),
    ],
)
def test_meaning_of_a_name_with_an_ending_a_layer_or_an_own_part(name: str, first: str) -> None:
    found = meaning_of(name)
    assert found is not None
    assert found.names[0] == first


def test_meaning_of_a_metric_that_is_not_there_is_none() -> None:
    assert meaning_of("policy/essence") is None
    assert meaning_of("evaluation/a/pass_at_x") is None


def test_no_metric_stands_in_two_rows() -> None:
    names = [name for group in meaning_groups() for one in group.meanings for name in one.names]
    assert len(names) == len(set(names))
    assert all(one.text for group in meaning_groups() for one in group.meanings)


def test_written_out_adds_endings_to_the_first_name() -> None:
    assert written_out("`a/size` `_p50` `_max` `b/other`") == ("a/size", "a/size_p50", "a/size_max", "b/other")


def test_algorithm_page_shows_the_table_as_it_stands() -> None:
    """After a change: put what `python -m samepath.rl.diagnostics.meanings` prints below the heading Metrics."""
    assert metric_tables() in (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8") + "\n"
