"""An engine is named in one place: what pools, runs and checks ask goes to its description, which a new engine brings along."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import pytest
import torch
from pydantic import BaseModel

from samepath.model.placement import ON_CPU, Placement
from samepath.model.text.tokenizer import character_tokenizer
from samepath.rl.validate import doctor
from samepath.rollout import capabilities, engine_settings
from samepath.rollout.builtin.settings import BuiltinSettings
from samepath.rollout.counters import EngineCounters
from samepath.rollout.engine_description import Capability, EngineDescription, yes
from samepath.rollout.engine_errors import EngineUnavailableError
from samepath.rollout.engine_settings import ENGINES, AnyEngine, describe
from samepath.rollout.pool.pool import InlinePool, worker_environment
from samepath.rollout.pool.settings import RolloutSettings
from samepath.rollout.pool.worker import RolloutWorker
from samepath.rollout.vllm.settings import VllmSettings

ROOT = Path(__file__).resolve().parents[2]
MAY_NAME_AN_ENGINE = {
    "rollout/engine_settings.py": "the list",
    "rl/recipe/recipe.py": "its default",
    "rl/preview.py": "runs this package's own network, whatever a recipe says",
    "rl/preview_conversation.py": "the same",
}


class EchoSettings(BaseModel):
    kind: Literal["echo"] = "echo"
    max_sequences: int = 4


class EchoEngine:
    counters, weight_version, busy = EngineCounters(), 0, False
    tokenizer, longest_sequence = character_tokenizer("e"), 64

    def submit(self, request: object) -> None:
        raise AssertionError("nothing was asked")

    def abort(self) -> list[object]:
        return []


class EchoDescription(EngineDescription[EchoSettings]):
    kind, settings, own_process = "echo", EchoSettings, False
    cells: ClassVar = {capability: yes("says it again") for capability in Capability}

    def build(self, folder: Path, settings: EchoSettings, placement: Placement) -> Any:
        return EchoEngine()

    def computes_on(self, settings: EchoSettings, placement: Placement) -> tuple[str, str]:
        return "cpu", "float32"

    def cache_tokens(self, settings: EchoSettings, longest: int) -> int:
        return longest

    def environment(self, settings: EchoSettings) -> dict[str, str]:
        return {"ECHO": "1"}

    def installed(self) -> str:
        raise EngineUnavailableError("nobody calls back")


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> EchoSettings:
    """A third engine, listed like the others."""
    engines = (*ENGINES, EchoDescription())
    for module in (engine_settings, capabilities, doctor):
        monkeypatch.setattr(module, "ENGINES", engines)
    return EchoSettings()


def test_every_engine_of_a_recipe_has_one_description_with_a_cell_for_every_capability() -> None:
    assert {engine.settings for engine in ENGINES} == set(get_args(AnyEngine))
    for engine in ENGINES:
        settings = engine.settings()
        assert (settings.kind, describe(settings)) == (engine.kind, engine)
        assert set(engine.cells) == set(Capability)
        for cell in engine.cells.values():
            assert cell.supported or cell.note, "a refusal has a reason"
            assert cell.setting is None or cell.setting[0] in engine.settings.model_fields


def test_a_new_engine_is_built_pooled_tabled_and_examined_without_another_line(
    echo: EchoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = InlinePool(Path("nowhere"), echo, RolloutSettings())
    pool.close()
    assert worker_environment(echo, RolloutSettings(), {})["ECHO"] == "1"
    assert capabilities.capability_table().startswith("| | `builtin` | `vllm` | `echo` |\n|---|---|---|---|\n")
    assert capabilities.refusal(Capability.GPU, echo) == ""
    check = doctor.engine_check(describe(echo))
    assert (check.name, check.ok, check.detail) == ("engine echo", False, "nobody calls back")
    monkeypatch.setattr(EchoDescription, "own_process", True)
    with pytest.raises(ValueError, match=r"engine\.kind echo changes the process"):
        InlinePool(Path("nowhere"), echo, RolloutSettings())


def test_worker_sets_threads_only_beside_an_engine_that_leaves_its_process_alone(
    echo: EchoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    RolloutWorker(Path("nowhere"), echo, 3).work([], 0.0)
    assert calls == [3, 3]
    monkeypatch.setattr(EchoDescription, "own_process", True)
    RolloutWorker(Path("nowhere"), echo, 3).work([], 0.0)
    assert calls == [3, 3]


def test_only_the_list_and_an_engine_s_own_room_name_it() -> None:
    wrong = []
    for folder in ("rl", "rollout"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith(("rollout/builtin/", "rollout/vllm/")) or name in MAY_NAME_AN_ENGINE:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                named = isinstance(node, ast.Name) and node.id in {"BuiltinSettings", "VllmSettings"}
                texts = (
                    {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                    if isinstance(node, ast.Compare)
                    else set()
                )
                if named or texts & {engine.kind for engine in ENGINES}:
                    wrong.append(f"{name}:{node.lineno}")
    assert wrong == []


def test_what_each_engine_says_of_itself() -> None:
    builtin, vllm = (describe(settings) for settings in (BuiltinSettings(), VllmSettings()))
    gpu = Placement(device="cuda", dtype="bfloat16", backend="triton")
    assert builtin.computes_on(BuiltinSettings(), gpu) == ("cuda", "bfloat16")
    assert vllm.computes_on(VllmSettings(dtype="float32"), gpu) == ("cpu", "float32")
    assert builtin.cache_tokens(BuiltinSettings(cache_tokens=640), 99) == 640
    assert vllm.cache_tokens(VllmSettings(max_sequences=4), 99) == 396
    assert vllm.cache_tokens(VllmSettings(max_sequences=4, max_model_tokens=50), 99) == 200
    assert (builtin.own_process, vllm.own_process) == (False, True)
    assert builtin.environment(BuiltinSettings()) == {}
    assert vllm.environment(VllmSettings())["TORCH_COMPILE_DISABLE"] == "1"
    assert vllm.environment(VllmSettings(device="cuda"))["VLLM_USE_V2_MODEL_RUNNER"] == "1"
    assert builtin.longest_sequence(BuiltinSettings()) is None
    assert [vllm.longest_sequence(VllmSettings(max_model_tokens=count)) for count in (0, 64)] == [None, 64]
    assert builtin.problems(BuiltinSettings(max_sequences=4), 5, ON_CPU)[0].startswith(
        "engine.max_sequences=4 must hold"
    )
    assert builtin.problems(BuiltinSettings(cuda_graph="on"), 2, ON_CPU)[0].startswith("engine.cuda_graph=on needs")
    assert builtin.fixed_cache(BuiltinSettings()) is None
    cache = vllm.fixed_cache(VllmSettings(cache_bytes=1 << 20, device="cuda", tensor_parallel=2, page_size=32))
    assert cache is not None
    assert (cache.size_bytes, cache.num_devices, cache.gpu) == (1 << 20, 2, True)
    assert [vllm.unfolds_latents(VllmSettings(device="cuda", latent_kernels=kernels)) for kernels in (True, False)] == [
        False,
        True,
    ]


def test_descriptions_come_without_torch() -> None:
    code = "import samepath.rollout.engine_settings, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
