"""What works on this machine, and why something does not: versions, backends, row-exactness of the CPU kernels."""

import importlib.util
import platform
import shutil
from dataclasses import dataclass
from typing import Any

import torch

from samepath.kernels.backend import CAPABILITIES
from samepath.kernels.gpu.loading import backend_problem, interpreting
from samepath.kernels.mkl_mode import row_mode_problem
from samepath.kernels.rows.row_product import product_libraries
from samepath.rewards.sandbox.isolation import MODES, described, problem_of
from samepath.rl.machine import package_versions, usable_cores
from samepath.rl.validate.row_exactness import COMMON, WHAT_TO_DO, first_dependent_row, instructions
from samepath.rollout.engine_description import EngineDescription
from samepath.rollout.engine_errors import EngineUnavailableError
from samepath.rollout.engine_settings import ENGINES
from samepath.rollout.environments.verifiers import PACKAGE as VERIFIERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report.

    Example:
        Check(name="runtime ray", ok=False, detail="not installed: pip install samepath[ray]")
    """

    name: str
    """What was looked at."""
    ok: bool
    """True if it works here."""
    detail: str
    """Version, or the reason and the cure."""


OPTIONAL = (
    ("runtime ray", "ray", "pip install samepath[ray]"),
    ("tracking mlflow", "mlflow", "pip install samepath[mlflow]"),
    ("reward math", "math_verify", "pip install samepath[math]"),
    ("task reasoning_gym", "reasoning_gym", "pip install samepath[gym]"),
    ("task hub", "datasets", "pip install samepath[hub]"),
    ("convert gguf", "gguf", "pip install samepath[gguf]"),
    ("learner lora", "peft", "pip install samepath[lora]"),
    ("environment mcp", "mcp", "pip install samepath[mcp], or give options.python an interpreter that has it"),
    (
        "environment verifiers",
        "verifiers",
        f"it pins another mcp and much else: pip install '{VERIFIERS}' in an environment of its own, and give options.python its interpreter",
    ),
)
"""What was looked at, the module that is there if it works, and how to get it."""


def run_checks() -> list[Check]:
    """All checks; none raises, none takes more than a few seconds."""
    checks = [
        Check(
            name="python",
            ok=platform.python_version_tuple()[:2] in (("3", "11"), ("3", "12")),
            detail=platform.python_version(),
        ),
        Check(name="cores", ok=True, detail=f"{usable_cores()} usable, torch uses {torch.get_num_threads()} threads"),
        Check(
            name="c compiler",
            ok=bool(shutil.which("cc")),
            detail=shutil.which("cc") or "none on PATH: some task packages build from source",
        ),
    ]
    versions = package_versions(["torch", "transformers", "tokenizers", "numpy", "pydantic"])
    checks += [
        Check(name=name, ok=bool(version), detail=version or "not installed") for name, version in versions.items()
    ]
    checks += [optional_package(name, module, cure) for name, module, cure in OPTIONAL]
    checks += [
        Check(name=f"backend {name}", ok=True, detail="works on this CPU")
        for name, able in CAPABILITIES.items()
        if not able.fused
    ]
    checks += reward_isolation()
    checks.append(triton_backend())
    checks += [engine_check(engine) for engine in ENGINES]
    checks.append(row_exactness())
    return checks


def optional_package(name: str, module: str, cure: str) -> Check:
    """Whether a package that some recipes need is installed for this interpreter."""
    package = module.replace("_", "-")
    version = package_versions([package]).get(package, "")
    if importlib.util.find_spec(module) is None:
        return Check(name=name, ok=False, detail=f"not installed: {cure}")
    return Check(name=name, ok=True, detail=version or "installed, of unknown version")


def reward_isolation() -> list[Check]:
    """What can keep reward functions apart here; `reward.isolation: auto` takes the first that works."""
    checks, taken = [], False
    for mode in MODES:
        problem = problem_of(mode)
        detail = problem or described(mode, network=False)
        if not problem and not taken:
            taken, detail = True, f"{detail}; reward.isolation: auto takes it"
        checks.append(Check(name=f"isolation {mode}", ok=not problem, detail=detail))
    return checks


def engine_check(engine: EngineDescription[Any]) -> Check:
    """Whether an engine can be used here, and what of it is installed."""
    try:
        return Check(name=f"engine {engine.kind}", ok=True, detail=engine.installed())
    except EngineUnavailableError as error:
        return Check(name=f"engine {engine.kind}", ok=False, detail=str(error))


def triton_backend() -> Check:
    """Whether the GPU kernels run here: on a GPU, or in Triton's interpreter."""
    problem = backend_problem("triton")
    if problem is not None:
        return Check(name="backend triton", ok=False, detail=problem)
    version = package_versions(["triton"])["triton"]
    if interpreting():
        return Check(name="backend triton", ok=True, detail=f"{version}, interpreted on the CPU: for tests, very slow")
    name = torch.cuda.get_device_name()
    return Check(name="backend triton", ok=True, detail=f"{version} on {name}")


def row_exactness() -> Check:
    """Whether a row has the same bits in any batch here, which zero sampler/learner gap rests on: MKL's mode, and a measurement."""
    threads = sorted({1, torch.get_num_threads()})
    made_by = f"{instructions()}; {product_libraries()}"
    wrong = first_dependent_row(COMMON, threads)
    if wrong is not None:
        detail = f"{made_by}: rows differ with the batch for {wrong}. {WHAT_TO_DO}"
        return Check(name="row exactness", ok=False, detail=detail)
    if problem := row_mode_problem():
        return Check(
            name="row exactness", ok=False, detail=f"{made_by}; nothing differed in a quick look, but {problem}"
        )
    counts = " and ".join(map(str, threads))
    return Check(
        name="row exactness",
        ok=True,
        detail=f"{made_by}: a row has the same bits in any batch with {counts} thread{'s' if len(threads) > 1 else ''}",
    )
