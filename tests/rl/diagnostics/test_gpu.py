"""The weights that count as arithmetic, and the share of the cards' peak, by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.diagnostics.gpu import GpuMeter, multiplied_parameters, rates
from samepath.rl.learner import learner as learner_module
from samepath.rl.learner.handle import InlineLearner
from tests.conftest import ALPHABET, tiny_config, tiny_model
from tests.update_runs import rollout_batch


@pytest.mark.parametrize("tied", [False, True])
def test_multiplied_parameters_leave_out_idle_experts_and_the_look_up(tied: bool) -> None:
    config = tiny_config(tie_word_embeddings=tied)
    model = tiny_model(tie_word_embeddings=tied)
    width, heads = config.hidden_size, config.num_attention_heads
    attention = (
        width * config.q_lora_rank
        + config.q_lora_rank * heads * 24
        + width * (config.kv_lora_rank + 8)
        + config.kv_lora_rank * heads * 32
        + heads * 16 * width
    )
    indexer = config.q_lora_rank * 4 * 16 + width * 16 + width * 4
    expert = 3 * width * config.moe_intermediate_size
    mixture = (2 + 1) * expert + width * config.n_routed_experts
    wanted = 3 * (attention + indexer) + 2 * mixture + 3 * width * config.intermediate_size + width * config.vocab_size
    assert multiplied_parameters(model) == wanted


def test_nothing_is_reported_on_the_cpu() -> None:
    meter = GpuMeter()
    with meter.measured(tiny_model(), 100):
        pass
    assert meter.metrics == {}


def test_share_of_the_peak_is_of_all_cards_by_hand() -> None:
    """2 · 989e12 in 2 s are 989 TFLOP/s: all of one H200, a quarter of four."""
    assert rates(2 * 989e12, 2.0, 1, "NVIDIA H200") == {"learner/tflops": 989.0, "learner/mfu": 1.0}
    assert rates(2 * 989e12, 2.0, 4, "NVIDIA H200") == {"learner/tflops": 989.0, "learner/mfu": 0.25}
    assert rates(6e12, 2.0, 4, "a card of no known peak") == {"learner/tflops": 3.0}


def test_learner_of_several_ranks_counts_a_card_for_each(
    tiny_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = InlineLearner(tiny_recipe("rl.max_gap_at_lag_0=9"), tmp_path, tmp_path / "run", None)
    learner.start_rl()
    counted = []

    class Counting(GpuMeter):
        def __init__(self, gpus: int = 1) -> None:
            super().__init__(gpus)
            counted.append(self._gpus)

    monkeypatch.setattr(learner_module, "GpuMeter", Counting)
    monkeypatch.setattr(
        learner,
        "_ranks",
        SimpleNamespace(rank=0, size=3, require_equal=lambda what, tensors: None, collective_metrics=lambda *_: {}),
    )
    learner.update(rollout_batch(character_tokenizer(ALPHABET)))
    assert counted == [3]
