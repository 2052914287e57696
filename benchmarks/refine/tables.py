"""Stored numbers as Markdown."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.experiment import fill, made_at, table
from benchmarks.headline.statistics import Estimate, Groups, gain, median_time
from benchmarks.headline.tables import told
from benchmarks.refine.experiment import COLD, HOT, complete
from mlpot.analysis.intervals import bootstrap_mean

Json = dict[str, Any]

START, END = "<!-- refine: generated -->", "<!-- end -->"


def block(result: Json) -> str:
    """For the README: what every model held."""
    s = result["settings"]
    kelvins = [f"{t:g}" for t in s["temperatures"]]
    models = list(result["models"].values())
    tests = list(models[0]["test_meV"])
    header = ["model", "labels", *(f"stable at {t} K, ps" for t in kelvins)]
    header += [f"F MAE {t} K" for t in tests]
    rows = []
    for name in _names(models):
        mine = [m for m in models if m["name"] == name]
        errors = [", ".join(_whole(m["test_meV"][t]["force_mae"]) for m in mine) for t in tests]
        labels = ", ".join(str(m["frames"]) for m in mine)
        rows.append(
            [name, labels, *(_stable(mine, float(t), s["picoseconds"]) for t in kelvins), *errors]
        )
    waiting = s["repeats"] - sum(complete(result, draw) for draw in range(s["repeats"]))
    unfinished = f" Not finished: {waiting} of {s['repeats']} repeats." if waiting else ""
    hottest = max(s["refinement"]["temperatures"])
    return "\n".join(
        [
            f"{s['molecule']}, {result['level']}: {s['frames']} frames at 300 K and random weights,"
            f" then `mlpot refine` up to {hottest:g} K,",
            f"{s['repeats']} times from other frames and seeds."
            f" Mean of {s['seeds']} simulations of each model, {s['picoseconds']:g} ps at most"
            " (95 % interval over simulations), and how"
            " many were whole to their end; forces in meV/Å. As many frames that nothing chose are"
            " the controls, trained in the same way. Ratios are of medians (95 % intervals over"
            " repeats and simulations; ≥ where the median run was whole to its end)." + unfinished,
            "",
            *verdicts(result),
            "",
            table(header, rows),
        ]
    )


def verdicts(result: Json) -> list[str]:
    """A line for each temperature: does refinement extend the stable time, and do as many frames
    that nothing chose do it too?"""
    models, end = list(result["models"].values()), result["settings"]["picoseconds"]
    last = _last(result)
    lines = []
    for kelvin in result["settings"]["temperatures"]:
        after = _times(last, kelvin)
        line = f"- {kelvin:g} K: median stable time {told(median_time(after, end))} ps"
        before = _times([m for m in models if m["name"] == "start"], kelvin)
        found = gain(after, before, end)
        line += (
            f" after the last round, {told(median_time(before, end))} ps before: {_words(found)}"
        )
        for name in (COLD, HOT):
            control = _times([m for m in models if m["name"] == name], kelvin)
            if found := gain(after, control, end):
                at = told(median_time(control, end))
                line += f"; {name}: {at} ps, refinement against it {_words(found)}"
        lines.append(f"{line}.")
    lines += [f"- Not counted, {k}: {why}." for k, why in result.get("failed", {}).items()]
    return lines


def _last(result: Json) -> list[Json]:
    """The model of the last round of every repeat, where that has been measured."""
    keys = []
    for draw, refinement in result["refinements"].items():
        trained = [row["round"] for row in refinement["rounds"] if row["trained"]]
        keys.append(f"after round {max(trained, default=-1)} | {draw}")
    return [result["models"][key] for key in keys if key in result["models"]]


def _times(models: list[Json], kelvin: float) -> Groups:
    """Draw -> ps until each run broke; infinite for one that was whole to its end."""
    return {
        str(m["draw"]): {
            0: np.array(
                [
                    run["stable_ps"] if run["broke"] else np.inf
                    for run in m["runs"]
                    if run["temperature"] == kelvin
                ]
            )
        }
        for m in models
    }


def _words(found: Estimate | None) -> str:
    """'≥ 20 (3.1 to 20) times, extended'"""
    if found is None:
        return "not measured"
    if found.bound == "?":
        return "both outlast the runs"
    longer, shorter = found.low > 1, found.high < 1
    word = "extended" if longer else "shortened" if shorter else "no clear difference"
    return f"{told(found)} times, {word}"


def page(result: Json) -> str:
    """Everything, for results/MODE.md."""
    header = "draw | round | K | replicas | flagged | broke | first flag, ps | labels | F MAE"
    told = result["refinements"]
    rows = [[n, *line] for n, r in told.items() for row in r["rounds"] for line in _round(row)]
    ends = "; ".join(f"draw {n}, {r['outcome']}" for n, r in told.items()) or "not finished"
    parts = [
        "# Active learning",
        block(result),
        "## What the guard saw, round by round",
        table(header.split(" | "), rows),
        f"Outcome: {ends}. F MAE in meV/Å, on the frames of the round: before, and after most of"
        " them were trained on.",
        made_at(result),
    ]
    return "\n\n".join(parts) + "\n"


def _names(models: list[Json]) -> list[str]:
    """Start, rounds, controls."""
    names = list(dict.fromkeys(m["name"] for m in models))
    return sorted(names, key=lambda n: (n in (COLD, HOT), n != "start", n))


def write_block(path: Path, text: str) -> bool:
    """Replace what stands between the markers; False where there are none."""
    return fill(path, START, text, END)


def _stable(models: list[Json], kelvin: float, end: float) -> str:
    """'3.1 (1.2 to 5.0), 2 of 8'"""
    runs = [[run for run in m["runs"] if run["temperature"] == kelvin] for m in models]
    mean = bootstrap_mean([[run["stable_ps"] for run in mine] for mine in runs], 0.0, end)
    every = [run for mine in runs for run in mine]
    whole = sum(not run["broke"] for run in every)
    interval = f" ({mean.low:.3g} to {mean.high:.3g})" if mean.low < mean.high else ""
    return f"{mean.value:.3g}{interval}, {whole} of {len(every)}"


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _round(row: Json) -> list[list[str]]:
    errors = row.get("errors")
    forces = [f"{1e3 * errors[k]['force_mae']:.0f}" for k in ("before", "after")] if errors else []
    return [
        [
            str(row["round"]) if i == 0 else "",
            f"{t['temperature']:g}",
            str(t["replicas"]),
            str(t["flagged"]),
            str(t["broke"]),
            "–" if t["first_flag_ps"] is None else f"{t['first_flag_ps']:.3g}",
            str(row["frames"].get("labelled", 0)) if i == 0 else "",
            ", ".join(forces) if i == 0 else "",
        ]
        for i, t in enumerate(row["simulated"])
    ]
