"""Numbers with their uncertainty: means over seeds, fractions, survival, drift."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

#: of all intervals
CONFIDENCE = 0.95

#: resamples of a bootstrap; their random numbers are fixed, so an analysis repeats exactly
RESAMPLES, SEED = 2000, 0


class Interval(NamedTuple):
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Survival(NamedTuple):
    """Kaplan-Meier estimate: P(still sound after times[i]) with pointwise 95 % intervals.

    The first point is (0, 1); between points the curve is flat. ``at_risk`` [i] runs were still
    watched just before times[i].
    """

    times: list[float]  # ps, at which runs broke or were censored
    probability: list[float]
    low: list[float]
    high: list[float]
    at_risk: list[int]


def bootstrap_mean(groups: Sequence[ArrayLike]) -> Interval:
    """Mean over all values; values are drawn again within each group (the seeds of a molecule).

    The list of molecules is part of a benchmark, so what is uncertain is what another draw of
    seeds would give. Percentile interval; for groups of n, deviations are stretched by
    sqrt(n / (n - 1)), without which few seeds would look too certain, but not beyond the values
    themselves. Groups of one value tell nothing of their spread: if all are of that kind, values
    are drawn from all of them together (see `drawn_over`).

    Raises:
        ValueError: no values.
    """
    arrays = [a for a in (np.asarray(g, dtype=np.float64) for g in groups) if len(a)]
    if not arrays:
        raise ValueError("no values to take a mean of")
    if all(len(a) == 1 for a in arrays):
        arrays = [np.concatenate(arrays)]
    together = np.concatenate(arrays)
    total = len(together)
    rng = np.random.default_rng(SEED)
    sums = np.zeros(RESAMPLES)
    mean = float(together.sum() / total)
    for a in arrays:
        drawn = a[rng.integers(len(a), size=(RESAMPLES, len(a)))] - a.mean()
        stretch = np.sqrt(len(a) / (len(a) - 1)) if len(a) > 1 else 1.0
        sums += stretch * drawn.sum(axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(sums / total, [tail, 100 - tail])
    least, most = (float(edge(a)) for edge, a in ((np.min, together), (np.max, together)))
    return Interval(mean, max(least, mean + float(low)), min(most, mean + float(high)))


def drawn_over(groups: Sequence[Sequence[Any]]) -> str:
    """What the interval of `bootstrap_mean` is over: ``seeds`` of each molecule, or ``molecules``
    where each has one seed."""
    return "molecules" if all(len(g) == 1 for g in groups) else "seeds"


def fraction(count: int, of: int) -> Interval:
    """Share of runs, with Wilson's interval."""
    found = stats.binomtest(count, of).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(count / of, float(found.low), float(found.high))


def t_mean(values: ArrayLike) -> Interval:
    """Mean of few normally distributed values, such as the drifts of five seeds: Student's t."""
    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, -np.inf, np.inf)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half)


def survival(times: ArrayLike, broke: ArrayLike) -> Survival:
    """Kaplan-Meier curve of runs that broke, or were sound to their end (censored).

    Args:
        times: [runs] ps.
        broke: [runs], whether a run broke at its time; else it ended there.
    """
    at, ended = np.asarray(times, dtype=np.float64), ~np.asarray(broke, dtype=bool)
    sf = stats.ecdf(stats.CensoredData.right_censored(at, ended)).sf
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # undefined where nothing has broken: see below
        band = sf.confidence_interval(CONFIDENCE, method="log-log")
    p = sf.probabilities
    # where nothing has broken, or nothing is left, the formula gives NaN
    low = np.where(np.isfinite(band.low.probabilities), band.low.probabilities, p)
    high = np.where(np.isfinite(band.high.probabilities), band.high.probabilities, p)
    risk = [int((at >= t).sum()) for t in sf.quantiles]
    return Survival(
        [0.0, *sf.quantiles.tolist()],
        [1.0, *p.tolist()],
        [1.0, *low.tolist()],
        [1.0, *high.tolist()],
        [len(at), *risk],
    )


def median(curve: Survival) -> Interval:
    """Time at which half have broken, and where the band of the curve gets there.

    Infinite where it does not get there, because most were sound to their end.
    """

    def reaches(probability: Sequence[float]) -> float:
        at = (t for t, p in zip(curve.times, probability, strict=True) if p <= 0.5)
        return next(at, np.inf)

    return Interval(reaches(curve.probability), reaches(curve.low), reaches(curve.high))


def slope(times: ArrayLike, values: ArrayLike) -> float:
    """Least-squares slope; 0 of fewer than two points."""
    x, y = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else 0.0
