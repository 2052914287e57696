"""ROC-AUC, and how sure it is: frames of one molecule, or of one simulation, are no strangers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from mlpot.data.record import Record

#: ROC-AUC that is asked of the guard
GOAL = 0.9

#: successive frames of a simulation that are drawn together
BLOCK = 13

_HIGHEST = 1e9  # grades may be infinite


def auc(score: NDArray, positive: NDArray) -> float | None:
    """Area under the ROC curve; None if there is one class only."""
    yes = int(positive.sum())
    no = len(positive) - yes
    if not (yes and no):
        return None
    ranks = rankdata(np.minimum(score, _HIGHEST))
    return float((ranks[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def interval(
    score: NDArray, positive: NDArray, cluster: NDArray, resamples: int = 1000
) -> list[float] | None:
    """95 % of a bootstrap over clusters [N]; None if they have one class only."""
    _, value = np.unique(np.minimum(score, _HIGHEST), return_inverse=True)
    _, cluster = np.unique(cluster, return_inverse=True)
    rng, count, found = np.random.default_rng(0), int(cluster.max()) + 1, []
    for _ in range(resamples):
        weight = np.bincount(rng.integers(count, size=count), minlength=count)[cluster]
        no = np.bincount(value, weight * ~positive)
        below = np.cumsum(no) - 0.5 * no  # those with the same score count half
        yes = weight * positive
        if yes.sum() and no.sum():
            found.append((yes * below[value]).sum() / (yes.sum() * no.sum()))
    return [float(q) for q in np.quantile(found, [0.025, 0.975])] if found else None


def molecules(records: Sequence[Record], first: int = 0) -> NDArray[np.int64]:
    """[frames], from ``first``: the same number for the same molecule, or pair of molecules."""
    names = [record.group for record in records]
    return first + np.unique(names, return_inverse=True)[1].astype(np.int64)


def blocks(records: Sequence[Record], first: int = 0) -> NDArray[np.int64]:
    """[frames], from ``first``: the same number for successive frames of a simulation."""
    return first + np.arange(len(records)) // BLOCK


def shown(area: float | None) -> str:
    return "–" if area is None else f"{area:.3f}"


def verdict(row: dict) -> str:
    """Whether the goal is met, by a row of areas: where the intervals are above it as well."""
    kinds = ("frame", "atom")
    if not all((row[k] or 0) >= GOAL for k in kinds):
        return "missed"
    ends = [row.get(f"{k}_interval") for k in kinds]
    if not all(ends):
        return "met by these values; their intervals are not known"
    sure = all(end and end[0] >= GOAL for end in ends)
    return "met" if sure else "met by these values, and not by their whole intervals"
