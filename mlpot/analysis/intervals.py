"""Numbers with their uncertainty: means over seeds, fractions, survival, drift."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
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


def bootstrap_mean(
    groups: Sequence[ArrayLike], least: float = -np.inf, most: float = np.inf
) -> Interval:
    """Mean over all values; values are drawn again within each group (the seeds of a molecule).

    The list of molecules is part of a benchmark, so what is uncertain is what another draw of
    seeds would give. Percentile interval, of which few seeds would look too certain: for groups of
    n, deviations are stretched by sqrt(n / (n - 1)), and all of them by Student's t of as many
    degrees of freedom over the normal distribution's. Groups of one value tell nothing of their
    spread: theirs is taken to be that of the others; if those have none either, or there are none,
    values are drawn from all of them together (see `drawn_over`). A single value has no interval.

    Args:
        groups: values.
        least, most: what no value can be beyond, nor the interval.

    Raises:
        ValueError: no values.
    """
    arrays = [a for a in (np.asarray(g, dtype=np.float64) for g in groups) if len(a)]
    if not arrays:
        raise ValueError("no values to take a mean of")
    arrays = _telling(arrays)
    total = sum(len(a) for a in arrays)
    mean = float(np.concatenate(arrays).sum() / total)
    freedom = total - len(arrays)
    if not freedom:
        return Interval(mean, mean, mean)
    off = [(a - a.mean()) * np.sqrt(len(a) / (len(a) - 1)) for a in arrays if len(a) > 1]
    off += [np.concatenate(off)] * sum(len(a) == 1 for a in arrays)
    sizes = [len(a) for a in arrays if len(a) > 1] + [1 for a in arrays if len(a) == 1]
    rng = np.random.default_rng(SEED)
    sums = np.zeros(RESAMPLES)
    for values, size in zip(off, sizes, strict=True):
        sums += values[rng.integers(len(values), size=(RESAMPLES, size))].sum(axis=1)
    tail = 0.5 * (1 - CONFIDENCE)
    student = float(stats.t.ppf(1 - tail, freedom) / stats.norm.ppf(1 - tail))
    low, high = student * np.percentile(sums / total, [100 * tail, 100 * (1 - tail)])
    return Interval(mean, max(least, mean + float(low)), min(most, mean + float(high)))


def _telling(groups: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The groups; or all values as one, where some are alone and none of the others scatter."""
    single = any(len(g) == 1 for g in groups)
    return [np.concatenate(groups)] if single and not any(np.ptp(g) for g in groups) else groups


def drawn_over(groups: Sequence[Sequence[Any]]) -> str:
    """What the interval of `bootstrap_mean` is over: ``seeds`` of each molecule, or ``molecules``
    where each has one seed."""
    return "molecules" if all(len(g) == 1 for g in groups) else "seeds"


def fraction(count: int, of: int) -> Interval:
    """Share of runs, with Wilson's interval."""
    found = stats.binomtest(count, of).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(count / of, float(found.low), float(found.high))


def t_mean(*groups: ArrayLike) -> Interval:
    """Mean of few normally distributed values, such as the drifts of five seeds: Student's t.

    Args:
        groups: values; their scatter counts within each group (the seeds of a molecule), unless
            no group tells of any.
    """
    arrays = _telling([np.asarray(g, dtype=np.float64) for g in groups])
    total = sum(len(a) for a in arrays)
    mean = float(sum(a.sum() for a in arrays) / total)
    freedom = total - len(arrays)
    if not freedom:
        return Interval(mean, -np.inf, np.inf)
    variance = sum(float(((a - a.mean()) ** 2).sum()) for a in arrays) / freedom
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * np.sqrt(variance / total))
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
    if p[-1] == 0:  # that all have broken leaves the bound from before: more runs might go on
        high[-1] = high[-2] if len(high) > 1 else 1.0
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
        # a product of fractions that is a half may be a bit more
        at = (t for t, p in zip(curve.times, probability, strict=True) if p <= 0.5 + 1e-9)
        return next(at, np.inf)

    return Interval(reaches(curve.probability), reaches(curve.low), reaches(curve.high))


def slope(times: ArrayLike, values: ArrayLike) -> float:
    """Least-squares slope; 0 of fewer than two points."""
    x, y = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else 0.0
