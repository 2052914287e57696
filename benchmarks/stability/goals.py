"""What the standard mode is meant to check."""

from typing import Any, NamedTuple

Summary = dict[str, Any]


class Goal(NamedTuple):
    """A share of runs, of at least so many. ``value`` is None where it was not measured."""

    text: str
    value: float | None
    limit: float
    runs: int

    @property
    def met(self) -> bool | None:
        return None if self.value is None else self.value >= self.limit


def goals(summary: Summary) -> list[Goal]:
    """Only simulations as long as the goal says count: there are none in dev and fast."""
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
    """Of the guard, where nothing is wrong."""
    found = [_group(summary, "ladder", 300.0, 20.0), _group(summary, "long", 300.0, 200.0)]
    told = [g["guard"] for g in found if g and g.get("guard")]
    whole, flagged = (sum(t[k] for t in told) for k in ("whole", "flagged_whole"))
    value = 1 - flagged / whole if whole >= 60 else None
    return Goal("300 K runs that stay whole without a flag of the guard", value, 0.99, whole)


def _early(summary: Summary) -> Goal:
    """Of the guard, where something breaks: at whatever temperature."""
    told = [g["guard"] for g in summary["groups"] if g["ensemble"] == "nvt" and g.get("guard")]
    broke, before = (sum(t[k] for t in told) for k in ("broke", "flagged_before"))
    value = before / broke if broke >= 20 else None
    return Goal("runs that break flagged by the guard before they do", value, 0.95, broke)


def _group(summary: Summary, scenario: str, kelvin: float, ps: float) -> Summary | None:
    for group in summary["groups"]:
        same = (group["scenario"], group["temperature"]) == (scenario, kelvin)
        if same and group["picoseconds"] >= ps:
            return group
    return None
