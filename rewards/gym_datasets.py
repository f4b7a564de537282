"""Datasets of reasoning_gym 0.1.25 that cannot give rows, or not the same rows everywhere."""

import sys

REFUSED = {
    "codeio": "gives other rows each time: it runs stored programs that use unseeded random numbers and the clock",
    "composite": "only mixes other datasets, from settings that are no plain data",
    "list_functions": "gives other rows each time: it draws from Python's unseeded global generator",
}
ORDER_DEPENDENT = frozenset(
    ("intermediate_integration", "isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder")
)
"""Iterate over sets of strings, so that rows change with the process's hash seed."""
WITHOUT_ANSWER = frozenset(("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"))
"""Store no answer: only the dataset's own scorer can judge."""
GENERATOR_ERRORS = (
    TypeError,
    ValueError,
    AssertionError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What the datasets' own code raises for parameters or random draws that it does not get on with."""


def unusable(name: str) -> str:
    """Why a dataset cannot be asked in this process, as a sentence about it; empty if it can."""
    if name in REFUSED:
        return f"{name} cannot be a task, it {REFUSED[name]}. Choose another dataset."
    if name in ORDER_DEPENDENT and sys.flags.hash_randomization:
        return f"{name} gives other rows in each process; start Python with PYTHONHASHSEED=0 to use it."
    return ""
