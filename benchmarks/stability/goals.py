"""What the standard mode is meant to check."""

from typing import Any, NamedTuple

from mlpot.analysis.flags import early, lost_at_start
from mlpot.analysis.intervals import fraction

Summary = dict[str, Any]


#: ps, of runs that tell something of the guard
LONG = 5.0


class Goal(NamedTuple):
    """A share of runs, of at least so many. ``value`` is None where it was not measured."""

    text: str
    value: float | None
    limit: float
    runs: int
    rate: bool = False  # of what would be seen in more runs: met where its interval is above

    @property
    def met(self) -> bool | None:
        """None where it is not known: not measured, or too few runs to tell."""
        if self.value is None:
            return None
        if not self.rate:
            return self.value >= self.limit
        share = fraction(round(self.value * self.runs), self.runs)
        if share.low < self.limit <= share.high:
            return None
        return share.low >= self.limit


def goals(summary: Summary) -> list[Goal]:
    """Only simulations as long as the goal says count: there are none in dev and fast. Goals of the
    guard are about rates, and few runs do not decide those: 0 of 381 have an interval below 1 %."""
    asked = [
        ("ladder", 300.0, 20.0, 1.0, 60),
        ("ladder", 500.0, 20.0, 1.0, 60),
        ("ladder", 1000.0, 20.0, 0.95, 60),
        ("long", 300.0, 200.0, 1.0, 5),
    ]
    found = []
    for scenario, kelvin, ps, limit, runs in asked:
        text = f"{runs} runs of unseen molecules at {kelvin:g} K whole for {ps:g} ps"
        group = _group(summary, scenario, kelvin, ps)
        enough = group is not None and group["runs"] >= runs
        value = group["fraction"][0] if group and enough else None
        found.append(Goal(text, value, limit, group["runs"] if group else 0))
    found += [_quiet(summary), _early(summary)]
    refusals = [r["refused"] for r in summary["refusals"]]
    known = [r for r in refusals if r is not None]
    value = sum(known) / len(known) if known else None
    return [*found, Goal("unseen elements refused before the first step", value, 1.0, len(known))]


def _quiet(summary: Summary) -> Goal:
    """Of the guard, where nothing is wrong. Groups that training has not are outside in truth."""
    told = [
        g["guard"]
        for g in _guarded(summary)
        if g["temperature"] == 300.0
        and g["scenario"] in ("ladder", "long", "large", "reference")
        and g["picoseconds"] >= LONG
    ]
    whole, flagged = (sum(t[k] for t in told) for k in ("whole", "flagged_whole"))
    value = 1 - flagged / whole if whole else None
    text = "300 K runs, relaxed, of groups that training has, whole without a flag of the guard"
    return Goal(text, value, 0.99, whole, rate=True)


def _early(summary: Summary) -> Goal:
    """Of the guard, where something breaks. What relaxing breaks is told after the fact; in a ramp
    everything is flagged, and it says nothing."""
    events = [
        early(run)
        for run in summary["runs"]
        if run["broke"] and run["guarded"] and run["ensemble"] == "nvt" and not _ramp(run)
        if run["picoseconds"] >= LONG and not lost_at_start(run)
    ]
    broke = len(events)
    value = sum(events) / broke if broke else None
    text = "breaks flagged by the guard before they happen"
    return Goal(text, value, 0.95, broke, rate=True)


def _ramp(told: Summary) -> bool:
    return told["end_temperature"] is not None


def _guarded(summary: Summary) -> list[Summary]:
    groups = summary["groups"]
    return [g for g in groups if g["ensemble"] == "nvt" and not _ramp(g) and g.get("guard")]


def _group(summary: Summary, scenario: str, kelvin: float, ps: float) -> Summary | None:
    for group in summary["groups"]:
        same = (group["scenario"], group["temperature"]) == (scenario, kelvin)
        if same and group["picoseconds"] >= ps:
            return group
    return None
