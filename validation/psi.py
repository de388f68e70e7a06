"""The population stability index of two sets of counts on the same bins."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perennial.errors import UsageError

EMPTY_BIN_ROWS = 0.5
"""What a bin that is empty on one side counts as. The logarithm needs something, and half a row is the midpoint
between the none that was seen and the one that could have been, so a small sample's empty bin says less than a large
one's (a fixed share, such as 0.0001, would let 500 rows claim what only 10,000 can show). Bins with rows stay as they
are."""


def psi(reference_counts: ArrayLike, current_counts: ArrayLike) -> float:
    """How far the current distribution has moved from the reference's.

    PSI = sum over bins of (q - p) ln(q / p), with p the reference's and q the current shares; never negative, 0 when
    they are equal, symmetric. It does not depend on the number of rows except through empty bins.

    Source: Siddiqi, Credit Risk Scorecards (2006), with the usual readings 0.1 (watch) and 0.25 (moved); Yurdakul,
    Statistical Properties of Population Stability Index (2018), section 2.

    Args:
        reference_counts: rows in each bin of the reference, shape (bins,), not negative.
        current_counts: rows in each bin of the current window, same shape.

    Returns:
        The index; NaN when either side has no rows.

    Raises:
        UsageError: the shapes differ, or a count is negative or not finite.
    """
    by_bin = psi_by_bin(reference_counts, current_counts)
    return float(by_bin.sum()) if by_bin.size else float("nan")


def psi_by_bin(reference_counts: ArrayLike, current_counts: ArrayLike) -> NDArray[np.float64]:
    """What each bin adds to the index, shape (bins,), NaN when a side has no rows; arguments and errors as in `psi`."""
    reference = np.asarray(reference_counts, dtype=np.float64)
    current = np.asarray(current_counts, dtype=np.float64)
    if reference.ndim != 1 or reference.shape != current.shape:
        raise UsageError(
            f"PSI needs counts on the same bins, got shapes {reference.shape} and {current.shape}; "
            "count both on the reference's edges."
        )
    both = np.concatenate([reference, current])
    if not np.isfinite(both).all() or (both < 0).any():
        raise UsageError(f"PSI needs counts that are finite and not negative, got {reference} and {current}.")
    return psi_terms(reference, current)


def psi_terms(reference: NDArray[np.float64], current: NDArray[np.float64]) -> NDArray[np.float64]:
    """`psi_by_bin` of many pairs at once, without its checks.

    Args:
        reference: counts, shape (..., bins).
        current: counts, the same shape.

    Returns:
        What each bin adds, the same shape; NaN in pairs with a side that has no rows.
    """
    # A bin that neither side uses says nothing, and must not turn into a difference of two inventions.
    used = (reference > 0) | (current > 0)
    sides = []
    for counts in (reference, current):
        filled = np.where(used & (counts == 0), EMPTY_BIN_ROWS, counts)
        rows = np.where(counts.sum(axis=-1, keepdims=True) > 0, filled.sum(axis=-1, keepdims=True), np.nan)
        sides.append(filled / rows)
    p, q = sides
    ratio = np.divide(q, p, out=p + q + 1.0, where=used)
    return np.asarray((q - p) * np.log(ratio))


def chance_of_psi(value: float, reference_rows: float, current_rows: float, bins: int) -> float:
    """The chance that rows of one distribution, each drawn independently, differ at least this much.

    PSI is then about (1/N + 1/M) times a chi-square with B - 1 degrees of freedom, for N and M rows in B bins.
    Source: Yurdakul (2018).

    Rows of one day are seldom independent: this is far too sure of itself on anything that the weather or the hour moves
    (see validation/significance.py).

    Args:
        value: the index.
        reference_rows: N.
        current_rows: M.
        bins: bins that either side uses.

    Returns:
        0 to 1; 1 when there is only one bin, NaN when the index is.
    """
    if bins < 2:
        return 1.0
    from scipy.special import chdtrc

    return float(chdtrc(bins - 1, value / (1.0 / reference_rows + 1.0 / current_rows)))
