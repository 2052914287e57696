"""Stored numbers as Markdown."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.experiment import fill, made_at, table
from benchmarks.headline.statistics import Estimate, Groups, gain, median_time
from benchmarks.headline.tables import told
from benchmarks.refine.experiment import COLD, HOT, complete
from mlpot.active.refine import QUIET
from mlpot.analysis.intervals import bootstrap_mean

Json = dict[str, Any]

START, END = "<!-- refine: generated -->", "<!-- end -->"


def block(result: Json) -> str:
    """For the README: how much longer, and what every model held."""
    parts = [_intro(result), _gains(result), verdicts(result), _every_model(result)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _intro(result: Json) -> list[str]:
    s = result["settings"]
    waiting = s["repeats"] - sum(complete(result, draw) for draw in range(s["repeats"]))
    hottest = max(s["refinement"]["temperatures"])
    lines = [
        f"{s['molecule']}, {result['level']}: {s['frames']} frames at 300 K and random weights, "
        f"then `mlpot refine` up to {hottest:g} K, {s['repeats']} times",
        f"from other frames and seeds. Each model is simulated {s['seeds']} times at each "
        f"temperature for {s['picoseconds']:g} ps. Two controls are",
        "trained from the same start, in the same way and on as many frames: of 300 K, and at "
        "random from three simulations of",
        "the reference, one a temperature, which a user does not have.",
    ]
    if waiting:
        lines.append(f"Not finished: {waiting} of {s['repeats']} repeats.")
    return lines


def _gains(result: Json) -> list[str]:
    """Median stable times before, after and of the controls, a row a temperature."""
    end, by_name = result["settings"]["picoseconds"], _by_name(result)
    rows = []
    for kelvin in result["settings"]["temperatures"]:
        each = [_times(models, kelvin) for models in by_name.values()]
        rows.append([f"{kelvin:g}", *(told(median_time(times, end)) for times in each)])
    lines = table(["K", *(f"{name}, ps" for name in by_name)], rows)
    return [
        lines,
        "",
        "Median stable times (95 % intervals over repeats and simulations); ≥ where the median "
        "run was whole to its end.",
    ]


def _by_name(result: Json) -> dict[str, list[Json]]:
    """What is compared, in the README's words -> its models."""
    models = list(result["models"].values())
    named = {n: [m for m in models if m["name"] == n] for n in ("start", COLD, HOT)}
    return {"before": named["start"], "refined": _last(result), COLD: named[COLD], HOT: named[HOT]}


def verdicts(result: Json) -> list[str]:
    """A line for each temperature: does refinement extend the stable time, and do as many frames
    that nothing chose do it too? Then whether the guard became quiet, and what failed."""
    end, by_name = result["settings"]["picoseconds"], _by_name(result)
    refined, lines = by_name.pop("refined"), []
    for kelvin in result["settings"]["temperatures"]:
        after = _times(refined, kelvin)
        ratios = [
            _words(gain(after, _times(models, kelvin), end), _MODEL[name])
            for name, models in by_name.items()
            if models and refined
        ]
        said = f"the refined model lasts {'; '.join(ratios)}" if ratios else "not measured"
        lines.append(f"- {kelvin:g} K: {said}.")
    return [*lines, *_quiet(result), *_failed(result)]


_MODEL = {
    "before": "the start",
    COLD: "the one from as many frames at 300 K",
    HOT: "the one from as many at random",
}


def _words(found: Estimate | None, other: str) -> str:
    """'≥ 20 (3.1 to 20) times as long as the start'"""
    if found is None:
        return f"longer or shorter than {other}: not measured"
    if found.bound == "?":
        return f"to the end, as does {other}"
    unclear = " (no clear difference)" if found.low <= 1 <= found.high else ""
    return f"{told(found)} times as long as {other}{unclear}"


def _quiet(result: Json) -> list[str]:
    ends = [told["outcome"] for told in result["refinements"].values() if told.get("outcome")]
    if not ends:
        return []
    quiet = sum(outcome == QUIET for outcome in ends)
    text = (
        f"- The guard was quiet at every temperature in the end in {quiet} of {len(ends)} repeats"
    )
    return [f"{text}."]


def _failed(result: Json) -> list[str]:
    return [f"- Not counted, {k}: {why}." for k, why in result.get("failed", {}).items()]


def _every_model(result: Json) -> list[str]:
    s, models = result["settings"], list(result["models"].values())
    kelvins, tests = [f"{t:g}" for t in s["temperatures"]], list(models[0]["test_meV"])
    header = ["model", "labels", *(f"stable at {t} K, ps" for t in kelvins)]
    header += [f"F MAE {t} K" for t in tests]
    rows = []
    for name in _names(models):
        mine = [m for m in models if m["name"] == name]
        errors = [", ".join(_whole(m["test_meV"][t]["force_mae"]) for m in mine) for t in tests]
        labels = ", ".join(str(m["frames"]) for m in mine)
        stable = [_stable(mine, float(t), s["picoseconds"]) for t in kelvins]
        rows.append([name, labels, *stable, *errors])
    legend = (
        "Mean stable times over the simulations of all repeats (whole ones count with their "
        "length), and how many were whole; labels and force errors (meV/Å) of each repeat."
    )
    return [table(header, rows), "", legend]


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
