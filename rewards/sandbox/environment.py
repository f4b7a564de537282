"""The environment that foreign code sees: a short list of variables, and what the recipe adds; no keys, no addresses."""

import os
import site
from collections.abc import Mapping
from pathlib import Path

PASSED_ON = (
    "PATH",
    "LD_LIBRARY_PATH",
    "LANG",
    "LANGUAGE",
    "TZ",
    "PYTHONHASHSEED",
    "PYTHONUTF8",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "MKL_CBWR",
)
"""The driver's variables that a child gets besides `LC_*`: where programs are, language, and what fixes numbers and threads."""


class MissingVariableError(ValueError):
    """A variable that the recipe passes on is not set in the driver."""


def child_environment(given: Mapping[str, str], passed: tuple[str, ...]) -> dict[str, str]:
    """Return a child's whole environment: PASSED_ON, module search paths, the `passed` names, and `given` over them all.

    `PYTHONPATH` holds absolute paths, and packages installed for the user are still found, because folder and HOME of a
    child are not the driver's. Raises MissingVariableError.
    """
    driver = os.environ
    result = {name: value for name, value in driver.items() if name in PASSED_ON or name.startswith("LC_")}
    if path := driver.get("PYTHONPATH"):
        result["PYTHONPATH"] = os.pathsep.join(str(Path(part).absolute()) for part in path.split(os.pathsep))
    if site.ENABLE_USER_SITE:
        result["PYTHONUSERBASE"] = site.getuserbase()
    if missing := [name for name in passed if name not in driver]:
        raise MissingVariableError(
            f"reward.pass_environment names {', '.join(missing)}, which the driver's environment does not have. "
            "Set it where the run starts, or take the name out."
        )
    return result | {name: driver[name] for name in passed} | dict(given)
