"""Looking at a model without training it."""

from pathlib import Path

import yaml

from samepath.rl.preview import sample_source
from tests.conftest import ALPHABET
from tests.rl.conftest import TINY


def test_sample_source_ends_responses_where_the_recipe_does(tmp_path: Path) -> None:
    """With every character as a stop string a response is one character, after special tokens at most."""
    plain, stopping = tmp_path / "plain.yaml", tmp_path / "stopping.yaml"
    plain.write_text(yaml.safe_dump({**TINY, "runs_dir": str(tmp_path / "runs")}))
    sampling = {**TINY["sampling"], "stop_strings": list(ALPHABET)}
    stopping.write_text(yaml.safe_dump({**TINY, "runs_dir": str(tmp_path / "runs"), "sampling": sampling}))
    free = sample_source(plain, "1+2=", 8, {"max_new_tokens": 12}, seed=0)
    ended = sample_source(stopping, "1+2=", 8, {"max_new_tokens": 12}, seed=0)
    assert max(len(rollout.text) for rollout in free) > 1
    assert {len(rollout.text) for rollout in ended} <= {0, 1}
    assert {rollout.segments[0].finish_reason for rollout in ended} == {"stop"}
