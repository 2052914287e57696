"""From stored runs to medians, ratios and errors, with intervals over molecules, draws and seeds.

A bootstrap resamples on the levels on which the experiment was: molecules, draws of frames of
a molecule, simulations of a model. Starts that are compared are resampled together, because they
were trained on the same frames of the same molecules.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.headline.settings import NOTHING, PRETRAINED
from mlpot.analysis.intervals import CONFIDENCE, SEED

Json = dict[str, Any]

#: resamples; random numbers are fixed, so that tables repeat exactly
RESAMPLES = 1000

#: the goal: median stable time from the pretrained model over that from nothing
GOAL, GOAL_FRAMES, GOAL_KELVIN = 10.0, 50, 1000.0

#: ps that runs have to last, and molecules there have to be, for the goal to be decided
GOAL_PS, GOAL_MOLECULES = 20.0, 3

#: ps between stored frames: no shorter time is resolved
RESOLUTION = 0.02

#: molecule -> draw -> values [simulations]; of errors [1]
Groups = dict[str, dict[int, NDArray[np.float64]]]


class Estimate(NamedTuple):
    """A value and its 95 % interval; None where it could not be told.

    ``bound`` is ">=" where runs ended before they broke, "<=" where those of the start that is
    divided by did, "?" where both did. ``open``: of so many resamples the median is such a run that
    the upper end would be higher if runs were longer.
    """

    value: float
    low: float
    high: float
    bound: str = ""
    open: bool = False


# --- stable times --------------------------------------------------------------------------------


def stable_times(
    result: Json, frames: int, start: str, kelvin: float, molecules: Sequence[str] = ()
) -> Groups:
    """ps until each run broke; infinite for one that was whole to its end."""
    found: Groups = {}
    for model in models_of(result, frames, start, molecules):
        times = [
            run["stable_ps"] if run["broke"] else np.inf
            for run in model["runs"]
            if run["temperature"] == kelvin
        ]
        found.setdefault(model["molecule"], {})[model["draw"]] = np.array(times)
    return found


def median_time(groups: Groups, end: float) -> Estimate | None:
    """Median over all runs of all molecules, ps; runs last ``end`` ps at most."""
    if not groups:
        return None
    value = _median(groups)
    found = np.array([_median(drawn) for (drawn,) in _resampled([groups])])
    low, high = _tails(np.minimum(found, end))
    upper = bool(np.mean(np.isinf(found)) > (1 - CONFIDENCE) / 2)
    return Estimate(min(value, end), low, high, ">=" if np.isinf(value) else "", upper)


def gain(mine: Groups, base: Groups, end: float) -> Estimate | None:
    """Median time of ``mine`` over that of ``base``, of the molecules and draws that both have."""
    mine, base = common(mine, base)
    if not mine:
        return None
    top, bottom = _median(mine), _median(base)
    bound = {(True, False): ">=", (False, True): "<=", (True, True): "?"}
    pairs = [(_median(m), _median(b)) for m, b in _resampled([mine, base])]
    ratios = np.array([_ratio(*pair, end) for pair in pairs])
    low, high = _tails(ratios)
    upper = bool(np.mean([np.isinf(m) for m, _ in pairs]) > (1 - CONFIDENCE) / 2)
    which = bound.get((bool(np.isinf(top)), bool(np.isinf(bottom))), "")
    return Estimate(_ratio(top, bottom, end), low, high, which, upper)


def _median(groups: Groups) -> float:
    """Of two in the middle of which one is longer than the runs, the other: no time is between."""
    value = np.median(_pool(groups))
    return float(np.quantile(_pool(groups), 0.5, method="lower") if np.isinf(value) else value)


def _ratio(top: float, bottom: float, end: float) -> float:
    return float(np.clip(top, RESOLUTION, end) / np.clip(bottom, RESOLUTION, end))


def whole(groups: Groups) -> tuple[int, int]:
    """Runs that were whole to their end, of how many."""
    times = _pool(groups)
    return int(np.isinf(times).sum()), len(times)


class Goal(NamedTuple):
    """``met`` is None where it was not measured, or not thoroughly enough to tell: the interval
    has to lie above the goal as well."""

    frames: int
    kelvin: float
    estimate: Estimate | None
    enough: bool

    @property
    def met(self) -> bool | None:
        e = self.estimate
        if e is None or not self.enough:
            return None
        if e.value >= GOAL and e.bound in ("", ">="):
            return True if e.low >= GOAL else None
        return False if e.bound in ("", "<=") and e.value < GOAL else None


def goal(result: Json, frames: int = GOAL_FRAMES, kelvin: float = GOAL_KELVIN) -> Goal:
    mine, base = (stable_times(result, frames, s, kelvin) for s in (PRETRAINED, NOTHING))
    end = result["settings"]["picoseconds"]
    both = set(mine) & set(base)
    enough = end >= GOAL_PS and len(both) >= GOAL_MOLECULES
    return Goal(frames, kelvin, gain(mine, base, end), enough)


# --- errors --------------------------------------------------------------------------------------


def errors(
    result: Json, frames: int, start: str, kelvin: float, name: str, molecules: Sequence[str] = ()
) -> Groups:
    """One error of every model on the frames of a temperature, where there are such frames."""
    found: Groups = {}
    for model in models_of(result, frames, start, molecules):
        value = model["test_meV"].get(f"{kelvin:g}", {}).get(name)
        if value is not None:
            found.setdefault(model["molecule"], {})[model["draw"]] = np.array([value])
    return found


def beside(result: Json, frames: int, start: str, what: str, name: str) -> Groups:
    """The same on frames of no temperature, of molecules that have such."""
    found: Groups = {}
    for model in models_of(result, frames, start, ()):
        value = model.get("beside_meV", {}).get(what, {}).get(name)
        if value is not None:
            found.setdefault(model["molecule"], {})[model["draw"]] = np.array([value])
    return found


def mean_error(groups: Groups) -> Estimate | None:
    """Mean over molecules, each of the same weight."""
    if not groups:
        return None
    return Estimate(_mean(groups), *_tails([_mean(drawn) for (drawn,) in _resampled([groups])]))


def _mean(groups: Groups) -> float:
    return float(np.mean([np.mean(np.concatenate([*d.values()])) for d in groups.values()]))


# --- what they share -----------------------------------------------------------------------------


def sizes(result: Json) -> list[int]:
    return sorted({model["frames"] for model in result["models"].values()})


def molecules_of(result: Json) -> list[str]:
    """Those with a model, in the order of the benchmark."""
    done = {model["molecule"] for model in result["models"].values()}
    return [name for name in result["molecules"] if name in done]


def models_of(result: Json, frames: int, start: str, molecules: Sequence[str] = ()) -> list[Json]:
    """Their stored rows; of all molecules, or of these."""
    return [
        m
        for m in result["models"].values()
        if (m["frames"], m["start"]) == (frames, start)
        and (not molecules or m["molecule"] in molecules)
    ]


def _pool(groups: Groups) -> NDArray[np.float64]:
    return np.concatenate([values for draws in groups.values() for values in draws.values()])


def common(mine: Groups, base: Groups) -> tuple[Groups, Groups]:
    """While the experiment is on its way, one start may be ahead of another."""
    both = {n: [d for d in draws if d in base.get(n, {})] for n, draws in mine.items()}
    first, second = (
        {n: {d: groups[n][d] for d in draws} for n, draws in both.items() if draws}
        for groups in (mine, base)
    )
    return first, second


def _resampled(starts: Sequence[Groups]) -> list[list[Groups]]:
    """The same molecules and draws for all starts, and simulations of each for itself."""
    rng = np.random.default_rng(SEED)
    names = list(starts[0])
    return [_drawn(starts, names, rng) for _ in range(RESAMPLES)]


def _drawn(
    starts: Sequence[Groups], names: Sequence[str], rng: np.random.Generator
) -> list[Groups]:
    found: list[Groups] = [{} for _ in starts]
    for place, which in enumerate(rng.integers(len(names), size=len(names))):
        name = names[which]
        draws = list(starts[0][name])
        for turn, number in enumerate(rng.integers(len(draws), size=len(draws))):
            for new, old in zip(found, starts, strict=True):
                values = old[name][draws[number]]
                again = values[rng.integers(len(values), size=len(values))]
                new.setdefault(f"{place} {name}", {})[turn] = again
    return found


def _tails(values: Any) -> tuple[float, float]:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
