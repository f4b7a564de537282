"""What routing replay does between real vLLM and the learner: nothing in float32, less KL in bfloat16, more with a wrong layer."""

import pytest

from benchmarks.mismatch import compare


@pytest.mark.parametrize("family", ["Qwen3Moe", "DeepseekV3"])
def test_replay_lowers_the_kl_of_a_bfloat16_engine_and_a_wrong_layer_raises_it(family: str) -> None:
    found = compare(family, "bfloat16", prompts=16, tokens=64, seed=0)
    off, on, wrong = (found.gaps[kind].kl for kind in ("off", "on", "wrong layer"))
    assert 0.001 < found.choices_differing / found.choices < 0.05
    assert on < off / 2, "at least the halving that arXiv:2510.11370 reports"
    assert wrong > 10 * off
    assert found.gaps["on"].largest < found.gaps["off"].largest


def test_engine_in_float32_takes_the_learners_routes() -> None:
    found = compare("Olmoe", "float32", prompts=16, tokens=64, seed=0)
    assert found.choices_differing == 0
    assert found.gaps["off"].largest < 1e-4
    assert found.gaps["wrong layer"].kl > 1e-3
