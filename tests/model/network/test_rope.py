"""Rotary embedding: frequencies by hand, both layouts, and YaRN's ramp."""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale

from samepath.kernels.rows.grouped_heads import rotate_whole
from samepath.model.files.config_file import CONFIG_FILE, read_config, write_config
from samepath.model.network.rope import inverse_frequencies, rope_table, rotate_halves, rotate_interleaved
from samepath.model.rope_parameters import RopeParameters
from tests.conftest import tiny_config
from tests.families import family_config


def test_inverse_frequencies_default_are_powers_of_theta() -> None:
    frequencies = inverse_frequencies(8, RopeParameters(rope_theta=10000.0))
    assert frequencies.tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001])


def test_inverse_frequencies_yarn_keeps_fast_and_interpolates_slow_rotations() -> None:
    """Width 64, θ 10000, length 4096: rotation counts 32 and 1 fall on dimensions 10.4 → 10 and 22.5 → 23."""
    rope = RopeParameters(rope_type="yarn", factor=40.0)
    plain = inverse_frequencies(64, RopeParameters())
    ratio = (plain / inverse_frequencies(64, rope)).tolist()
    assert ratio[:11] == pytest.approx([1.0] * 11)
    assert ratio[23:] == pytest.approx([40.0] * 9)
    assert ratio[16] == pytest.approx(1 / (6 / 13 / 40 + 7 / 13))


def test_rope_table_angles_are_position_times_frequency() -> None:
    table = rope_table(tiny_config())
    assert table.shape == (128, 2, 4)
    assert table[100, 0, 1].item() == pytest.approx(math.cos(100 * 0.1), abs=1e-6)
    assert table[100, 1, 3].item() == pytest.approx(math.sin(100 * 0.001), abs=1e-6)


def test_rope_table_yarn_amplitude_is_the_ratio_of_both_mscales() -> None:
    rope = RopeParameters(rope_type="yarn", factor=40.0, mscale=1.0, mscale_all_dim=0.5)
    amplitude = (0.1 * math.log(40) + 1) / (0.05 * math.log(40) + 1)
    assert rope_table(tiny_config(rope_parameters=rope))[0, 0].tolist() == pytest.approx([amplitude] * 4)
    equal = RopeParameters(rope_type="yarn", factor=40.0)
    assert rope_table(tiny_config(rope_parameters=equal))[0, 0].tolist() == [1.0] * 4


def test_rotate_layouts_pair_different_channels() -> None:
    """A quarter turn of the first pair: (x0, x1) in the interleaved layout, (x0, x2) in the halves layout."""
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    cos, sin = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    assert rotate_interleaved(x, cos, sin).tolist() == [[-2.0, 1.0, 3.0, 4.0]]
    assert rotate_halves(x, cos, sin).tolist() == [[-3.0, 2.0, 1.0, 4.0]]


def test_rotate_whole_with_the_table_of_a_grouped_model_is_rotate_halves_to_the_bit() -> None:
    table_P2K = rope_table(family_config("qwen3"))
    x_PHK = torch.randn(128, 3, 32, generator=torch.Generator().manual_seed(0))
    cos_P1Q, sin_P1Q = table_P2K[:, :1, 16:], table_P2K[:, 1:, 16:]
    assert torch.equal(rotate_whole(x_PHK, table_P2K[:, :1], table_P2K[:, 1:]), rotate_halves(x_PHK, cos_P1Q, sin_P1Q))


@pytest.mark.parametrize(
    ("rope", "wanted"),
    [
        (RopeParameters(rope_type="linear", factor=4.0), [0.25, 0.025]),
        # 1 turns 1.59 times in 10 positions, 0.1 turns 0.159 times: kept, and divided by 4; in between, a mixture.
        (
            RopeParameters(rope_type="llama3", factor=4.0, original_max_position_embeddings=10, high_freq_factor=1.5),
            [1.0, 0.025],
        ),
        (
            RopeParameters(rope_type="llama3", factor=4.0, original_max_position_embeddings=10, high_freq_factor=2.0),
            [1.0 * (10 / (2 * math.pi) - 1) + 0.25 * (2 - 10 / (2 * math.pi)), 0.025],
        ),
    ],
)
def test_inverse_frequencies_of_extensions_are_worked_by_hand(rope: RopeParameters, wanted: list[float]) -> None:
    assert inverse_frequencies(4, rope.model_copy(update={"rope_theta": 100.0})).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("rotate", [rotate_interleaved, rotate_halves])
def test_rotate_scores_depend_on_the_distance_alone(rotate) -> None:  # type: ignore[no-untyped-def]
    table = rope_table(tiny_config()).double()
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, generator=generator, dtype=torch.float64)

    def score(query_position: int, key_position: int) -> float:
        turned = [rotate(x, *table[position]) for x, position in ((q, query_position), (k, key_position))]
        return float(turned[0] @ turned[1])

    assert score(50, 43) == pytest.approx(score(7, 0), abs=1e-5)
    assert abs(score(50, 43) - score(50, 44)) > 1e-3


MISSING = object()
PUBLISHED_V3 = {"factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1}
"""DeepSeek-V3's own."""


def yarn_settings() -> list[dict[str, Any]]:
    """Every combination of what a file may say or leave out."""
    choices: dict[str, tuple[Any, ...]] = {
        "factor": (1.0, 40),
        "mscale": (MISSING, None, 0.0, 0.707),
        "mscale_all_dim": (MISSING, 0.0, 0.5, 1.0),
        "attention_factor": (MISSING, 1.3),
        "beta_fast": (MISSING, 8),
        "truncate": (MISSING, False),
    }
    grid = [dict(zip(choices, values)) for values in product(*choices.values())]
    return [PUBLISHED_V3, *({key: value for key, value in row.items() if value is not MISSING} for row in grid)]


def test_yarn_of_a_published_file_is_that_of_transformers_whatever_it_says_or_leaves_out(tmp_path: Path) -> None:
    """Frequencies, amplitude of the cosines and softmax scale; written again, the file means the same."""
    sizes = write_config(family_config("deepseek_v3", qk_rope_head_dim=64, max_position_embeddings=163840))
    file = tmp_path / CONFIG_FILE
    for settings in yarn_settings():
        rope = {"rope_type": "yarn", "rope_theta": 10000.0, "original_max_position_embeddings": 4096, **settings}
        file.write_text(json.dumps({**sizes, "rope_parameters": rope}))
        theirs = DeepseekV3Config(**json.loads(file.read_text()))
        frequencies, amplitude = ROPE_INIT_FUNCTIONS["yarn"](theirs)
        scale = yarn_apply_mscale(theirs.rope_parameters, theirs.qk_head_dim**-0.5)
        for _ in range(2):
            config = read_config(file)
            own = inverse_frequencies(64, config.rope_parameters)
            torch.testing.assert_close(own.float(), frequencies, rtol=1e-6, atol=0, msg=str(settings))
            assert config.rope_parameters.amplitude == pytest.approx(amplitude, rel=1e-12), settings
            assert config.softmax_scale == pytest.approx(scale, rel=1e-12), settings
            file.write_text(json.dumps(write_config(config)))


@pytest.mark.parametrize(
    ("beside", "rope", "length", "factor"),
    [
        ({}, {"factor": 4.0}, 128, 4.0),
        ({}, {"factor": 4.0, "original_max_position_embeddings": 32}, 32, 4.0),
        ({"original_max_position_embeddings": 16}, {"factor": 4.0, "original_max_position_embeddings": 32}, 16, 4.0),
        ({}, {"factor": None, "original_max_position_embeddings": 32}, 32, 4.0),
    ],
)
def test_yarn_finds_its_original_length_and_factor_where_transformers_does(
    tmp_path: Path, beside: dict[str, Any], rope: dict[str, Any], length: int, factor: float
) -> None:
    file = tmp_path / CONFIG_FILE
    sizes = write_config(family_config("deepseek_v3", qk_rope_head_dim=64))
    file.write_text(
        json.dumps({**sizes, **beside, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, **rope}})
    )
    found = read_config(file).rope_parameters
    frequencies, amplitude = ROPE_INIT_FUNCTIONS["yarn"](DeepseekV3Config.from_pretrained(tmp_path))
    assert (found.original_max_position_embeddings, found.factor) == (length, factor)
    torch.testing.assert_close(inverse_frequencies(64, found).float(), frequencies, rtol=1e-6, atol=0)
    assert found.amplitude == pytest.approx(amplitude, rel=1e-12)


def test_rope_table_of_a_partly_rotated_head_covers_its_first_channels() -> None:
    table = rope_table(family_config("glm4_moe"))
    assert table.shape == (128, 2, 8)
    assert table[3, 0].tolist() == pytest.approx([math.cos(3 * 10000 ** (-i / 4)) for i in (0, 1, 2, 3)] * 2)
