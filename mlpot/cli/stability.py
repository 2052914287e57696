"""mlpot stability: does a model hold in simulations, and how far out?"""

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlpot.cli.common import aside, console, counted, read_data, say
from mlpot.cli.jobs import parse_options, progress_bar

if TYPE_CHECKING:
    from rich.table import Table

    from mlpot.analysis.molecules import Molecule
    from mlpot.analysis.stability import Content, Reference

HOW, WHAT = "How it is computed", "What is simulated"


class Mode(StrEnum):
    """How much is run."""

    dev = "dev"
    fast = "fast"
    standard = "standard"


ModelArgument = Annotated[
    str,
    typer.Argument(
        help="An mlpot model (name or file), or an ASE calculator: gfn2-xtb, so3lr, ..., or its "
        "import path module:callable."
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the results; runs/stability/MODEL if left out.")
]
ModeOption = Annotated[
    Mode,
    typer.Option(
        case_sensitive=False, help="dev: a minute; fast: minutes; standard: many core-hours."
    ),
]
MoleculeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--molecule",
        "-m",
        rich_help_panel=WHAT,
        help="Your molecule instead of the standard ones: a .pdb, .xyz, .sdf file or SMILES. As "
        "often as needed.",
    ),
]
ReferenceOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=WHAT,
        help="Frames of one molecule from a simulation to compare with: extended XYZ, MD17 npz.",
    ),
]
ReferenceTemperature = Annotated[
    float, typer.Option(rich_help_panel=WHAT, help="Temperature of --reference, K.")
]
Data = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        rich_help_panel=WHAT,
        help="Labelled frames, such as test sets out of distribution: their errors beside.",
    ),
]
CalculatorOptions = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", rich_help_panel=HOW, help="KEY=VALUE for a calculator."),
]
Engine = Annotated[
    str, typer.Option(rich_help_panel=HOW, help="Of a model: auto, compiled, eager, torchscript.")
]
Dtype = Annotated[
    str | None, typer.Option(rich_help_panel=HOW, help="Of a model: float32 or float64.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        rich_help_panel=HOW,
        help="Processes; left out, one a core. 0 runs in this one.",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=HOW,
        help="Address of a dask cluster to run on instead; --out must be a folder it sees.",
    ),
]
Retry = Annotated[
    bool, typer.Option("--retry", rich_help_panel=HOW, help="Do again what has failed.")
]
AnalyzeOnly = Annotated[
    bool, typer.Option("--analyze", help="Run nothing; sum up what is in --out again.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


def stability(
    model: ModelArgument,
    out: Out = None,
    mode: ModeOption = Mode.fast,
    molecule: MoleculeOption = None,
    reference: ReferenceOption = None,
    reference_temperature: ReferenceTemperature = 300.0,
    data: Data = None,
    option: CalculatorOptions = None,
    engine: Engine = "auto",
    dtype: Dtype = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    retry: Retry = False,
    analyze: AnalyzeOnly = False,
    quiet: Quiet = False,
) -> None:
    """Simulate until it breaks: hot, long, distorted, large and unfamiliar molecules.

    Prints how long simulations stay whole, and leaves records, trajectories and summary.json in a
    folder. A run that was interrupted, even killed, goes on when the same command is given again,
    and nothing is simulated twice.

    Examples: `mlpot stability pretrained-visnet`,
    `mlpot stability runs/mine/model.safetensors -m my.xyz --data test.xyz`
    """
    from mlpot.analysis.subjects import subject as make
    from mlpot.analysis.summary import analyze as sum_up

    folder = out or Path("runs/stability") / _safe(model)
    if not analyze:
        from mlpot.analysis.stability import run

        tested = make(model, parse_options(option), engine, dtype)
        content = _content(mode.value, molecule, reference, reference_temperature, data)
        count = _workers() if workers is None else workers
        place: dict[str, Any] = {"workers": count, "scheduler": scheduler, "retry": retry}
        say(f"{tested.name}, mode {content.mode}; results in {folder}")
        with progress_bar("simulating", quiet, folder) as bar:
            run(tested, content, folder, report=aside, **place, **bar)
    show(sum_up(folder))
    say(f"all numbers: {folder / 'summary.json'}; frames: {folder / 'trajectories'}")


def _safe(model: str) -> str:
    path = Path(model)
    if path.exists():  # training runs call every model by the same name; their folders differ
        model = path.resolve().parent.name if path.stem == "model" else path.stem
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in model)


def _workers() -> int:
    """One process a core; with a single core none besides this one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 0 if not cores or cores < 2 else min(cores, 16)


def _content(
    mode: str,
    molecule: Sequence[str] | None,
    reference: Path | None,
    temperature: float,
    data: Sequence[Path] | None,
) -> "Content":
    from mlpot.analysis.molecules import DEFAULT, own_molecules, read_molecules, unique
    from mlpot.analysis.scenarios import MODES
    from mlpot.analysis.stability import Content

    molecules = own_molecules(molecule) if molecule else read_molecules(DEFAULT)
    references = {}
    if reference is not None:
        compared, frames = _reference(reference, temperature)
        molecules = unique([*molecules, compared])
        references = {molecules[-1].name: frames}
    accuracy = {path.name: read_data([path]) for path in data or ()}
    return Content(MODES[mode], molecules, mode, references, accuracy)


def _reference(path: Path, temperature: float) -> "tuple[Molecule, Reference]":
    import numpy as np

    from mlpot.analysis.molecules import Molecule
    from mlpot.analysis.stability import Reference
    from mlpot.errors import DataError

    records = read_data([path])
    first = records[0]
    if any(r.numbers.tolist() != first.numbers.tolist() for r in records):
        raise DataError(f"{path}: frames of one molecule are needed, with its atoms in one order")
    frames = np.array([r.positions for r in records], dtype=np.float64)
    molecule = Molecule(path.name.split(".")[0], "reference", first.numbers, frames[0])
    return molecule, Reference(frames, temperature, path.name)


# --- tables --------------------------------------------------------------------------------------


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
