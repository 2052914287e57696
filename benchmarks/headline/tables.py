"""Stored numbers as Markdown: a page for a mode, and what goes between the README's markers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.experiment import fill, made_at
from benchmarks.headline.molecules import MOLECULES, ROOM
from benchmarks.headline.settings import DENOISED, DIVERGED, NOTHING, PRETRAINED
from benchmarks.headline.statistics import (
    GOAL,
    GOAL_FRAMES,
    GOAL_KELVIN,
    GOAL_MOLECULES,
    GOAL_PS,
    Estimate,
    Goal,
    Groups,
    beside,
    common,
    errors,
    gain,
    goal,
    mean_error,
    median_time,
    models_of,
    molecules_of,
    sizes,
    stable_times,
    whole,
)
from mlpot.analysis.flags import guarded

Json = dict[str, Any]

START, END = "<!-- headline: generated -->", "<!-- end -->"
STARTS = (NOTHING, DENOISED, PRETRAINED)
_SIGN = {"": "", ">=": "≥ ", "<=": "≤ "}


def write_block(path: Path, text: str) -> bool:
    """Replace what stands between the markers; False where there are none."""
    return fill(path, START, text, END)


def block(result: Json) -> str:
    """For the README: verdict, stable times, errors."""
    parts = [_intro(result), verdicts(result), _times(result), _errors(result, "force_mae")]
    parts += [_beside(result, "energy_mae"), _guards(result)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def page(result: Json, mode: str) -> str:
    """Everything, for results/MODE.md."""
    parts = [
        [f"# Scratch, denoised, pretrained: {mode}"],
        [block(result)],
        ["## Other errors"],
        *(_errors(result, name) for name in ("force_rmse", "energy_mae", "energy_rmse")),
        *(_beside(result, name) for name in ("force_mae", "force_rmse", "energy_rmse")),
        ["## Molecules"],
        _described(result),
        *(_by_molecule(result, frames, kelvin) for frames, kelvin in _cells(result)),
        *(
            _errors(result, e, [m])
            for m in molecules_of(result)
            for e in ("force_mae", "energy_mae")
        ),
        _costs(result),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def number(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def told(estimate: Estimate | None) -> str:
    """'≥ 20 (3.1 to 20)'; a dash for what was not measured or cannot be told."""
    if estimate is None or estimate.bound == "?":
        return "–"
    value, low, high, bound, upper = estimate
    text, top = f"{_SIGN[bound]}{number(value)}", f"{'≥ ' if upper else ''}{number(high)}"
    return text if low == high == value else f"{text} ({number(low)} to {top})"


# --- the parts -----------------------------------------------------------------------------------


def _intro(result: Json) -> list[str]:
    s, names = result["settings"], molecules_of(result)
    draws = ", ".join(f"{count} of {frames}" for frames, count in _draws(result).items())
    several = max(_draws(result).values(), default=1) > 1
    what = "molecules, draws and seeds" if several else "molecules and seeds"
    once = "" if several else " (which frames were drawn is not in them)"
    lines = [
        f"{_counted(len(names), 'molecule')} never seen in training ({', '.join(names)}). Each "
        "start gets the",
        f"same frames at {ROOM:g} K (draws: {draws}; a fifth, at most 20, to validate by), "
        f"{s['steps']:,} steps, and",
        f"the better of {_counted(len(s['rates']), 'learning rate')}. Then "
        f"{_counted(s['replicas'], 'Langevin run')} of "
        f"{s['picoseconds']:g} ps at each temperature, whole until a",
        "bond is 0.5 Å off its mean, a hydrogen is lost, or it explodes; ≥ where the run that a",
        "number stands for was whole to its end. Medians over all runs; in brackets 95 % intervals",
        f"of a bootstrap over {what}: over so few, rather too narrow{once}.",
    ]
    lines += [f"Left out: {name} ({why})." for name, why in result["absent"].items()]
    if missing := _missing(result):
        lines.append(
            f"Not finished: {missing} models are still to be made. Rows that lack molecules say "
            "how many they have, errors in square brackets."
        )
    lines += [f"Not counted, {key}: {why}." for key, why in result.get("failed", {}).items()]
    return lines


def _draws(result: Json) -> dict[int, int]:
    """Number of frames -> how many draws of so many there are models of."""
    found: dict[int, set[int]] = {}
    for model in result["models"].values():
        found.setdefault(model["frames"], set()).add(model["draw"])
    return {frames: len(draws) for frames, draws in sorted(found.items())}


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _missing(result: Json) -> int:
    s = result["settings"]
    starts = 1 + len(s["models"])
    every = sum(s["draws"].values()) * len(result["molecules"]) * starts
    given_up = sum(why == DIVERGED for why in result.get("failed", {}).values())
    return every - len(result["models"]) - given_up


def verdicts(result: Json) -> list[str]:
    """A line for every number of frames at the goal's temperature."""
    if GOAL_KELVIN not in result["settings"]["temperatures"]:
        return []
    return [_verdict(result, goal(result, frames)) for frames in sizes(result)]


def _verdict(result: Json, found: Goal) -> str:
    label, end = f"- {found.frames} frames, {found.kelvin:g} K", result["settings"]["picoseconds"]
    both = common(
        *(
            stable_times(result, found.frames, start, found.kelvin)
            for start in (PRETRAINED, NOTHING)
        )
    )
    if found.estimate is None:
        return f"{label}: not measured."
    label += _few(len(both[0]), result)
    mine, base = (told(median_time(groups, end)) for groups in both)
    times = f"median stable time {mine} ps from the pretrained model, {base} ps from nothing"
    if found.estimate.bound == "?":
        return f"{label}: {times}: both outlast the runs, so their ratio cannot be told."
    text = f"{label}: {times}: {told(found.estimate)} times"
    if found.frames != GOAL_FRAMES:
        return f"{text}."
    if not found.enough:
        return (
            f"{text}; whether the goal of {GOAL:g} is met is decided by {GOAL_PS:g} ps of "
            f"{GOAL_MOLECULES} molecules or more."
        )
    words = {True: "met", False: "missed", None: "not decided by runs this long and this many"}
    return f"{text}; the goal of {GOAL:g} is {words[found.met]}."


def _short(result: Json, frames: int, start: str) -> str:
    return _few(len({m["molecule"] for m in models_of(result, frames, start)}), result)


def _few(molecules: int, result: Json) -> str:
    """', 2 molecules' where there are more."""
    return f", {_counted(molecules, 'molecule')}" if molecules < len(molecules_of(result)) else ""


def _times(result: Json) -> list[str]:
    kelvins, end = result["settings"]["temperatures"], result["settings"]["picoseconds"]
    head = " | ".join(f"{t:g} K" for t in kelvins)
    lines = [f"| stable ps | from | {head} |", "|---|---|" + "---|" * len(kelvins)]
    for frames, start in _rows(result):
        groups = [stable_times(result, frames, start, t) for t in kelvins]
        cells = " | ".join(told(median_time(g, end)) for g in groups)
        lines.append(f"| {frames} frames{_short(result, frames, start)} | {start} | {cells} |")
    return lines


_NAMES = {
    "force_mae": "forces MAE, meV/Å",
    "force_rmse": "forces RMSE, meV/Å",
    "energy_mae": "energy MAE, meV/atom",
    "energy_rmse": "energy RMSE, meV/atom",
}


def _errors(result: Json, name: str, molecules: Sequence[str] = ()) -> list[str]:
    """Of all molecules, or of these."""
    kelvins = _labelled(result, molecules or molecules_of(result))
    counted = {
        t: "" if molecules else f" ({_counted(len(m), 'molecule')})" for t, m in kelvins.items()
    }
    head = " | ".join(f"{t:g} K{of}" for t, of in counted.items())
    label = f"{', '.join(molecules)}: {_NAMES[name]}" if molecules else _NAMES[name]
    lines = [f"| {label} | from | {head} |", "|---|---|" + "---|" * len(kelvins)]
    for frames, start in _rows(result):
        cells = []
        for kelvin, of in kelvins.items():
            groups = errors(result, frames, start, kelvin, name, molecules)
            few = f" [{len(groups)}]" if groups and len(groups) < len(of) else ""
            cells.append(told(mean_error(groups)) + few)
        lines.append(f"| {frames} frames | {start} | {' | '.join(cells)} |")
    return lines


def _beside(result: Json, name: str) -> list[str]:
    """Errors on frames of no temperature, where any molecule has labels for them."""
    told_of = [m.get("beside_meV", {}) for m in result["models"].values()]
    whats = list({w: 0 for of in told_of for w, e in of.items() if e[name] is not None})
    if not whats:
        return []
    of = {m["molecule"] for m in result["models"].values() if m.get("beside_meV")}
    label = f"{', '.join(sorted(of))}: {_NAMES[name]}"
    lines = [f"| {label} | from | {' | '.join(whats)} |", "|---|---|" + "---|" * len(whats)]
    for frames, start in _rows(result):
        found = [mean_error(beside(result, frames, start, what, name)) for what in whats]
        lines.append(f"| {frames} frames | {start} | {' | '.join(told(e) for e in found)} |")
    return lines


def _guards(result: Json) -> list[str]:
    """What the models' guards said: a false alarm is only one at the temperature of training."""
    head = [
        "Each model's guard knows its few frames, and the lengths between atoms that a pretrained",
        "start knew. It looked on and ended nothing; flagged before means while every bond was",
        "whole. Hot frames are outside 300 K data, so it flags hot runs whether they break or not.",
        "",
        f"| guard | from | flagged of the whole, {ROOM:g} K | flagged of the whole, hotter "
        "| flagged before of the broken, all K | median lead, ps |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    for frames, start in _rows(result):
        runs = [run for model in models_of(result, frames, start) for run in model["runs"]]
        every = guarded(runs)
        if not every:
            continue
        room, hotter = (
            guarded([run for run in runs if (run["temperature"] == ROOM) is same])
            for same in (True, False)
        )
        alarms = [f"{g['flagged_whole']} of {g['whole']}" if g else "–" for g in (room, hotter)]
        lead = "–" if every["lead_ps"] is None else number(every["lead_ps"])
        broke = f"{every['flagged_before']} of {every['broke']}"
        rows.append(f"| {frames} frames | {start} | {' | '.join(alarms)} | {broke} | {lead} |")
    return [*head, *rows] if rows else []


def _labelled(result: Json, molecules: Sequence[str]) -> dict[float, list[str]]:
    """K -> those of the molecules with labelled frames there."""
    found: dict[float, list[str]] = {}
    for name in molecules:
        for kelvin in result["molecules"][name]["tested"]:
            found.setdefault(float(kelvin), []).append(name)
    return dict(sorted(found.items()))


def _rows(result: Json) -> list[tuple[int, str]]:
    done = {(m["frames"], m["start"]) for m in result["models"].values()}
    return [(n, s) for n in sizes(result) for s in STARTS if (n, s) in done]


def _described(result: Json) -> list[str]:
    lines = ["| molecule | what | atoms | labels | bonds not judged |", "|---|---|---|---|---|"]
    for name in molecules_of(result):
        m = result["molecules"][name]
        mobile = ", ".join(m["not_judged"]) or "–"
        lines.append(
            f"| {name} | {MOLECULES.get(name, '')} | {m['atoms']} | {m['level']} | {mobile} |"
        )
    return lines


def _cells(result: Json) -> list[tuple[int, float]]:
    return [(n, t) for n in sizes(result) for t in result["settings"]["temperatures"]]


def _by_molecule(result: Json, frames: int, kelvin: float) -> list[str]:
    end = result["settings"]["picoseconds"]
    starts = [s for n, s in _rows(result) if n == frames]
    head = " | ".join(f"{s}: each run, ps | whole" for s in starts)
    lines = [
        f"| {frames} frames, {kelvin:g} K | {head} | {PRETRAINED} / {NOTHING} |",
        "|---|" + "---|---|" * len(starts) + "---|",
    ]
    for name in molecules_of(result):
        groups = {s: stable_times(result, frames, s, kelvin, [name]) for s in starts}
        cells = []
        for found in groups.values():
            share = "{} of {}".format(*whole(found)) if found else "–"
            cells += [_each(found, end), share]
        ratio = gain(groups.get(PRETRAINED, {}), groups.get(NOTHING, {}), end)
        # over the few runs of one molecule a bootstrap knows no more than they say themselves
        alone = None if ratio is None else ratio._replace(low=ratio.value, high=ratio.value)
        lines.append(f"| {name} | {' | '.join(cells)} | {told(alone)} |")
    return lines


def _each(groups: Groups, end: float) -> str:
    """'0.24, 2.1, ≥ 20': of the runs of a molecule."""
    times = sorted(t for draws in groups.values() for each in draws.values() for t in each)
    return ", ".join(f"≥ {number(end)}" if t == np.inf else number(t) for t in times) or "–"


def _rates(result: Json) -> str:
    """How often each learning rate was the better one."""
    told_of = []
    for frames, start in _rows(result):
        rates = [m["learning_rate"] for m in models_of(result, frames, start)]
        counts = ", ".join(f"{r:g} in {rates.count(r)}" for r in sorted(set(rates)))
        told_of.append(f"{frames} frames from {start} {counts}")
    return (
        f"Learning rate taken: {'; '.join(told_of)}. With two to choose from, a better one may lie "
        "outside."
    )


def _costs(result: Json) -> list[str]:
    training = sum(t["core_hours"] for t in result["trainings"].values())
    driving = sum(m["core_hours"] for m in result["models"].values())
    causes: dict[str, int] = {}
    for model in result["models"].values():
        for run in model["runs"]:
            if run["broke"]:
                kind = run["cause"].split()[0]
                causes[kind] = causes.get(kind, 0) + 1
    broken = ", ".join(f"{kind} {count}" for kind, count in sorted(causes.items())) or "nothing"
    diverged = [key for key, t in result["trainings"].items() if t.get("diverged")]
    lost = f" Diverged: {'; '.join(diverged)}." if diverged else ""
    shas = ", ".join(f"{start} {sha[:8]}" for start, sha in result["settings"]["models"].items())
    return [
        f"What broke runs: {broken}. {len(result['trainings'])} trainings took {training:.3g} "
        f"core-hours (one that was cut off counts since it went on), simulations {driving:.3g}. "
        f"Weights (SHA-256): {shas}. {made_at(result)}{lost}",
        "",
        _rates(result),
    ]
