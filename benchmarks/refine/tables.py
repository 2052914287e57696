"""Stored numbers as Markdown."""

import re
from pathlib import Path
from typing import Any

from benchmarks.accuracy.experiment import table
from mlpot.analysis.intervals import bootstrap_mean
from mlpot.errors import InputError

Json = dict[str, Any]

START, END = "<!-- refine: generated -->", "<!-- end -->"


def block(result: Json) -> str:
    """For the README: what every model held."""
    s = result["settings"]
    kelvins = [f"{t:g}" for t in s["temperatures"]]
    tests = list(next(iter(result["models"].values()))["test_meV"])
    header = [
        "model",
        "labels",
        *(f"stable at {t} K, ps" for t in kelvins),
        *(f"F MAE {t} K" for t in tests),
    ]
    rows = [
        [
            name,
            str(model["frames"]),
            *(_stable(model, float(t)) for t in kelvins),
            *(f"{model['test_meV'][t]['force_mae']:.0f}" for t in tests),
        ]
        for name, model in result["models"].items()
    ]
    hottest = max(s["refinement"]["temperatures"])
    return "\n".join(
        [
            f"{s['molecule']}, {result['level']}: from {result['count']} frames at 300 K and random"
            f" weights, then `mlpot refine`",
            f"up to {hottest:g} K. Mean of {s['seeds']} runs of {s['picoseconds']:g} ps (95 %"
            " interval), whole of all; forces in meV/Å.",
            "",
            table(header, rows),
        ]
    )


def page(result: Json) -> str:
    """Everything, for results/MODE.md."""
    header = (
        "round | K | replicas | flagged | broke | first flag, ps | labels | F MAE before, after"
    )
    rows = [line for row in result["rounds"] for line in _round(row)]
    parts = [
        "# Active learning",
        block(result),
        "## What the guard saw, round by round",
        table(header.split(" | "), rows),
        f"Outcome: {result.get('outcome') or 'not finished'}. Errors in meV/Å, on the frames of the"
        " round, before and after they were learned.",
        f"Commit {result['commit']}; {result['machine']}.",
    ]
    return "\n\n".join(parts) + "\n"


def write_block(path: Path, text: str) -> None:
    """Replace what stands between the markers."""
    content = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.S)
    if not pattern.search(content):
        raise InputError(f"{path.name} has no lines {START!r} and {END!r}")
    path.write_text(pattern.sub(lambda _: f"{START}\n{text}\n{END}", content), encoding="utf-8")


def _stable(model: Json, kelvin: float) -> str:
    """'3.1 (1.2 to 5.0), 2 of 8'"""
    runs = [run for run in model["runs"] if run["temperature"] == kelvin]
    mean = bootstrap_mean([[run["stable_ps"] for run in runs]])
    whole = sum(not run["broke"] for run in runs)
    interval = f" ({mean.low:.3g} to {mean.high:.3g})" if mean.low < mean.high else ""
    return f"{mean.value:.3g}{interval}, {whole} of {len(runs)}"


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
