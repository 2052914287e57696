"""What the guard's results say, in the README: lines between its markers.

python -m benchmarks.guard.brief      # from results/, whatever of them there is
"""

from pathlib import Path
from typing import Any

import numpy as np
import typer

from benchmarks.accuracy.experiment import fill, read_results
from benchmarks.guard.areas import GOAL, shown
from benchmarks.guard.areas import verdict as reached
from benchmarks.guard.calibrate import OURS
from benchmarks.guard.runs import RESULTS, ROOT, verdict
from mlpot.analysis.intervals import fraction

Json = dict[str, Any]

#: results of `benchmarks/stability`, which the guard of the shipped model looked on at
LADDER = ROOT / "benchmarks/stability/results/pretrained-visnet-standard-runs.json"

#: scenario -> what it simulates
_KINDS = {
    "ladder": "unseen molecules",
    "long": "some of them for longer",
    "distorted": "their starts off by 0.05 and 0.1 Å",
    "large": "larger molecules",
    "groups": "molecules with functional groups that training has not",
}

COST = 10  # percent of a step, at most
FALSE = 1  # percent of the runs at 300 K that stay whole, less than
EARLY = 95  # percent of the runs that break, at least
START, END = "<!-- guard: generated -->", "<!-- end -->"


def lines(folder: Path) -> list[str]:
    """One for each result: calibration, runs, cost."""
    calibrated = sorted(folder.glob("calibration-standard*.json"))
    found = [line for file in calibrated for line in _calibration(read_results(file))]
    for file in sorted(folder.glob("runs-*.json")):
        found += _runs(read_results(file))
    if (file := folder / "cost.json").is_file():
        found.append(_cost(read_results(file)))
    return found + _whole(read_results(LADDER))


def _calibration(result: Json) -> list[str]:
    of = {
        "acac": "acetylacetone after fine-tuning at 300 K, asked about 300 and 600 K (PBE-D3)",
        "druglike": f"{result['settings']['model']['name']}, held-out molecules and new pairs of "
        "known ones (AIMNet2)",
    }
    large = f"- Force errors above {result['settings']['large']:g} times the usual"
    told = []
    for part, what in of.items():
        row = result[part]["auc"][OURS]
        areas = f"{_area(row, 'frame')} of frames, {_area(row, 'atom')} of atoms"
        told.append(f"{large}, {what}: ROC-AUC {areas}; the goal of {GOAL:g} is {reached(row)}.")
    sizes = [result[part]["bytes"] / 1000 for part in of]
    told.append(
        f"- Statistics in the model's file: {sizes[1]:.0f} kB of the shipped model, "
        f"{sizes[0]:.0f} kB of the fine-tuned one."
    )
    return told


def _area(row: Json, kind: str) -> str:
    """'0.922 (0.89 to 0.95)'"""
    ends = row.get(f"{kind}_interval")
    return shown(row[kind]) + (f" ({shown(ends[0])} to {shown(ends[1])})" if ends else "")


def _runs(result: Json) -> list[str]:
    rows, s = list(result["rows"].values()), result["settings"]
    kelvins = sorted({row["kelvin"] for row in rows})
    names = {row["molecule"] for row in rows}
    which = f"{len(names)} molecules" if len(names) > 1 else names.pop()
    begin = f"- {s['model']['name']}, {which}, {s['part']['ps']:g} ps"
    broke = sum(row["broken"] for row in rows)
    if broke and s["part"].get("name") == "breaks":
        return [f"{begin}, {_breaks(rows, broke, kelvins)}"]
    told = [verdict([r for r in rows if r["kelvin"] == t]).removeprefix("- ") for t in kelvins]
    goal = _calm(rows) if s["part"].get("name") == "calm" and not broke else ""
    return [f"{begin}, {text}{goal}." for text in told]


def _calm(rows: list[Json]) -> str:
    """Of runs that stayed whole at the temperature where nothing should happen."""
    false, runs = (sum(row[k] for row in rows) for k in ("flagged_but_whole", "runs"))
    value, low, high = (100 * x for x in fraction(false, runs))
    if high < FALSE:
        met = "met"
    elif low >= FALSE:
        met = "missed"
    else:
        met = f"{'met' if value < FALSE else 'missed'} by this value, and not by its whole interval"
    return f"; the goal of less than {FALSE} % is {met}"


def _breaks(rows: list[Json], broke: int, kelvins: list[float]) -> str:
    """Of several temperatures together, where the goal is about breaks."""
    early = sum(row["flagged_before_break"] for row in rows)
    lengths = sum(row["first_for_its_lengths"] for row in rows)
    least = min((fs for row in rows for fs in row["lead_fs"]), default=float("nan"))
    false = sum(row["flagged_but_whole"] for row in rows)
    whole = sum(row["runs"] for row in rows) - broke
    value, low, high = (100 * x for x in fraction(early, broke))
    met = "met" if low >= EARLY else "missed" if high < EARLY else "not decided by so few"
    medians = ", ".join(
        f"{np.median(lead):.3g} at {t:g} K"
        for t in kelvins
        if (lead := [fs for row in rows if row["kelvin"] == t for fs in row["lead_fs"]])
    )
    return (
        f"{kelvins[0]:g} to {kelvins[-1]:g} K: flagged before the break {early} of {broke}, "
        f"{value:.3g} % ({low:.3g} to {high:.3g}; {lengths} for a length); the goal of {EARLY} % "
        f"is {met}, by one model. Fs before it, median: {medians}; least: {least:.3g}. {whole} "
        f"runs stayed whole, {false} of them flagged."
    )


def _cost(told: Json) -> str:
    rows = list(told["rows"].values())
    cells = [f"{row['cost_percent']:.1f} % with {row['atoms']} atoms" for row in rows]
    whole = [row[f"{where}_percent"] for row in rows for where in ("openmm", "replicas")]
    noise = max(0.0, -min(whole))  # what is negative is nothing else
    met = max(max(row["cost_percent"] for row in rows), max(whole) - noise) < COST
    unsure = met and max(whole) + noise > COST
    said = ", too noisy to confirm or to refute that" if unsure else ""
    by = " by these" if unsure else ""
    return (
        f"- Added to a step, by the times of single calls: {', '.join(cells)}; the goal of less "
        f"than {COST} % is {'met' if met else 'missed'}{by}. Whole simulations in turns with and "
        f"without it, in OpenMM and of replicas, differ by {min(whole):+.1f} to "
        f"{max(whole):+.1f} %{said}."
    )


def _whole(told: Json) -> list[str]:
    """Flags of the shipped model in simulations that stayed whole: what `--guard stop` would have
    cost. As far as they are simulated."""
    found = {what: _flagged(told, scenario) for scenario, what in _KINDS.items()}
    if not found["unseen molecules"]:
        return []
    shares = "; ".join(f"{what}: {text}" for what, text in found.items() if text)
    return [
        "- pretrained-visnet, runs that the guard looked on at, stayed whole and were flagged all "
        f"the same, {shares}. Hot runs leave what it was trained on without breaking, and so do "
        "crude starts, so do not let the guard stop them."
    ]


def _flagged(told: Json, scenario: str) -> str:
    """'0 of 60 at 300 K (20 ps), ...'"""
    by_kind: dict[tuple[float, float], list[Json]] = {}
    for run in told.get("runs", []):
        if run["scenario"] == scenario and run["guarded"] and not run["broke"]:
            by_kind.setdefault((run["temperature"], run["picoseconds"]), []).append(run)
    return ", ".join(
        f"{sum(run['flag'] is not None for run in mine)} of {len(mine)} at {kelvin:g} K ({ps:g} ps)"
        for (kelvin, ps), mine in sorted(by_kind.items())
    )


def main(readme: Path = ROOT / "README.md") -> None:
    """Write what there is into the README."""
    found = lines(RESULTS)
    if not found:
        raise typer.BadParameter("there are no results yet; see benchmarks/guard/README.md")
    if not fill(readme, START, "\n".join(found), END):
        raise typer.BadParameter(f"{readme.name} has no lines {START!r} and {END!r}")
    typer.echo(f"wrote {len(found)} lines in {readme.name}")


if __name__ == "__main__":
    typer.run(main)
