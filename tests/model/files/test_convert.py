"""GGUF to a checkpoint that trains: exact dequantised weights, whole or not at all, errors that say what to do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from samepath.model.files import convert as module
from samepath.model.files.convert import ConvertError, Output, Source, convert, find_source
from samepath.model.text.tokenizer import load_tokenizer

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

WIDTH, HIDDEN, LAYERS, HEADS = 64, 96, 2, 2
TOKENS = ["<unk>", "<start>", "<end>", *"0123456789+=", "Ġ", "1", "12"]
TOKENS[-2] = "-"


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A llama of two layers with Q4_1 matrices; returns the values they stand for, by GGUF name."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(len(TOKENS))
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    values = {}
    shapes = {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        stem = f"blk.{layer}."
        shapes |= {stem + name + ".weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {stem + "attn_q.weight": (WIDTH, WIDTH), stem + "attn_output.weight": (WIDTH, WIDTH)}
        shapes |= {stem + name + ".weight": (WIDTH // HEADS, WIDTH) for name in ("attn_k", "attn_v")}
        shapes |= {stem + name + ".weight": (HIDDEN, WIDTH) for name in ("ffn_gate", "ffn_up")}
        shapes[stem + "ffn_down.weight"] = (WIDTH, HIDDEN)
    for name, shape in shapes.items():
        tensor = rng.normal(size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q4_1 if len(shape) > 1 else gguf.GGMLQuantizationType.F32
        raw = gguf.quants.quantize(tensor, kind)
        values[name] = gguf.quants.dequantize(raw, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """An installed package `carrier` with one GGUF file; returns the file's values."""
    site = tmp_path / "site"
    (site / "carrier").mkdir(parents=True)
    (site / "carrier-1.0.dist-info").mkdir()
    (site / "carrier-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    (site / "carrier-1.0.dist-info" / "RECORD").write_text("carrier/tiny.gguf,,\ncarrier-1.0.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(str(site))
    return write_gguf(site / "carrier" / "tiny.gguf")


@pytest.mark.filterwarnings("ignore")
def test_convert_package_gives_the_dequantised_weights_and_trains(
    package: dict[str, np.ndarray], tmp_path: Path
) -> None:
    told: list[str] = []
    done = convert(find_source("carrier"), tmp_path / "models" / "tiny", Output(), told.append)
    tensors = load_file(done.folder / "model.safetensors")
    assert np.array_equal(tensors["model.embed_tokens.weight"].numpy(), package["token_embd.weight"])
    for layer in range(LAYERS):
        wanted = package[f"blk.{layer}.ffn_down.weight"]
        assert np.array_equal(tensors[f"model.layers.{layer}.mlp.down_proj.weight"].numpy(), wanted)
        assert np.unique(wanted).size > 16, "quantised in blocks, not constant"
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert done.architecture == "LlamaForCausalLM"
    assert done.parameters == sum(values.size for values in package.values())
    tokenizer = load_tokenizer(done.folder)
    assert (tokenizer.end_token, tokenizer.encode("12+")) == ("<end>", (17, 13))
    assert told == ["reading tiny.gguf", f"writing {done.folder}"]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(done.folder)
    model(input_ids=torch.tensor([[1, 5, 6]]), labels=torch.tensor([[1, 5, 6]])).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore")
def test_convert_folder_to_bfloat16_halves_it(package: dict[str, np.ndarray], tmp_path: Path) -> None:
    whole = convert(find_source("carrier"), tmp_path / "whole", Output(), lambda _: None)
    half = convert(find_source(str(whole.folder)), tmp_path / "half", Output(weight_type="bfloat16"), lambda _: None)
    first, second = (load_file(done.folder / "model.safetensors") for done in (whole, half))
    assert {name: tensor.bfloat16().tolist() for name, tensor in first.items()} == {
        name: tensor.tolist() for name, tensor in second.items()
    }


def test_convert_to_an_existing_folder_leaves_it_alone(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="already exists and is left alone"):
        convert(Source(location=str(tmp_path), gguf_file=""), tmp_path, Output(), lambda _: None)


@pytest.mark.filterwarnings("ignore")
def test_convert_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConvertError, match="transformers cannot read"):
        convert(find_source(str(tmp_path / "broken")), tmp_path / "target", Output(), lambda _: None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken"]


def test_convert_without_the_packages_names_the_command(
    package: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(ConvertError, match=r"needs gguf: pip install 'samepath\[gguf\]'"):
        convert(find_source("carrier"), tmp_path / "target", Output(), lambda _: None)


def test_find_source_of_each_kind(package: dict[str, np.ndarray], tmp_path: Path) -> None:
    folder = tmp_path / "site" / "carrier"
    expected = Source(location=str(folder), gguf_file="tiny.gguf")
    assert find_source("carrier") == expected
    assert find_source(str(folder / "tiny.gguf")) == expected
    assert find_source(str(folder)) == expected
    assert find_source("organisation/name") == Source(location="organisation/name", gguf_file="")
    assert find_source("organisation/name", "a.gguf") == Source(location="organisation/name", gguf_file="a.gguf")


def test_find_source_that_leaves_a_choice_lists_it(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ConvertError, match=r"it has a\.gguf, b\.gguf\. Choose with --file"):
        find_source(str(tmp_path))
    assert find_source(str(tmp_path), "b.gguf").gguf_file == "b.gguf"
    with pytest.raises(ConvertError, match=r"named c\.gguf; it has"):
        find_source(str(tmp_path), "c.gguf")


@pytest.mark.parametrize("source", ["no-such-package-anywhere", "./nowhere/here"])
def test_find_source_of_nothing_says_what_a_source_is(source: str) -> None:
    with pytest.raises(ConvertError, match="an installed package or a hub name"):
        find_source(source)


def test_find_source_other_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ConvertError, match=r"holds no GGUF file and no config\.json"):
        find_source(str(tmp_path))
    with pytest.raises(ConvertError, match=r"named \*\.gguf"):
        find_source(str(tmp_path / "model.bin"))
