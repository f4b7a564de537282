"""What works on this machine, and why something does not: versions, backends, row-exactness of the CPU kernels."""

import importlib.util
import platform
import shutil
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from samepath.kernels.triton_loading import interpreting, triton_problem
from samepath.rl.environment import package_versions, usable_cores


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
    for name, module, extra in (
        ("runtime ray", "ray", "ray"),
        ("tracking mlflow", "mlflow", "mlflow"),
        ("reward math", "math_verify", "math"),
        ("task reasoning_gym", "reasoning_gym", "gym"),
    ):
        found = importlib.util.find_spec(module) is not None
        package = module.replace("_", "-")
        version = package_versions([package])[package]
        checks.append(
            Check(name=name, ok=found, detail=version if found else f"not installed: pip install samepath[{extra}]")
        )
    checks += [Check(name=f"backend {name}", ok=True, detail="works on this CPU") for name in ("reference", "torch")]
    checks += [
        triton_backend(),
        Check(name="engine vllm", ok=False, detail="not part of this version: use the built-in engine"),
    ]
    checks.append(row_exactness())
    return checks


def triton_backend() -> Check:
    """Whether the GPU kernels run here: on a GPU, or in Triton's interpreter."""
    problem = triton_problem()
    if problem is not None:
        return Check(name="backend triton", ok=False, detail=problem)
    version = package_versions(["triton"])["triton"]
    if interpreting():
        return Check(name="backend triton", ok=True, detail=f"{version}, interpreted on the CPU: for tests, very slow")
    name = torch.cuda.get_device_name()
    return Check(name="backend triton", ok=True, detail=f"{version} on {name}; learner and engine run on the CPU only")


def row_exactness() -> Check:
    """Whether a row of a padded product has the same bits in any batch here, which zero sampler/learner gap rests on."""
    generator = torch.Generator().manual_seed(0)
    wrong = []
    for width in (16, 48, 64, 128, 256, 512):
        rows_ND = torch.randn(512, width, generator=generator)
        weight = torch.randn(96, width, generator=generator)
        whole = linear(rows_ND, weight)
        for count in (16, 32, 48, 112, 256):
            if not torch.equal(linear(rows_ND[64 : 64 + count].clone(), weight), whole[64 : 64 + count]):
                wrong.append(f"{width}×{count}")
    if wrong:
        detail = (
            f"rows differ with the batch for widths×rows {', '.join(wrong)}: set rl.max_gap_at_lag_0 to what you accept"
        )
        return Check(name="row exactness", ok=False, detail=detail)
    return Check(name="row exactness", ok=True, detail="a row of a float32 product has the same bits in any batch")
