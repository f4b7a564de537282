"""Whether the advantages of every group are centred, which no baseline may leave out."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def off_centre(groups: Iterable[NDArray[np.float32]]) -> float:
    """Largest |mean advantage| of a group over its largest |advantage|: 0 but for rounding, 1 where all have one sign and size.

    A response without a usable reward has advantage 0 and is in no baseline, so it changes nothing.
    """
    worst = 0.0
    for advantages_G in groups:
        largest = float(np.abs(advantages_G).max(initial=0.0))
        if largest > 0:
            worst = max(worst, abs(float(advantages_G.astype(np.float64).mean())) / largest)
    return worst
