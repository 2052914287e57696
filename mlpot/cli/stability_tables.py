"""A summary of `mlpot stability` on the screen."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlpot.cli.common import aside, console, counted, say

if TYPE_CHECKING:
    from rich.table import Table


def show(summary: dict[str, Any]) -> None:
    """Print a summary as tables."""
    from mlpot.analysis.words import DRIFT, INTERVALS, MEDIAN, RULES, start_words, what_broke

    screen = console()
    shown = (
        (_runs(summary), INTERVALS),
        (_rules(summary), RULES),
        (_drift(summary), DRIFT),
        (_structure(summary), ""),
        (_accuracy(summary), ""),
    )
    for table, note in shown:
        if table.row_count:
            screen.print(table)
            if note:
                aside(note)
    for ramp in summary["ramp"]:
        say(_ramp(ramp))
    if summary["ramp"]:
        aside(MEDIAN)
    for words in start_words(summary):
        say(words)
    broken = [run for run in summary["runs"] if run["broke"]]
    for run in sorted(broken, key=lambda run: run["stable_ps"])[:5]:
        say(
            f"broke: {run['molecule']} ({run['scenario']}, {run['temperature']:g} K) at "
            f"{run['stable_ps']:.3f} ps, {what_broke(run)}; frame {run['worst_frame']} of "
            f"{run['trajectory']}"
        )
    _notes(summary)
    hours = summary["core_hours"]["total"]
    say(f"{counted(len(summary['runs']), 'run')}, {hours:.3g} core-hours")


def _notes(summary: dict[str, Any]) -> None:
    from mlpot.analysis.words import judged_otherwise, unfinished

    refused = [r for r in summary["refusals"] if r["refused"]]
    if refused:
        names = ", ".join(r["molecule"] for r in refused)
        say(f"foreign elements refused before the first step: {names}")
    for wrong in (r for r in summary["refusals"] if r["refused"] is False):
        say(f"{wrong['molecule']}: foreign elements were NOT refused")
    for what, why in summary["skipped"].items():
        aside(f"left out, {what}: {why}")
    for what, why in judged_otherwise(summary):
        aside(f"{what}: {why}")
    for why in sorted(set(summary["failed"].values())):
        aside(f"failed: {why}")
    if summary["missing"]:
        say(f"{counted(summary['missing'], 'run')} still missing; {unfinished(summary)}")


def _table(title: str, *columns: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _runs(summary: dict[str, Any]) -> "Table":
    from mlpot.analysis.words import marked

    columns = ("", "ps", "whole", "share, %", "stable ps", "broken by")
    table = _table("Stability, with 95 % intervals", *columns)
    for g in summary["groups"]:
        table.add_row(
            _label(g),
            f"{g['picoseconds']:g}",
            f"{g['sound']} of {g['runs']}",
            _interval([100 * v for v in g["fraction"]], "{:.0f}"),
            marked(_interval(g["stable_ps"], "{:.3g}"), g),
            ", ".join(f"{cause} {count}" for cause, count in g["causes"].items()),
        )
    return table


def _rules(summary: dict[str, Any]) -> "Table":
    """Of groups in which a run has broken."""
    from mlpot.analysis.words import marked

    columns = ("", "runs", "bonds hold, ps", "lost a hydrogen", "exploded")
    table = _table("What broke, rule by rule", *columns)
    for g in summary["groups"]:
        if g["sound"] < g["runs"]:
            bonds = marked(_interval(g["bond_ps"], "{:.3g}"), g, "bond_ps")
            counts = (str(g[name]) for name in ("lost_hydrogen", "exploded"))
            table.add_row(_label(g), str(g["runs"]), bonds, *counts)
    return table


def _label(group: dict[str, Any]) -> str:
    name = group["scenario"]
    if group["end_temperature"] is not None:
        return f"{name} to {group['end_temperature']:g} K"
    if group["distortion"]:
        return f"{name} {group['distortion']:g} Å"
    if group["ensemble"] == "nve":
        return f"{name} {group['timestep']:g} fs"
    return f"{name} {group['temperature']:g} K"


def _interval(values: Sequence[float | None] | None, form: str) -> str:
    if values is None or values[0] is None:
        return "–"
    low, high = values[1:]
    if low is None or high is None or low == high:
        return form.format(values[0])
    between = " to " if "+" in form else "–"
    return f"{form.format(values[0])} ({form.format(low)}{between}{form.format(high)})"


def _drift(summary: dict[str, Any]) -> "Table":
    from mlpot.analysis.words import broke_words, largest_words

    columns = ("", "drift, meV/atom/ps", "largest", "scatter, meV/atom", "broke")
    table = _table("Constant energy", *columns)
    for d in summary["drift"]:
        scatter = "–" if d["scatter"] is None else f"{d['scatter']:.3f}"
        drift = _interval(d["drift"], "{:+.4f}")
        name = f"{d['timestep']:g} fs, {d['dtype']}"
        table.add_row(name, drift, largest_words(d), scatter, broke_words(d))
    return table


def _structure(summary: dict[str, Any]) -> "Table":
    columns = ("", "h(r) error", "of two halves", "bonds, Å", "dihedrals")
    table = _table("Structure", *columns)
    for s in summary["structure"]:
        errors, noise = s["errors"], s["noise"]
        if errors is None:
            continue
        dihedral = errors["dihedral_distance"]
        table.add_row(
            f"{s['molecule']} {s['temperature']:g} K",
            f"{errors['hr_mae']:.3f}",
            f"{noise['hr_mae']:.3f}" if noise else "–",
            f"{errors['bond_distance']:.4f}",
            "–" if dihedral is None else f"{dihedral:.3f}",
        )
    return table


def _accuracy(summary: dict[str, Any]) -> "Table":
    columns = ("", "frames", "E MAE, meV", "E RMSE", "F MAE, meV/Å", "F RMSE")
    table = _table("Errors (energies up to a constant)", *columns)
    for a in summary["accuracy"]:
        found = (a[k] for k in ("energy_mae", "energy_rmse", "force_mae", "force_rmse"))
        numbers = ("–" if value is None else f"{value:.1f}" for value in found)
        table.add_row(a["name"], str(a["frames"]), *numbers)
    return table


def _ramp(ramp: dict[str, Any]) -> str:
    from mlpot.analysis.words import median_words

    text = f"heated from {ramp['from']:g} to {ramp['to']:g} K in {ramp['picoseconds']:g} ps: "
    if not ramp["broke"]:
        return f"{text}none of {counted(ramp['runs'], 'run')} broke"
    broke = f"{len(ramp['broke'])} of {counted(ramp['runs'], 'run')} broke"
    return f"{text}{broke}, median {median_words(ramp)} K"
