"""Intervals: do they cover, and are the curves those of textbooks?"""

import math

import numpy as np
import pytest

from mlpot.analysis.intervals import (
    bootstrap_mean,
    drawn_over,
    fraction,
    median,
    slope,
    survival,
    t_mean,
)

#: the 6-MP arm of Freireich et al. (1963), the example of every textbook: weeks, relapsed
TIMES = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
BROKE = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]


def test_the_bootstrap_covers_a_known_mean() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        found = bootstrap_mean([rng.exponential(5.0, 30)])
        hits += found.low <= 5.0 <= found.high
    # nominal 95 %; a percentile interval of a skewed mean loses a little
    assert 0.89 <= hits / 300 <= 0.98


def test_the_bootstrap_over_seeds_covers_where_molecules_differ() -> None:
    """20 molecules of very different means, 3 seeds: only the seeds are uncertain."""
    rng = np.random.default_rng(4)
    means = rng.uniform(0.0, 100.0, 20)
    hits, widths = 0, []
    for _ in range(200):
        found = bootstrap_mean([m + rng.normal(0.0, 2.0, 3) for m in means])
        hits += found.low <= means.mean() <= found.high
        widths.append(found.high - found.low)
    assert 0.88 <= hits / 200 <= 0.99
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 2.0 / np.sqrt(60), rel=0.15)


def test_the_bootstrap_repeats_exactly_and_equal_values_are_certain() -> None:
    groups = [[1.0, 2.0, 4.0], [3.0, 3.5]]
    assert bootstrap_mean(groups) == bootstrap_mean(groups)
    assert bootstrap_mean([[20.0] * 3] * 5) == (20.0, 20.0, 20.0)
    short = bootstrap_mean([[0.0], [2.0], [2.0]], 0.0, 2.0)  # no run is longer than its length
    assert 0.0 <= short.low < short.high <= 2.0
    assert bootstrap_mean([[3.0]]) == (3.0, 3.0, 3.0)  # of one there is no interval
    one_each = bootstrap_mean([[1.0], [2.0], [6.0]])
    assert one_each.low < one_each.value == 3.0 < one_each.high


@pytest.mark.parametrize("sizes", [[2], [3], [2, 2], [2] * 4, [3] * 3, [3] + [1] * 19])
def test_the_bootstrap_covers_with_few_seeds_too(sizes: list[int]) -> None:
    """A plain percentile interval of two seeds covers half the time, and one of which most
    molecules have a single seed as well."""
    rng = np.random.default_rng(5)
    means = rng.uniform(0.0, 100.0, len(sizes))
    hits = 0
    for _ in range(200):
        found = bootstrap_mean(
            [m + rng.normal(0.0, 2.0, n) for m, n in zip(means, sizes, strict=True)]
        )
        hits += found.low <= np.average(means, weights=sizes) <= found.high
    assert hits / 200 >= 0.88


def test_seeds_that_agree_make_no_others_certain() -> None:
    """Runs that are whole all end at the same time."""
    found = bootstrap_mean([[20.0, 20.0], [1.0], [2.0], [20.0], [5.0], [3.0]], 0.0, 20.0)
    assert found.low < found.value - 1 and found.high > found.value + 1
    drift = t_mean([1.0, 1.0], [5.0], [9.0])
    assert drift.low < drift.value < drift.high


def test_a_share_of_none_and_of_all_has_a_width() -> None:
    assert fraction(60, 60).low == pytest.approx(0.9398, abs=1e-3)  # Wilson, 1927
    assert fraction(0, 60).high == pytest.approx(1 - 0.9398, abs=1e-3)
    assert fraction(57, 60).value == pytest.approx(0.95)


def test_drifts_of_five_seeds_have_students_interval() -> None:
    found = t_mean([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.value == 3.0
    assert found.high - 3.0 == pytest.approx(2.776 * np.sqrt(2.5 / 5), rel=1e-3)
    assert t_mean([1.0]).high == np.inf
    # seeds of molecules whose drifts differ: the interval is about the seeds
    two = t_mean([1.0, 2.0, 3.0], [11.0, 12.0, 13.0])
    assert two.value == 7.0
    assert two.high - 7.0 == pytest.approx(2.776 * np.sqrt(1.0 / 6), rel=1e-3)
    assert t_mean([1.0], [2.0], [6.0]) == t_mean([1.0, 2.0, 6.0])


def test_survival_is_kaplan_meiers() -> None:
    curve = survival(TIMES, BROKE)
    at = dict(zip(curve.times, curve.probability, strict=True))
    expected = {0: 1.0, 6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    assert {t: round(at[t], 3) for t in expected} == expected
    assert dict(zip(curve.times, curve.at_risk, strict=True))[10] == 15
    assert all(
        a <= p <= b for a, p, b in zip(curve.low, curve.probability, curve.high, strict=True)
    )


def test_survival_of_whole_runs_is_one_and_of_broken_ones_ends_at_zero() -> None:
    assert survival([20.0] * 5, [False] * 5).probability == [1.0, 1.0]
    broken = survival([1.0, 2.0], [True, True])
    assert broken.probability == [1.0, 0.5, 0.0]
    assert np.isfinite([*broken.low, *broken.high]).all()
    # two more might have gone on: the last bound is that from before,
    assert broken.high[-1] == broken.high[-2] > 0.5 and broken.low[-1] == 0.0


def test_the_median_is_that_of_textbooks() -> None:
    """23 weeks, 13 to beyond the last: `survfit` of R with log-log intervals."""
    assert median(survival(TIMES, BROKE)) == (23.0, 13.0, math.inf)
    assert median(survival([1.0, 2.0, 3.0], [True] * 3)).value == 2.0
    assert median(survival([20.0] * 5, [False] * 5)) == (math.inf,) * 3


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_few_runs_that_break_say_nothing_of_the_upper_end(n: int) -> None:
    found = median(survival(np.arange(1.0, n + 1), [True] * n))
    assert math.isfinite(found.value) and found.high == math.inf


@pytest.mark.parametrize("n", [24, 38, 44, 62, 100])
def test_half_is_half_whatever_the_rounding(n: int) -> None:
    found = median(
        survival([*range(1, n // 2 + 1), *[n] * (n // 2)], [1] * (n // 2) + [0] * (n // 2))
    )
    assert found.value == n // 2


def test_the_median_of_what_is_censored_is_no_mean_of_what_broke() -> None:
    """Two of five broke, at 900 and 1100 K; the others were whole at 3000 K."""
    found = median(survival([900.0, 1100.0, 3000.0, 3000.0, 3000.0], [1, 1, 0, 0, 0]))
    assert found.value == math.inf and 900.0 <= found.low <= 1100.0


def test_what_an_interval_is_over() -> None:
    assert drawn_over([[1], [2], [3]]) == "molecules"
    assert drawn_over([[1, 2], [3]]) == "seeds"


def test_slope() -> None:
    assert slope([0.0, 1.0, 2.0], [1.0, 3.0, 5.0]) == pytest.approx(2.0)
    assert slope([0.0], [1.0]) == 0.0
