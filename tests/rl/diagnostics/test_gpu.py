"""The weights that count as arithmetic, by hand."""

import pytest

from samepath.rl.diagnostics.gpu import GpuMeter, multiplied_parameters
from tests.conftest import tiny_config, tiny_model


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
