"""mlpot stability: does a model hold in simulations, and how far out?"""

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlpot.cli.common import (
    EnergyKey,
    ForcesKey,
    Units,
    aside,
    read_data,
    say,
)
from mlpot.cli.jobs import parse_options, progress_bar
from mlpot.cli.labelled import check_labelled
from mlpot.cli.stability_tables import show

if TYPE_CHECKING:
    from mlpot.analysis.molecules import Molecule
    from mlpot.analysis.stability import Content, Reference
    from mlpot.analysis.subjects import Subject
    from mlpot.data.record import Record

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
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    units: Units = None,
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
        keys = {"energy_key": energy_key, "forces_key": forces_key, "units": units}
        labelled = _labelled(tested, data or (), keys)
        content = _content(mode.value, molecule, reference, reference_temperature, labelled)
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
    accuracy: "dict[str, list[Record]]",
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
    return Content(MODES[mode], molecules, mode, references, accuracy)


def _labelled(
    tested: "Subject", data: Sequence[Path], keys: dict[str, str | None]
) -> "dict[str, list[Record]]":
    """Name of a file, with its folders where two have the same -> labelled frames."""
    from mlpot.errors import DataError, UnsupportedSystemError

    names = [path.name for path in data]
    found = {}
    for path in data:
        records = read_data([path], **keys)
        try:
            check_labelled(records, None if tested.model is None else tested.open())
        except UnsupportedSystemError:  # the suite leaves it out, and says so
            pass
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        found[path.name if names.count(path.name) == 1 else str(path)] = records
    tested.close()
    return found


def _reference(path: Path, temperature: float) -> "tuple[Molecule, Reference]":
    import numpy as np

    from mlpot.analysis.molecules import Molecule
    from mlpot.analysis.stability import Reference
    from mlpot.errors import DataError

    records = read_data([path])
    first = records[0]
    if any(r.numbers.tolist() != first.numbers.tolist() for r in records):
        raise DataError(f"{path}: frames of one molecule are needed, with its atoms in one order")
    if any(any(r.pbc) or r.charge for r in records):
        raise DataError(
            f"{path}: frames of a neutral molecule without a box are needed. Unwrap periodic ones, "
            "and write them without their box"
        )
    frames = np.array([r.positions for r in records], dtype=np.float64)
    molecule = Molecule(path.name.split(".")[0], "reference", first.numbers, frames[0])
    return molecule, Reference(frames, temperature, path.name)
