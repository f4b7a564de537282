"""The chance that at least one of k responses is right (pass@k), from n ≥ k of them."""

import math


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Unbiased estimate 1 − C(n−c, k) / C(n, k) of one prompt, n samples of which c are right (arXiv:2107.03374 eq. 1).

    The obvious 1 − (1 − c/n)ᵏ is too small on average. Raises ValueError unless 0 ≤ c ≤ n and 1 ≤ k ≤ n.
    """
    if not (0 <= num_right <= num_samples and 1 <= k <= num_samples):
        raise ValueError(
            f"pass@k needs 0 ≤ right ≤ samples and 1 ≤ k ≤ samples; got {num_right=}, {num_samples=}, {k=}"
        )
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)
