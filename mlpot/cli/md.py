"""mlpot md: a simulation in one line."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlpot.cli.common import aside, console, counted, say, size

if TYPE_CHECKING:
    from mlpot.md.simulate import Summary
    from mlpot.md.structure import Structure


class Host(StrEnum):
    """The program that integrates."""

    openmm = "openmm"
    ase = "ase"


class Ensemble(StrEnum):
    """What is kept constant."""

    nvt = "nvt"
    nve = "nve"


class Guard(StrEnum):
    """What to do where the run leaves what the model was trained on."""

    auto = "auto"
    warn = "warn"
    save = "save"
    stop = "stop"
    off = "off"


class Format(StrEnum):
    """Of the trajectory."""

    dcd = "dcd"
    xtc = "xtc"


PROGRAM, RESULTS = "How it is computed", "Results"

# One name an option, so that the signature below reads like a list of defaults.
Input = Annotated[
    str, typer.Argument(help="A .pdb, .xyz, .sdf or .mol file, or SMILES in quotes: 'CCO'.")
]
Model = Annotated[str, typer.Option(help="Name (see mlpot models), .safetensors or .pt file.")]
Out = Annotated[Path, typer.Option(rich_help_panel=RESULTS, help="Folder for the results.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Number of time steps; 2000 if --ps is not given.")
]
Length = Annotated[
    float | None, typer.Option("--ps", help="Length in picoseconds, instead of --steps.")
]
Timestep = Annotated[float, typer.Option(help="Time step, fs. Hydrogens move freely: 0.5 or 1.")]
Temperature = Annotated[float, typer.Option(help="Temperature, K.")]
EnsembleOption = Annotated[
    Ensemble,
    typer.Option(
        case_sensitive=False,
        help="nvt: Langevin thermostat; nve: constant energy. From a minimum, nve settles near "
        "half of --temperature.",
    ),
]
Friction = Annotated[
    float, typer.Option(help="Of the thermostat, 1/ps; 1 disturbs the motion less than 10.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of velocities, thermostat and conformer.")]
Replicas = Annotated[
    int,
    typer.Option(
        help="Copies of the molecule, run together: more steps per second in all. Seeds count up "
        "from --seed; no box."
    ),
]
HostOption = Annotated[
    Host,
    typer.Option(
        case_sensitive=False,
        rich_help_panel=PROGRAM,
        help="Program that integrates; several replicas have an integrator of their own.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        rich_help_panel=PROGRAM,
        help="What runs the model. openmm: auto, compiled, torchforce or python; ase, or several "
        "replicas: auto, compiled, eager or torchscript. auto compiles for long runs.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PROGRAM, help="float32 or float64; left out, the model's own precision."
    ),
]
PlatformOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PROGRAM,
        help="OpenMM platform (CPU, CUDA, ...); for ase, or several replicas: cpu or cuda.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        rich_help_panel=PROGRAM,
        help="CPU threads of the model; more pay for larger systems and many replicas.",
    ),
]
FormatOption = Annotated[
    Format,
    typer.Option(
        "--format", case_sensitive=False, rich_help_panel=RESULTS, help="Trajectory format."
    ),
]
Interval = Annotated[
    int,
    typer.Option("--report", min=1, rich_help_panel=RESULTS, help="Steps between saved frames."),
]
GuardOption = Annotated[
    Guard,
    typer.Option(
        case_sensitive=False,
        help="Where the run leaves what the model was trained on: warn, save the frames as well "
        "(extrapolated.xyz), stop, or off. auto warns, if the model's file knows its training set.",
    ),
]
GuardModel = Annotated[
    str | None,
    typer.Option(
        help="For --guard: the .safetensors file that an exported model was made from; or several "
        "models of the same data (a.safetensors,b.safetensors), whose disagreement about forces "
        "then counts as well; every 100 steps times their number, as each costs a call."
    ),
]
GuardUnit = Annotated[
    float | None,
    typer.Option(
        help="Disagreement of several guard models at grade 1, eV/Å; left out, three times the "
        "force error on frames held back in training, where their files tell it."
    ),
]
Minimize = Annotated[bool, typer.Option(help="Relax the geometry a little before the start.")]
NoPbc = Annotated[bool, typer.Option("--no-pbc", help="Ignore a box in the file.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", rich_help_panel=RESULTS, help="Replace earlier results in --out."),
]
Quiet = Annotated[bool, typer.Option("--quiet", rich_help_panel=RESULTS, help="No progress bar.")]


def md(
    structure: Input,
    model: Model = "pretrained-visnet",
    out: Out = Path("runs/md"),
    steps: Steps = None,
    ps: Length = None,
    timestep: Timestep = 0.5,
    temperature: Temperature = 300.0,
    ensemble: EnsembleOption = Ensemble.nvt,
    friction: Friction = 10.0,
    guard: GuardOption = Guard.auto,
    guard_model: GuardModel = None,
    guard_unit: GuardUnit = None,
    seed: Seed = 0,
    replicas: Replicas = 1,
    host: HostOption = Host.openmm,
    engine: Engine = "auto",
    dtype: Dtype = None,
    platform: PlatformOption = None,
    threads: Threads = None,
    trajectory: FormatOption = Format.dcd,
    report: Interval = 20,
    minimize: Minimize = True,
    no_pbc: NoPbc = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Simulate a molecule and save its trajectory, energies and a plot.

    Examples: `mlpot md CCO --ps 5 --replicas 32`, `mlpot md protein.pdb --temperature 310`
    """
    from mlpot.md.simulate import simulate

    guarded: Any = {"guard": guard.value, "guard_model": guard_model, "guard_unit": guard_unit}
    summary = simulate(
        _read(structure, not no_pbc, seed),
        model,
        host=host.value,
        steps=_steps(steps, ps, timestep),
        timestep=timestep,
        temperature=temperature,
        friction=friction,
        ensemble=ensemble.value,
        seed=seed,
        replicas=replicas,
        out=out,
        report_interval=report,
        trajectory_format=trajectory.value,
        engine=engine,
        dtype=dtype,
        platform=platform,
        threads=threads,
        minimize=minimize,
        **guarded,
        overwrite=overwrite,
        progress=not quiet,
        report=aside,
        console=console(),
    )
    _show(summary)


def _read(source: str, periodic: bool, seed: int) -> "Structure":
    from mlpot.md.structure import read_structure

    system = read_structure(source, periodic=periodic, seed=seed)
    for note in system.notes:
        aside(f"note: {note}")
    box = "not periodic" if system.box is None else "periodic"
    say(f"{system.name}: {system.formula}, {counted(len(system.numbers), 'atom')}, {box}")
    return system


def _steps(steps: int | None, ps: float | None, timestep: float) -> int:
    from mlpot.errors import InputError

    if steps is not None and ps is not None:
        raise InputError("give --steps or --ps, not both")
    if ps is None:
        return 2000 if steps is None else steps
    if not (timestep > 0 and ps * 1000 >= timestep):
        raise InputError(
            f"--ps and --timestep must be positive, and at least one step long; got {ps} ps and "
            f"{timestep} fs"
        )
    return round(ps * 1000 / timestep)


def _show(summary: "Summary") -> None:
    if summary.interrupted:
        say("interrupted; what had been simulated is kept")
    say(_pace(summary))
    if summary.lost:
        say(f"{counted(len(summary.lost), 'replica')} broke on the way; see run.json")
    if summary.guard is not None:
        say(_guarded(summary.guard))
    say(f"mean temperature of the second half: {summary.mean_temperature:.0f} K")
    if summary.energy_drift is not None:
        say(f"drift of the total energy: {summary.energy_drift:+.3f} meV per atom and ps")
    trajectories = [p for name, p in summary.files.items() if name.startswith("replica_")]
    for path in summary.files.values():
        if path not in trajectories and path.exists():
            say(f"  {path} ({size(path)})")
    if trajectories:
        names = f"{trajectories[0].name} to {trajectories[-1].name}"
        say(f"  {trajectories[0].parent / names} ({counted(len(trajectories), 'file')})")


def _guarded(told: dict[str, Any]) -> str:
    """What the guard saw."""
    count, largest = len(told["flags"]), told["largest"]
    grade = "infinite" if largest["grade"] is None else f"{largest['grade']:.2f}"
    seen = f"the largest extrapolation grade was {grade} (step {largest['step']:,})"
    if told["left_out_frames"]:
        seen += f"; {counted(told['left_out_frames'], 'frame')} beyond the first were not saved"
    if not count:
        return f"inside what the model was trained on: {seen}"
    return f"left what the model was trained on {counted(count, 'time')}: {seen}"


def _pace(summary: "Summary") -> str:
    done = f"{counted(summary.steps, 'step')}, {summary.time:g} ps in {summary.seconds:.1f} s"
    if summary.replicas == 1:
        return f"{done}: {summary.steps_per_second:.1f} steps/s, {summary.ns_per_day:.2f} ns/day"
    together = summary.aggregate_steps_per_second
    nanoseconds = summary.ns_per_day * together / max(summary.steps_per_second, 1e-9)
    return (
        f"{done}, {counted(summary.replicas, 'replica')}: {together:.1f} steps/s and "
        f"{nanoseconds:.2f} ns/day in all"
    )
