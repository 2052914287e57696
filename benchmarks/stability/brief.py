"""The README's table: one row for each kind of simulation, one column for each temperature; and a
line each for what is no share of runs."""

from collections.abc import Sequence
from typing import Any

from mlpot.analysis.intervals import fraction
from mlpot.analysis.words import broke_words, median_words

Summary = dict[str, Any]

#: scenario -> what a reader who knows none of them is told
_WHAT = {
    "ladder": "molecules that training has not",
    "long": "some of them, for longer",
    "distorted": "starts off by {distortion:g} Å",
    "groups": "functional groups of no training molecule",
    "large": "larger than any molecule of training",
    "reference": "with a reference trajectory",
}


def brief(summaries: Sequence[Summary]) -> str:
    """Shares of whole runs, ramps and, of the first summary's model, the rest with the goals."""
    first = summaries[0]
    rest = [*_broken(first), *_drifts(first), *_structure(first), *_goals(first), *_hours(first)]
    parts = [_shares(summaries), _ramps(summaries), rest]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def beside(summaries: Sequence[Summary]) -> str:
    """Several models that went through the same runs."""
    hours = [f"{s['model']} {s['core_hours']['total']:.2g}" for s in summaries]
    rest = [*(f"- {line}" for line in _ramps(summaries)), f"- Core-hours: {', '.join(hours)}."]
    parts = [_shares(summaries), rest]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _shares(summaries: Sequence[Summary]) -> list[str]:
    rows = _rows(summaries)
    kelvins = sorted({kelvin for cells in rows.values() for kelvin in cells})
    head = " | ".join(f"{t:g} K" for t in kelvins)
    lines = [
        f"| runs whole to their end | ps | of | {head} |",
        "|---|---|---|" + "---|" * len(kelvins),
    ]
    for (what, ps, model), cells in rows.items():
        told = " | ".join(cells.get(t, "–") for t in kelvins)
        lines.append(f"| {what} | {ps:g} | {model} | {told} |")
    return lines


def _rows(summaries: Sequence[Summary]) -> dict[tuple[str, float, str], dict[float, str]]:
    """(what, ps, model) -> K -> '60 of 60'; models side by side."""
    found: dict[tuple[str, float], dict[str, dict[float, str]]] = {}
    for summary in summaries:
        for g in summary["groups"]:
            if g["ensemble"] == "nvt" and g["end_temperature"] is None:
                key = (_WHAT[g["scenario"]].format(**g), g["picoseconds"])
                cells = found.setdefault(key, {}).setdefault(summary["model"], {})
                cells[g["temperature"]] = f"{g['sound']} of {g['runs']}"
    return {(*key, model): c for key, models in found.items() for model, c in models.items()}


def _ramps(summaries: Sequence[Summary]) -> list[str]:
    return [
        f"Heated from {r['from']:g} to {r['to']:g} K in {r['picoseconds']:g} ps, {s['model']}: "
        f"{len(r['broke'])} of {r['runs']} break"
        + (f", half of them by {median_words(r)} K (95 % interval)." if r["broke"] else ".")
        for s in summaries
        for r in s["ramp"]
    ]


def _broken(summary: Summary) -> list[str]:
    """Which molecules, and by what: all that is not whole in the table above."""
    found: dict[str, list[Summary]] = {}
    for run in summary["runs"]:
        if run["broke"] and run["ensemble"] == "nvt" and run["end_temperature"] is None:
            found.setdefault(run["molecule"], []).append(run)
    told = [f"{name} ({_by(runs)})" for name, runs in found.items()]
    return [f"- Broken, {summary['model']}: {', '.join(told)}."] if told else []


def _by(runs: Sequence[Summary]) -> str:
    """'9 times: bond S5-Cl8, before the first step' or 'once: bond O13-H30, 1000 K'"""
    times = "once" if len(runs) == 1 else f"{len(runs)} times"
    causes = ", ".join(sorted({run["cause"] for run in runs}))
    kelvins = ", ".join(f"{t:g} K" for t in sorted({run["temperature"] for run in runs}))
    when = kelvins if any(run["stable_ps"] for run in runs) else "before the first step"
    return f"{times}: {causes}, {when}"


def _drifts(summary: Summary) -> list[str]:
    """At constant energy, for each time step."""
    found = [d for d in summary["drift"] if d["drift"] and d["drift"][1] is not None]
    if not found:
        return []
    cells = ["{:+.2g} ({:+.2g} to {:+.2g})".format(*d["drift"]) for d in found]
    told = "; ".join(
        f"{c} at {d['timestep']:g} fs" + (f" (broke: {broke_words(d)})" if d["broke"] else "")
        for c, d in zip(cells, found, strict=True)
    )
    kelvin, dtype = found[0]["temperature"], found[0]["dtype"]
    return [f"- Drift at {kelvin:g} K, meV/atom/ps, {dtype}: {told}."]


def _structure(summary: Summary) -> list[str]:
    return [
        f"- Interatomic distances at {s['temperature']:g} K against {s['source']}: h(r) is off by "
        f"{s['errors']['hr_mae']:.2g}; two halves of that trajectory differ by "
        f"{s['noise']['hr_mae']:.2g}."
        for s in summary["structure"]
        if s["errors"] and s["noise"]
    ]


def _hours(summary: Summary) -> list[str]:
    done, missing = f"{summary['core_hours']['total']:.3g} core-hours", summary["missing"]
    if not missing:
        return [f"- All of it: {done}."]
    return [f"- So far: {done}; {missing} runs are still to be done."]


def _share(value: float, runs: int) -> str:
    """'97.5 %, interval 87.1 to 99.6 %, of 40'"""
    found = fraction(round(value * runs), runs)
    ends = f"{100 * found.low:.3g} to {100 * found.high:.3g} %"
    return f"{100 * value:.3g} %, interval {ends}, of {runs}"


def _goals(summary: Summary) -> list[str]:
    return [
        f"- Goal: {g['text']}, {100 * g['limit']:g} % of them: {_met(g)}." for g in summary["goals"]
    ]


def _met(goal: Summary) -> str:
    if goal["value"] is None:
        return f"too few to tell, {goal['runs']} so far" if goal["runs"] else "not measured yet"
    word = {True: "met", False: "missed", None: "not decided by so few"}[goal["met"]]
    return f"{word} ({_share(goal['value'], goal['runs'])})"
