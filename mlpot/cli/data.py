"""mlpot conformers and mlpot label: training sets of your own chemistry."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlpot.cli.common import EnergyKey, ForcesKey, Units, aside, counted, read_data, say
from mlpot.cli.jobs import labeller_of, progress_bar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlpot.data.labellers import Labeller
    from mlpot.data.record import Record

_TEMPERATURE = "sampling_temperature"

HOW, RUNNING = "How it is computed", "Where it runs"

Molecules = Annotated[
    list[str],
    typer.Argument(help="SMILES in quotes, or files: one a line, or a .csv with a column smiles."),
]
Data = Annotated[
    list[Path], typer.Argument(help="Files of structures: SPICE HDF5, extended XYZ, MD17 npz.")
]
Out = Annotated[Path, typer.Option(help="File to write: .h5 (SPICE's layout), or .xyz, .xyz.gz.")]
Temperatures = Annotated[
    str, typer.Option(help="K, separated by commas; 0 adds the minimum itself.")
]
Conformers = Annotated[int, typer.Option(min=1, help="Starting conformers of each molecule.")]
Frames = Annotated[int, typer.Option(min=1, help="Of each conformer and temperature.")]
Interval = Annotated[float, typer.Option(rich_help_panel=HOW, help="Time between frames, fs.")]
Warmup = Annotated[float, typer.Option(rich_help_panel=HOW, help="Time before the first, fs.")]
Timestep = Annotated[float, typer.Option(rich_help_panel=HOW, help="Time step, fs.")]
Subset = Annotated[str, typer.Option(help="Name of the set, kept with every frame.")]
Seed = Annotated[int, typer.Option(min=0, help="Of conformers and dynamics.")]
Sampler = Annotated[
    str,
    typer.Option(
        "--with",
        rich_help_panel=HOW,
        help="What gives the forces: an mlpot model (see mlpot models), mmff, or what "
        "mlpot label takes.",
    ),
]
With = Annotated[
    str,
    typer.Option(
        "--with",
        help="gfn2-xtb, gfn1-xtb, aimnet2, so3lr, pyscf; an mlpot model; or the import path "
        "module:callable of any ASE calculator, such as ase.calculators.emt:EMT.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        rich_help_panel=HOW,
        help="KEY=VALUE for the calculator, as often as needed: -o model=aimnet2.jpt.",
    ),
]
KeepBroken = Annotated[
    bool,
    typer.Option(
        "--keep-broken", rich_help_panel=HOW, help="Keep frames whose bonds broke or formed."
    ),
]
Level = Annotated[
    str, typer.Option(rich_help_panel=HOW, help="Level of theory to store, if not the usual name.")
]
Workers = Annotated[
    int,
    typer.Option(
        min=0,
        rich_help_panel=RUNNING,
        help="Local processes, of one thread each unless OMP_NUM_THREADS is set; 0: this one.",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=RUNNING,
        help="Address of a dask scheduler, tcp://host:port, instead of local processes.",
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=RUNNING, help="File that keeps each result as it arrives; OUT.store."
    ),
]
Retry = Annotated[
    bool, typer.Option("--retry", rich_help_panel=RUNNING, help="Compute again what had failed.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


def conformers(
    smiles: Molecules,
    out: Out,
    temperatures: Temperatures = "300,500,700,1000",
    conformers: Conformers = 2,
    frames: Frames = 5,
    seed: Seed = 0,
    subset: Subset = "",
    sampler: Sampler = "pretrained-visnet",
    option: Options = None,
    interval: Interval = 50.0,
    warmup: Warmup = 100.0,
    timestep: Timestep = 1.0,
    keep_broken: KeepBroken = False,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    store: StoreOption = None,
    retry: Retry = False,
    quiet: Quiet = False,
) -> None:
    """Make geometries of molecules: RDKit conformers, then molecular dynamics.

    They have no labels yet: `mlpot label OUT` gives them energies and forces. A run that was
    interrupted goes on when the same command is given again.
    """
    from mlpot.data.conformers import conformers as run
    from mlpot.data.conformers import read_smiles
    from mlpot.data.formats.labelled import check_suffix, write_labelled
    from mlpot.data.sampling import Sampling

    check_suffix(out)
    sampling = Sampling(
        temperatures=_temperatures(temperatures),
        conformers=conformers,
        frames=frames,
        interval=interval,
        warmup=warmup,
        timestep=timestep,
        seed=seed,
        keep_broken=keep_broken,
    )
    labeller = _sampler(sampler, option)
    molecules = [word for source in smiles for word in read_smiles(source)]
    place = store or _store(out)
    where: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "retry": retry}
    with progress_bar("sampling", quiet, place) as bar:
        sampled = run(molecules, labeller, sampling, place, subset=subset, **where, **bar)
    _failures(sampled.failed, len(sampled.records), "molecule", place)
    write_labelled(out, sampled.records, {_TEMPERATURE: sampled.temperatures})
    if sampled.duplicates:
        aside(f"{counted(sampled.duplicates, 'molecule')} given more than once")
    _ended(sampled.dropped, place)
    groups = len({record.group for record in sampled.records})
    say(f"wrote {out}: {counted(len(sampled.records), 'frame')} of {counted(groups, 'molecule')}")
    say(f"next: mlpot label {out} --with gfn2-xtb --out labelled.h5")


def label(
    data: Data,
    out: Out,
    labeller: With,
    option: Options = None,
    level: Level = "",
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    units: Units = None,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    store: StoreOption = None,
    retry: Retry = False,
    quiet: Quiet = False,
) -> None:
    """Compute energies and forces of geometries with a quantum-chemistry program or a model.

    Frames that fail are left out and recorded with their reason. A run that was interrupted, even
    killed, goes on when the same command is given again, and nothing is computed twice.
    """
    from mlpot.data.formats.labelled import check_writable, write_labelled
    from mlpot.data.label import label as run

    how = labeller_of(labeller, option, level)
    records, temperatures = _with_temperatures(
        data, energy_key=energy_key, forces_key=forces_key, units=units
    )
    check_writable(out, records)
    place = store or _store(out)
    where: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "retry": retry}
    with progress_bar("labelling", quiet, place) as bar:
        labelled = run(records, how, place, **where, **bar)
    failed = {f"frame {i}": reason for i, reason in labelled.failed.items()}
    _failures(failed, len(labelled.records), "frame", place)
    sampled = {_TEMPERATURE: temperatures[labelled.indices]}
    write_labelled(out, labelled.records, labelled.extras | sampled)
    if labelled.duplicates:
        aside(f"{counted(labelled.duplicates, 'frame')} equal to others left out")
    say(
        f"{counted(labelled.computed, 'frame')} computed, {labelled.known:,} known before, "
        f"{len(labelled.failed):,} failed"
    )
    say(f"wrote {out}: {counted(len(labelled.records), 'frame')}, {how.level}")
    say(f"next: mlpot finetune {out} --out runs/mine")


def _store(out: Path) -> Path:
    return out.with_name(f"{out.name}.store")


def _temperatures(text: str) -> tuple[float, ...]:
    from mlpot.errors import InputError

    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise InputError(
            f"temperatures must be numbers with commas between them, as 300,600; got {text!r}"
        ) from None


def _sampler(name: str, option: list[str] | None) -> "Labeller | None":
    """What gives the forces of the dynamics; None is MMFF94."""
    from mlpot.errors import InputError

    if name != "mmff":
        return labeller_of(name, option, "")
    if option:
        raise InputError("mmff has no options. Leave out --option, or name another with --with")
    return None


def _with_temperatures(
    paths: list[Path], **options: str | None
) -> "tuple[list[Record], NDArray[np.float64]]":
    """Records of all files, and at which temperature each was sampled: [frames] K, or NaN."""
    import numpy as np

    from mlpot.data.formats.labelled import read_extra

    files = [read_data([path], **options) for path in paths]
    found = [read_extra(p, _TEMPERATURE, len(r)) for p, r in zip(paths, files, strict=True)]
    return [record for records in files for record in records], np.concatenate(found)


def _ended(reasons: list[str], store: Path) -> None:
    """Say why trajectories ended early, one line a reason."""
    most = Counter(reasons).most_common()
    for reason, number in most[:5]:
        aside(f"{counted(number, 'run')} of the dynamics ended early: {reason}")
    if len(most) > 5:
        aside(f"{len(most) - 5} more reasons are in {store}")


def _failures(failed: Mapping[str, str], good: int, noun: str, store: Path) -> None:
    """Say why things failed, one line a reason; raise if nothing is left."""
    from mlpot.errors import DataError

    if not failed:
        return
    reasons = Counter(failed.values()).most_common()
    if not good:
        raise DataError(
            f"every {noun} has failed; the most frequent reason: {reasons[0][0]}. Nothing was "
            "written; --retry computes them again"
        )
    for reason, number in reasons[:5]:
        first = next(name for name, why in failed.items() if why == reason)
        aside(f"{counted(number, noun)} failed (the first: {first}): {reason}")
    if len(reasons) > 5:
        aside(f"{len(reasons) - 5} more reasons are in {store}")
