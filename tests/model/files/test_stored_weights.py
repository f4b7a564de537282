"""What stands in a folder's files: FP8 blocks to the last bit, and every bad file named before a weight is read.

Axes: R rows, C columns of a matrix; Y, X its blocks down and across.
"""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from samepath.model.files.checkpoint import load_checkpoint, published_tensors, save_checkpoint
from samepath.model.files.config_file import CONFIG_FILE
from samepath.model.files.convert import ConvertError, Output, convert, find_source
from samepath.model.files.fp8_blocks import Fp8Blocks
from samepath.model.files.stored_weights import StoredWeights, dequantised
from samepath.model.files.weight_files import INDEX_FILE, WEIGHTS_FILE
from samepath.model.text.tokenizer import character_tokenizer
from tests.families import family_model
from tests.fp8_checkpoints import expanded, quantise

DOWN = "model.layers.0.mlp.down_proj.weight"
SCALES = DOWN + "_scale_inv"


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    blocks=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 9),
)
def test_dequantised_is_code_times_scale_of_its_block_whatever_the_sizes(
    sizes: tuple[int, int], blocks: tuple[int, int], dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes_RC = torch.randn(sizes, generator=generator).mul(20).to(torch.float8_e4m3fn)
    cut = Fp8Blocks(rows=blocks[0], columns=blocks[1])
    scales_YX = torch.rand(cut.scale_shape(codes_RC.shape), generator=generator)
    exact_RC = codes_RC.double() * expanded(scales_YX, sizes, *blocks)
    wanted_RC = exact_RC if dtype == torch.float64 else exact_RC.float().to(dtype)
    got_RC = dequantised(codes_RC, scales_YX, cut, dtype)
    assert got_RC.dtype == dtype
    assert torch.equal(got_RC, wanted_RC)
    stacked = dequantised(torch.stack([codes_RC] * 2), torch.stack([scales_YX, 2 * scales_YX]), cut, torch.float64)
    assert torch.equal(stacked[1], 2 * exact_RC)


def source(folder: Path, name: str = "deepseek_v32") -> Path:
    save_checkpoint(family_model(name), folder)
    character_tokenizer("0123456789+-=abc").save(folder)
    return folder


@pytest.mark.parametrize(
    ("blocks", "options"),
    [
        ((128, 128), {}),
        ((24, 40), {}),
        ((16, 32), {"powers": True}),
        ((16, 32), {"powers": True, "scale_type": torch.float8_e8m0fnu}),
    ],
    ids=["as published", "sizes that divide nothing", "powers in float32", "powers in e8m0"],
)
def test_load_checkpoint_of_fp8_files_holds_their_values(
    blocks: tuple[int, int], options: dict[str, object], tmp_path: Path
) -> None:
    values = quantise(source(tmp_path), blocks, **options)  # type: ignore[arg-type]
    for dtype in (torch.float32, torch.float64):
        model = load_checkpoint(tmp_path, dtype=dtype)
        for name, tensor in published_tensors(model).items():
            assert torch.equal(tensor, values[name].to(dtype)), name
    assert not torch.equal(values[DOWN], published_tensors(family_model("deepseek_v32"))[DOWN].double())
    save_checkpoint(model, tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "again" / CONFIG_FILE).read_text())


@pytest.mark.filterwarnings("ignore")
def test_transformers_reads_the_same_values(tmp_path: Path) -> None:
    """Without a GPU it dequantises, where the blocks divide the sizes."""
    pytest.importorskip("accelerate")
    quantise(source(tmp_path, "deepseek_v3"), (8, 16))
    theirs = DeepseekV3ForCausalLM.from_pretrained(tmp_path).state_dict()
    for name, tensor in published_tensors(load_checkpoint(tmp_path)).items():
        if name.endswith("proj.weight") and ".mlp.experts." not in name:
            assert torch.equal(tensor, theirs[name]), name


def test_convert_fp8_folder_becomes_a_plain_one(tmp_path: Path) -> None:
    values = quantise(source(tmp_path / "from"), (24, 40))
    done = convert(find_source(str(tmp_path / "from")), tmp_path / "to", Output(weight_type="bfloat16"), lambda _: None)
    written = load_file(done.folder / WEIGHTS_FILE)
    assert written.keys() == values.keys()
    for name, tensor in written.items():
        kept = name.endswith("e_score_correction_bias")
        assert tensor.dtype == (torch.float32 if kept else torch.bfloat16), name
        assert torch.equal(tensor, values[name].float().to(tensor.dtype)), name
    config = json.loads((done.folder / CONFIG_FILE).read_text())
    assert ("quantization_config" in config, config["torch_dtype"]) == (False, "bfloat16")
    assert done.architecture == "DeepseekV32ForCausalLM"
    assert done.parameters == sum(parameter.numel() for parameter in load_checkpoint(done.folder).parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, r"config\.json: model_type must be one of .*; got 'mistral'"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantization_config\.quant_method must be fp8"),
    ],
)
def test_convert_quantised_folder_that_nothing_here_reads_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    quantise(source(tmp_path / "from", "llama"), (16, 32))
    config = json.loads((tmp_path / "from" / CONFIG_FILE).read_text())
    (tmp_path / "from" / CONFIG_FILE).write_text(json.dumps({**config, **changes}))
    with pytest.raises(ConvertError, match=message):
        convert(find_source(str(tmp_path / "from")), tmp_path / "to", Output(), lambda _: None)


def rewrite(folder: Path, change: str) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    match change:
        case "no scales":
            del tensors[SCALES]
        case "scales of another shape":
            tensors[SCALES] = tensors[SCALES][:-1].clone()
        case "scales of another type":
            tensors[SCALES] = tensors[SCALES].double()
        case "scales of no matrix":
            tensors["model.norm.weight_scale_inv"] = torch.ones(1, 1)
        case "a scale that is no number":
            tensors[SCALES][0, 0] = torch.nan
        case "a vector in FP8":
            tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
            tensors["model.norm.weight_scale_inv"] = torch.ones(1, 1)
        case "integers":
            tensors[DOWN] = torch.zeros(64, 96, dtype=torch.int8)
            del tensors[SCALES]
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no scales", rf"{DOWN} is of type F8_E4M3 and needs its scales, {SCALES}; no file has them"),
        ("scales of another shape", rf"{SCALES} must have shape \(4, 3\), .* block of 16 × 32; got \(3, 3\)"),
        ("scales of another type", rf"{SCALES} must be of type F32 or F8_E8M0; got F64"),
        ("scales of no matrix", r"model.norm.weight_scale_inv must be the scales of an FP8 matrix; there is none"),
        ("a scale that is no number", rf"{SCALES} must hold finite scales"),
        ("a vector in FP8", r"model.norm.weight: an FP8 weight must be a matrix; got shape \(64,\)"),
        ("integers", rf"{DOWN} must be of type F64, F32, F16, BF16, or F8_E4M3 with scales; got I8"),
    ],
)
def test_fp8_that_does_not_fit_is_refused_by_tensor_and_file(change: str, message: str, tmp_path: Path) -> None:
    quantise(source(tmp_path / "from"), (16, 32))
    rewrite(tmp_path / "from", change)
    with pytest.raises(ValueError, match=rf"from/model\.safetensors: {message}"):
        load_checkpoint(tmp_path / "from")
    with pytest.raises(ConvertError, match=message):
        convert(find_source(str(tmp_path / "from")), tmp_path / "to", Output(), lambda _: None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["from"]


def test_fp8_without_a_configuration_that_says_so_is_refused(tmp_path: Path) -> None:
    quantise(source(tmp_path), (16, 32))
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    del config["quantization_config"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"F8_E4M3: config.json must say how, as quantization_config; it does not"):
        load_checkpoint(tmp_path)


def shards(folder: Path, tensors: dict[str, Tensor], *, second: list[str]) -> None:
    """Two files with an index, the named tensors in the second."""
    (folder / WEIGHTS_FILE).unlink()
    places = {name: f"model-0000{1 + (name in second)}-of-00002.safetensors" for name in tensors}
    for file in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_fp8_matrix_whose_scales_stand_in_another_file_is_read(tmp_path: Path) -> None:
    values = quantise(source(tmp_path), (16, 32))
    shards(tmp_path, load_file(tmp_path / WEIGHTS_FILE), second=[SCALES, "lm_head.weight"])
    assert torch.equal(published_tensors(load_checkpoint(tmp_path))[DOWN], values[DOWN].float())


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    shards(source(tmp_path), load_file(tmp_path / WEIGHTS_FILE), second=["lm_head.weight", DOWN])
    return tmp_path


FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))


def test_a_shard_that_is_not_there_is_named_with_a_tensor_of_it(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{SECOND} must hold (lm_head.weight|{DOWN}), .*; it is not there"):
        load_checkpoint(sharded)


def test_a_tensor_that_its_shard_does_not_hold_is_named_with_it(sharded: Path) -> None:
    save_file({"lm_head.weight": torch.zeros(18, 64)}, sharded / SECOND)
    with pytest.raises(ValueError, match=rf"{SECOND} must hold {DOWN}, as the index beside it says; it does not"):
        load_checkpoint(sharded)


def test_a_tensor_in_two_shards_is_named_with_both(sharded: Path) -> None:
    tensors = load_file(sharded / SECOND)
    save_file({**tensors, "model.norm.weight": torch.ones(64)}, sharded / SECOND)
    with pytest.raises(
        ValueError, match=rf"model.norm.weight must stand in one file; it is in .*{FIRST} and .*{SECOND}"
    ):
        load_checkpoint(sharded)


@pytest.mark.parametrize("text", ['{"metadata": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": [1]}'])
def test_an_index_that_is_none_is_named(text: str, sharded: Path) -> None:
    (sharded / INDEX_FILE).write_text(text)
    with pytest.raises(ValueError, match=rf"{INDEX_FILE}: weight_map must give the file of each tensor"):
        load_checkpoint(sharded)


@pytest.mark.parametrize(
    "size", [-1, 1000, 5, 0], ids=["one byte short", "within the head", "within its length", "empty"]
)
def test_a_torn_shard_is_named(size: int, sharded: Path) -> None:
    whole = (sharded / SECOND).read_bytes()
    (sharded / SECOND).write_bytes(whole[:size] if size != 1000 else whole[:100])
    with pytest.raises(ValueError, match=rf"{SECOND} is no whole safetensors file: .*Fetch it again"):
        load_checkpoint(sharded)


def test_a_type_that_nobody_knows_is_named_with_tensor_and_file(sharded: Path) -> None:
    whole = (sharded / SECOND).read_bytes()
    (sharded / SECOND).write_bytes(whole.replace(b'"F32"', b'"F33"', 1))
    with pytest.raises(ValueError, match=rf"{SECOND}: (lm_head.weight|{DOWN}) must be of type .*; got F33"):
        load_checkpoint(sharded)


def test_bad_files_are_refused_before_the_network_is_laid_out(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samepath.model.files.checkpoint.CausalLM", None)
    (sharded / FIRST).write_bytes(b"torn")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load_checkpoint(sharded)


def test_a_misshapen_tensor_is_named_with_its_file(sharded: Path) -> None:
    tensors = load_file(sharded / SECOND)
    save_file({**tensors, DOWN: torch.zeros(64, 95)}, sharded / SECOND)
    with pytest.raises(ValueError, match=rf"{DOWN} must have shape \(64, 96\); .*{SECOND} has \(64, 95\)"):
        load_checkpoint(sharded)


def test_an_unknown_tensor_is_named_with_its_file(sharded: Path) -> None:
    save_file({**load_file(sharded / SECOND), "model.extra": torch.zeros(1)}, sharded / SECOND)
    with pytest.raises(ValueError, match=rf"unknown \['model.extra'\] \(1\).*{SECOND}"):
        load_checkpoint(sharded)


def test_read_gives_the_named_tensors_alone_file_by_file(sharded: Path) -> None:
    stored = StoredWeights(sharded)
    names = ["lm_head.weight", "model.norm.weight", DOWN]
    assert [name for name, _ in stored.read(names)] == ["model.norm.weight", "lm_head.weight", DOWN]
    assert stored.shapes[DOWN] == (64, 96)
    assert stored.file_of(DOWN) == sharded / SECOND
