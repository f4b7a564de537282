"""`samepath validate`: every check's outcome, on small checkpoints and without a network; exit statuses."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from samepath.model.files.config_file import write_config
from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.cli import main
from samepath.rl.learner import model_source
from samepath.rl.recipe.file import load_recipe
from samepath.rl.recipe.node import RecipeError
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.tasks.hub_folder import HubUnreachableError
from samepath.rl.validate import memory_findings, validation
from samepath.rl.validate.finding import Finding, Validation
from samepath.rl.validate.memory_estimate import GATHERED
from samepath.rl.validate.validation import validate_recipe
from tests.conftest import ALPHABET, tiny_config
from tests.rl.conftest import TINY

SIZES = {
    "model_type": "deepseek_v32",
    **{
        key: value
        for key, value in tiny_config().model_dump(mode="json").items()
        if key not in ("rope_parameters", "pad_token_id")
    },
}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No address resolves, and the hub's cache is empty."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(memory_findings, "memory_bytes", lambda: 24 * 10**9)
    monkeypatch.setattr(memory_findings, "list_gpus", list)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder without weights: configuration and tokenizer."""
    folder = tmp_path / "checkpoint"
    character_tokenizer(ALPHABET).save(folder)
    (folder / "config.json").write_text(json.dumps(write_config(tiny_config())))
    return folder


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def checked(folder: Path, **changes: Any) -> tuple[Validation, dict[str, Finding]]:
    result = validate_recipe(load_recipe(write(folder, **changes), [], Recipe), folder)
    return result, {finding.name: finding for finding in result.findings}


def foreign(**engine: Any) -> dict[str, Any]:
    """Changes that put a checkpoint behind a vLLM engine."""
    return {
        "model": {"kind": "checkpoint", "path": "someone/something", "expected": SIZES},
        "engine": {"kind": "vllm", "return_sampling_mask": True, **engine},
        "rl": {**TINY["rl"], "max_gap_at_lag_0": 0.5},
    }


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["samepath", "validate", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_validate_new_model_everything_is_checked(tmp_path: Path) -> None:
    result, found = checked(tmp_path)
    assert {finding.outcome for finding in result.findings} == {"ok"}
    assert list(found) == [
        "settings",
        "run folder",
        "task",
        "model",
        "sizes",
        "tokenizer",
        "device",
        "row exactness",
        "network",
        "prompts",
        "cold start",
        "reward",
        "engine",
        "memory",
    ]
    assert result.passed(strict=True)
    assert any(line.startswith("| least devices of 80 GB") for line in result.lines())


def test_validate_names_the_datasets_of_a_mixture_and_a_weight_for_none_of_them(tmp_path: Path) -> None:
    rows = [{"question": f"{i}+1=", "answer": i + 1, "from": "odd" if i % 4 else "even"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"kind": "file", "path": "rows.jsonl", "held_out_fraction": 0.2, "columns": {"dataset": "from"}}
    _, found = checked(tmp_path, task=task)
    assert re.search(r"held-out rows, of the datasets \w+ \d+, \w+ \d+; first", found["task"].detail)
    kl = {"objective": {"kl": {"beta_by_dataset": {"odd": 0.0, "evens": 0.1}}}}
    _, found = checked(tmp_path, task=task, rl={**TINY["rl"], **kl})
    assert (found["task"].outcome, "got 'evens'" in found["task"].detail) == ("wrong", True)


def test_validate_checkpoint_without_weights_is_not_built(checkpoint: Path) -> None:
    _, found = checked(checkpoint.parent, model={"kind": "checkpoint", "path": "checkpoint", "expected": SIZES})
    assert found["model"].outcome == found["tokenizer"].outcome == found["prompts"].outcome == "ok"
    assert f"equal to model.expected in {len(SIZES)} sizes" in found["model"].detail


def test_validate_size_that_is_not_the_expected_one_is_wrong(checkpoint: Path) -> None:
    expected = {**SIZES, "hidden_size": 128}
    result, found = checked(checkpoint.parent, model={"kind": "checkpoint", "path": "checkpoint", "expected": expected})
    assert found["model"].outcome == "wrong"
    assert "hidden_size is 64, expected 128" in found["model"].detail
    assert not result.passed(strict=False)


def test_validate_hub_name_offline_counts_from_the_expected_sizes(tmp_path: Path) -> None:
    model = {"kind": "checkpoint", "path": "someone/something", "expected": SIZES}
    result, found = checked(tmp_path, model=model)
    assert found["model"].outcome == found["tokenizer"].outcome == found["prompts"].outcome == "not checked"
    assert "someone/something is not in the hub's cache" in found["model"].detail
    assert found["sizes"].outcome == "ok"
    assert "(from model.expected)" in found["sizes"].detail
    assert result.passed(strict=False)
    assert not result.passed(strict=True)


def test_validate_hub_name_offline_without_expected_sizes_says_so(tmp_path: Path) -> None:
    _, found = checked(tmp_path, model={"kind": "checkpoint", "path": "someone/something"})
    assert found["sizes"].outcome == found["memory"].outcome == "not checked"
    assert "no model.expected" in found["sizes"].detail


def test_validate_folder_that_does_not_exist_is_wrong(tmp_path: Path) -> None:
    _, found = checked(tmp_path, model={"kind": "checkpoint", "path": "./nowhere", "expected": SIZES})
    assert found["model"].outcome == "wrong"
    assert "no folder ./nowhere" in found["model"].detail


def test_validate_large_model_needs_devices_that_the_learner_does_not_use(tmp_path: Path) -> None:
    expected = {
        **SIZES,
        "num_hidden_layers": 200,
        "hidden_size": 8192,
        "n_routed_experts": 64,
        "moe_intermediate_size": 2048,
    }
    result, found = checked(tmp_path, model={"kind": "checkpoint", "path": "someone/something", "expected": expected})
    assert found["memory"].outcome == "obstacle"
    assert "with learner.shard=full" in found["memory"].detail
    assert result.passed(strict=False)
    assert not result.passed(strict=True)


def test_validate_counts_what_a_rank_of_so_many_holds(tmp_path: Path) -> None:
    """About 16 billion parameters of 20 bytes, and what each rank needs for itself: too much for one device, and not for eight."""
    experts = {"n_routed_experts": 64, "moe_intermediate_size": 1024}
    expected = {**SIZES, **experts, "num_hidden_layers": 40, "hidden_size": 2048}
    model = {
        "kind": "checkpoint",
        "path": "someone/something",
        "expected": expected,
        "device": "cuda",
        "backend": "triton",
    }
    _, alone = checked(tmp_path, model=model)
    assert alone["memory"].outcome == "obstacle"
    _, shared = checked(tmp_path, model=model, learner={"ranks": 8, "shard": "full"})
    assert shared["memory"].outcome == "ok"
    assert " GB on each of 8 ranks and an engine" in shared["memory"].detail
    needed = [
        float(found["memory"].detail.split("needs ")[1].split(" GB")[0].replace(",", "")) for found in (alone, shared)
    ]
    assert needed[0] / 8 < needed[1] < needed[0] / 4


def test_validate_refuses_experts_that_the_ranks_do_not_divide_before_a_weight_is_there(tmp_path: Path) -> None:
    model = {"kind": "checkpoint", "path": "someone/something", "expected": SIZES}
    learner = {"ranks": 3, "shard": "full", "expert_parallel": True}
    result, found = checked(tmp_path, model=model, learner=learner)
    assert found["sizes"].outcome == "wrong"
    assert (
        "learner.ranks must divide the model's 8 routed experts; got 3. Set learner.ranks to one of 1, 2, 4, 8"
        in found["sizes"].detail
    )
    assert not result.passed(strict=False)
    result, found = checked(tmp_path, model=model, learner={**learner, "ranks": 4})
    assert found["sizes"].outcome == "ok"
    assert result.memory is not None
    asked, whole, in_place = result.memory.learners.items()
    assert asked[0] == "4 ranks in shards, experts in place, float32"
    # The table's other columns count bfloat16 passes.
    assert asked[1].each[GATHERED] == 2 * in_place[1].each[GATHERED] < 2 * whole[1].each[GATHERED]
    with pytest.raises(RecipeError, match=r"learner.expert_parallel spreads .* Set learner.shard=full"):
        checked(tmp_path, model=model, learner={"expert_parallel": True})


def test_validate_dataset_offline_is_not_checked(tmp_path: Path) -> None:
    _, found = checked(tmp_path, task={"kind": "hub", "path": "openai/gsm8k", "config": "main"})
    assert found["task"].outcome == found["prompts"].outcome == "not checked"
    assert "hf download openai/gsm8k" in found["task"].detail


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"task": {**TINY["task"], "dataset": "chain_som"}}, "task", "did you mean chain_sum?"),
        ({"reward": "samepath.rewards.exact:numbr"}, "reward", "numbr"),
        ({"cold_start": {"steps": 1, "traces": "samepath.rl.learner.worked_answers:nothing"}}, "cold start", "nothing"),
        (
            {
                "cold_start": {"steps": 1},
                "task": {**TINY["task"], "dataset": "count_bits", "params": {}, "rewrite": {}},
            },
            "cold start",
            "answers none of the first training rows: arithmetic_sum needs a text like 12+34-5=",
        ),
        ({"task": {**TINY["task"], "rewrite": {}}}, "prompts", "every character must be in the tokenizer's alphabet"),
        ({"task": {**TINY["task"], "chat": {"enabled": True}}}, "chat template", "it has none"),
        ({"sampling": {"max_new_tokens": 126}}, "prompts", "must fit max_position_embeddings of the model=128"),
    ],
)
def test_validate_what_is_wrong_is_found_and_the_rest_still_checked(
    tmp_path: Path, changes: dict[str, Any], name: str, said: str
) -> None:
    result, found = checked(tmp_path, **changes)
    assert found[name].outcome == "wrong"
    assert said in found[name].detail
    assert found["memory"].outcome == "ok"
    assert not result.passed(strict=False)


def test_validate_command_ends_with_status_0_1_and_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write(tmp_path))
    assert command(monkeypatch, path, "--strict") == 0
    output = capsys.readouterr()
    assert yaml.safe_load(output.out)["name"] == "tiny"
    assert "valid: nothing was started" in output.err
    assert command(monkeypatch, path, "reward=samepath.rewards.exact:numbr", "--quiet") == 1
    output = capsys.readouterr()
    assert (output.out, "NOT VALID" in output.err) == ("", True)
    away = str(write(tmp_path, task={"kind": "hub", "path": "openai/gsm8k", "config": "main"}))
    assert (command(monkeypatch, away), command(monkeypatch, away, "--strict")) == (0, 1)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["sampling.temperature=0", "learner.precision=bf16"],
            [
                "sampling.temperature must be above 0 for training: all samples of a group would be equal "
                "(in override 'sampling.temperature=0')",
                "learner.precision needs model.implementation: transformers (in override 'learner.precision=bf16')",
            ],
        ),
        (["rl.group_size=500"], ["engine.max_sequences=128 must hold a whole group: rl.group_size=500 (in override"]),
        (
            ["engine.cuda_graph=on"],
            [
                "engine.cuda_graph=on needs model.device=cuda and model.backend=triton",
                "got cpu and torch",
                "(in override",
            ],
        ),
        (["reward=samepath.rewards.exact"], ["(Import path of the reward function, `package.module:function`)"]),
        (["model={kind: checkpoint, path: a/b, expected: {hidden_size: 2}}"], ["model_type must be among the sizes"]),
        (
            ["model={kind: checkpoint, path: a/b, expected: {model_type: qwen3_moe}}"],
            ["hidden_size must be given for model_type qwen3_moe"],
        ),
        (["task.chat.enable=true"], ["task.chat.enable: unknown key; did you mean task.chat.enabled?"]),
        (["task={kind: hub, path: a/b, heldout_split: x}"], ["did you mean task.held_out_split?"]),
    ],
)
def test_load_recipe_problems_name_their_setting_and_where_it_stands(
    tmp_path: Path, overrides: list[str], said: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path), overrides, Recipe)
    for words in said:
        assert words in str(caught.value)
    assert '{"name"' not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [("config.json", '{"model_type": ', "model"), ("tokenizer.json", "x", "tokenizer"), ("config.json", "[]", "model")],
)
def test_validate_file_of_the_checkpoint_that_is_no_json_is_named(
    checkpoint: Path, file: str, text: str, name: str
) -> None:
    (checkpoint / file).write_text(text)
    _, found = checked(checkpoint.parent, model={"kind": "checkpoint", "path": "checkpoint"})
    assert found[name].outcome == "wrong"
    assert f"checkpoint/{file} must hold " in found[name].detail


def test_validate_cache_that_holds_no_sample_is_wrong(tmp_path: Path) -> None:
    """Prompt and 100 new tokens, the last of which is never run: 7 pages of 16, whatever the size of the group."""
    _, found = checked(tmp_path, engine={"cache_tokens": 111}, sampling={"max_new_tokens": 100})
    assert found["prompts"].outcome == "wrong"
    assert "engine.cache_tokens=111 must hold a sample at its longest" in found["prompts"].detail
    fits = checked(tmp_path, engine={"cache_tokens": 112}, sampling={"max_new_tokens": 100})[1]
    assert fits["prompts"].outcome == "ok"


def quantised(checkpoint: Path, **said: object) -> Path:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    return checkpoint.parent


def test_validate_fp8_checkpoint_is_read_by_the_own_network(checkpoint: Path) -> None:
    folder = quantised(checkpoint, quant_method="fp8", fmt="e4m3", weight_block_size=[128, 128])
    _, found = checked(folder, model={"kind": "checkpoint", "path": "checkpoint", "expected": SIZES})
    assert found["model"].outcome == "ok"
    assert found["model"].detail.endswith("FP8 weights that are read as their values")


def test_validate_fp8_checkpoint_for_transformers_is_an_obstacle_with_the_cure(checkpoint: Path) -> None:
    folder = quantised(checkpoint, quant_method="fp8")
    model = {"kind": "checkpoint", "path": "checkpoint", "implementation": "transformers"}
    frozen = {"cold_start": {"steps": 0}, "learner": {**TINY["learner"], "indexer": "frozen"}}
    _, found = checked(folder, **{**foreign(), **frozen, "model": model})
    assert (found["weights"].outcome, found["model"].outcome) == ("obstacle", "ok")
    assert "samepath convert FOLDER OUT" in found["weights"].detail


def test_validate_other_quantised_checkpoint_is_wrong(checkpoint: Path) -> None:
    folder = quantised(checkpoint, quant_method="awq")
    _, found = checked(folder, model={"kind": "checkpoint", "path": "checkpoint"})
    assert found["model"].outcome == "wrong"
    assert "quantization_config.quant_method must be fp8" in found["model"].detail


def test_validate_engine_limit_below_the_response_is_wrong(tmp_path: Path) -> None:
    _, found = checked(tmp_path, **foreign(max_model_tokens=16), sampling={"max_new_tokens": 16})
    assert found["sizes"].outcome == "wrong"
    assert "leaves no room for a prompt in engine.max_model_tokens=16" in found["sizes"].detail


@pytest.mark.parametrize(
    ("changes", "outcome", "said"),
    [
        ({"max_model_tokens": 400}, "wrong", "hold 56 tokens; one sequence may have 400. Raise engine.cache_bytes"),
        ({"max_model_tokens": 28}, "ok", "hold 56 tokens: 2 of 128 sequences at their longest"),
        ({"cache_bytes": 130 * 10**9, "device": "cuda"}, "wrong", "a device of 141 GB is too small"),
    ],
)
def test_validate_cache_of_a_vllm_engine(tmp_path: Path, changes: dict[str, Any], outcome: str, said: str) -> None:
    """A token takes 3 layers · 2·4·(16 + 8) numbers · 2 bytes = 1152 bytes unfolded; 65,536 bytes hold 56 of them."""
    _, found = checked(tmp_path, **foreign(**{"cache_bytes": 1 << 16, **changes}))
    assert found["cache"].outcome == outcome
    assert said in found["cache"].detail


def test_validate_learner_that_this_machine_holds_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPUs a large memory is enough; on a GPU nothing beyond one device is."""
    expected = {
        **SIZES,
        "num_hidden_layers": 200,
        "hidden_size": 8192,
        "n_routed_experts": 64,
        "moe_intermediate_size": 2048,
    }
    model = {"kind": "checkpoint", "path": "someone/something", "expected": expected}
    _, found = checked(tmp_path, model=model)
    assert "this machine has 24.0 GB" in found["memory"].detail
    monkeypatch.setattr(memory_findings, "memory_bytes", lambda: 10**15)
    _, found = checked(tmp_path, model=model)
    assert found["memory"].outcome == "ok"
    gpu = {**model, "device": "cuda", "backend": "triton"}
    _, found = checked(tmp_path, model=gpu, learner=TINY["learner"])
    assert found["memory"].outcome == "obstacle"


def test_validate_device_that_is_not_here_is_an_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = {**TINY["model"], "device": "cuda", "backend": "triton"}
    result, found = checked(tmp_path, model=model, rl={**TINY["rl"], "max_gap_at_lag_0": 0.5})
    assert found["device"].outcome == "obstacle"
    assert "needs a visible NVIDIA GPU" in found["device"].detail
    assert "network" not in found
    assert result.passed(strict=False)


def test_validate_large_network_is_never_built(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "build_policy", lambda *_: pytest.fail("built"))
    config = {
        **write_config(tiny_config()),
        "hidden_size": 8192,
        "moe_intermediate_size": 65536,
        "n_routed_experts": 256,
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "model.safetensors").touch()
    result, found = checked(checkpoint.parent, model={"kind": "checkpoint", "path": "checkpoint"})
    assert (found["model"].outcome, found["sizes"].outcome) == ("ok", "ok")
    assert result.memory is not None
    assert result.memory.sizes.parameters > 2 * 10**9
    assert "network" not in found


def test_validate_small_network_with_weights_is_built_and_its_refusal_shown(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").touch()
    _, found = checked(checkpoint.parent, model={"kind": "checkpoint", "path": "checkpoint"})
    assert found["network"].outcome == "wrong"
    assert "model.safetensors is no whole safetensors file" in found["network"].detail


def test_validate_hub_name_fetches_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def fetch(name: str, kind: str, patterns: list[str]) -> Path:
        asked.append(list(patterns))
        raise HubUnreachableError("away")

    monkeypatch.setattr(model_source, "hub_folder", fetch)
    checked(tmp_path, model={"kind": "checkpoint", "path": "someone/something"})
    assert asked
    assert not any("safetensors" in pattern for patterns in asked for pattern in patterns)
