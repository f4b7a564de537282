"""What works on this machine, and why something does not: versions, backends, row-exactness of the CPU kernels."""

import importlib.util
import platform
import shutil
from dataclasses import dataclass
from typing import Any

import torch

from samepath.kernels.backend import CAPABILITIES
from samepath.kernels.dense_attention.dense_attention import dense_attend
from samepath.kernels.gpu.loading import backend_problem, interpreting
from samepath.kernels.rows.row_product import row_product
from samepath.model.plan import Span, plan_decode, plan_spans
from samepath.rl.machine import package_versions, usable_cores
from samepath.rollout.engine_description import EngineDescription
from samepath.rollout.engine_errors import EngineUnavailableError
from samepath.rollout.engine_settings import ENGINES


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
        ("task hub", "datasets", "hub"),
        ("convert gguf", "gguf", "gguf"),
        ("learner lora", "peft", "lora"),
    ):
        found = importlib.util.find_spec(module) is not None
        package = module.replace("_", "-")
        version = package_versions([package])[package]
        checks.append(
            Check(name=name, ok=found, detail=version if found else f"not installed: pip install samepath[{extra}]")
        )
    checks += [
        Check(name=f"backend {name}", ok=True, detail="works on this CPU")
        for name, able in CAPABILITIES.items()
        if not able.fused
    ]
    checks.append(triton_backend())
    checks += [engine_check(engine) for engine in ENGINES]
    checks.append(row_exactness())
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
    """Whether a row has the same bits in any batch here, which zero sampler/learner gap rests on."""
    wrong = [*_inexact_products(), *_inexact_attention()]
    if wrong:
        detail = f"rows differ with the batch for {', '.join(wrong)}: set rl.max_gap_at_lag_0 to what you accept"
        return Check(name="row exactness", ok=False, detail=detail)
    return Check(
        name="row exactness", ok=True, detail="a row of float32 products and attention has the same bits in any batch"
    )


def _inexact_products() -> list[str]:
    """Widths and row counts at which a product's rows differ from those of a larger one."""
    generator = torch.Generator().manual_seed(0)
    wrong = []
    for width in (16, 48, 64, 128, 256, 512, 1536):
        rows_ND = torch.randn(512, width, generator=generator)
        weight = torch.randn(96, width, generator=generator)
        whole = row_product(rows_ND, weight)
        for count in (16, 32, 48, 112, 256):
            if not torch.equal(row_product(rows_ND[64 : 64 + count].clone(), weight), whole[64 : 64 + count]):
                wrong.append(f"a product of width {width} and {count} rows")
    return wrong


def _inexact_attention() -> list[str]:
    """Lengths at which the last row of a sequence, decoded beside a longer one, differs from the same row of a packed pass."""
    generator = torch.Generator().manual_seed(0)
    wrong = []
    for width in (16, 64, 128):
        rows_GSW = torch.randn(2, 512, 2 * width, generator=generator)
        q_NHK = torch.randn(512, 6, width, generator=generator)
        for length in (1, 15, 100, 200, 300):
            span = Span(row=0, first=0, count=length, keys=torch.arange(512))
            ends_B = torch.tensor([length, 512])
            both = (
                plan_spans([span], 512, 6),
                plan_decode(ends_B, torch.arange(512).expand(2, -1), 16, 6),
            )
            queries = q_NHK, q_NHK[length - 1 : length].expand(16, -1, -1)
            packed, decoded = (
                dense_attend(q, rows_GSW, plan, scale=0.2, value_start=width, value_width=width, backend="torch")
                for q, plan in zip(queries, both)
            )
            if not torch.equal(packed[length - 1], decoded[0]):
                wrong.append(f"attention of width {width} and {length} keys")
    return wrong
