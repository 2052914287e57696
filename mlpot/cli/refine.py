"""mlpot refine: simulate, label what the guard flags, fine-tune, and again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlpot.cli.common import (
    EnergyKey,
    ForcesKey,
    aside,
    console,
    counted,
    read_data,
    say,
    size,
)
from mlpot.cli.data import (
    HOW,
    Level,
    Options,
    Retry,
    Scheduler,
    With,
    Workers,
    _temperatures,
)
from mlpot.cli.jobs import labeller_of, progress_bar
from mlpot.cli.md import Engine, Input, NoPbc, Threads, _read
from mlpot.cli.train import Config, Quiet, Rate, Steps, _recipe

if TYPE_CHECKING:
    from rich.table import Table

    from mlpot.active.settings import RefineSettings
    from mlpot.data.labellers import Labeller
    from mlpot.md.structure import Structure
    from mlpot.train.finetune import FinetuneConfig

CHOICE, TRAINING = "Which frames are labelled", "How it is trained"

Model = Annotated[
    str, typer.Option(help="Start: a name (see mlpot models), or a .safetensors file of yours.")
]
Out = Annotated[Path, typer.Option(help="Folder for rounds, records and the model.")]
Temperatures = Annotated[
    str,
    typer.Option(
        "--temperatures",
        "--temperature",
        help="K, separated by commas: 300,600,1000. It is done when all are quiet.",
    ),
]
Length = Annotated[float, typer.Option("--ps", help="Length of each simulation, ps.")]
Replicas = Annotated[int, typer.Option(help="Simulations at each temperature, run together.")]
Rounds = Annotated[int, typer.Option(help="Trainings, at most.")]
Own = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        help="Your labelled frames, of the labeller's level of theory; trained on in every round.",
    ),
]
Frames = Annotated[
    int, typer.Option(rich_help_panel=CHOICE, help="Flagged frames to label in a round, at most.")
]
Initial = Annotated[
    int,
    typer.Option(
        rich_help_panel=CHOICE,
        help="Frames of the first round that nothing flagged, at the lowest temperature.",
    ),
]
Spacing = Annotated[
    float, typer.Option(rich_help_panel=CHOICE, help="Least time between frames of a replica, ps.")
]
Linger = Annotated[
    float,
    typer.Option(rich_help_panel=CHOICE, help="How long a flagged replica goes on, ps."),
]
MaxForce = Annotated[
    float,
    typer.Option(rich_help_panel=CHOICE, help="Leave out frames with a larger label, eV/Å."),
]
Timestep = Annotated[float, typer.Option(rich_help_panel=HOW, help="Of the simulations, fs.")]
Friction = Annotated[float, typer.Option(rich_help_panel=HOW, help="Of the thermostat, 1/ps.")]
Seed = Annotated[
    int, typer.Option(min=0, rich_help_panel=HOW, help="Of velocities, thermostat and conformer.")
]


def refine(
    structure: Input,
    labeller: With,
    out: Out,
    model: Model = "pretrained-visnet",
    temperatures: Temperatures = "300,600",
    ps: Length = 5.0,
    replicas: Replicas = 8,
    rounds: Rounds = 5,
    data: Own = None,
    frames: Frames = 50,
    initial: Initial = 50,
    spacing: Spacing = 0.025,
    linger: Linger = 0.2,
    max_force: MaxForce = 30.0,
    config: Config = None,
    steps: Steps = None,
    learning_rate: Rate = None,
    option: Options = None,
    level: Level = "",
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    timestep: Timestep = 0.5,
    friction: Friction = 10.0,
    engine: Engine = "auto",
    threads: Threads = None,
    seed: Seed = 0,
    no_pbc: NoPbc = False,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    retry: Retry = False,
    quiet: Quiet = False,
) -> None:
    """Make a model that holds for your molecule at your temperatures: active learning.

    Simulates, has the frames that the guard flags labelled, fine-tunes the start model on all
    labels so far, and again, until no replica is flagged. A run that was interrupted, even killed,
    goes on when the same command is given again; --rounds may be raised.

    Example: `mlpot refine CCO --with gfn2-xtb --temperatures 300,1000 --out runs/ethanol`
    """
    from mlpot.active.settings import RefineSettings
    from mlpot.train.finetune import FinetuneConfig

    counts: dict[str, Any] = {"replicas": replicas, "rounds": rounds, "seed": seed}
    chosen: dict[str, Any] = {"frames": frames, "initial": initial, "max_force": max_force}
    times: dict[str, Any] = {"ps": ps, "timestep": timestep, "spacing": spacing, "linger": linger}
    how: dict[str, Any] = {"friction": friction, "engine": engine, "threads": threads}
    settings = RefineSettings(_temperatures(temperatures), **counts, **chosen, **times, **how)
    # a fifth held back: the line of the guard is as good as the frames that set it
    parts = {} if config else {"validation": 0.2, "test": 0.0}
    recipe = _recipe(FinetuneConfig, config, out.name, parts, steps, learning_rate)
    method = labeller_of(labeller, option, level)
    records = read_data(data, energy_key=energy_key, forces_key=forces_key) if data else []
    system = _read(structure, not no_pbc, seed)
    where = {"data": records, "workers": workers, "scheduler": scheduler, "retry": retry}
    _show(_run(system, model, method, settings, recipe, out, quiet, where), out)


def _run(
    system: "Structure",
    model: str,
    method: "Labeller",
    settings: "RefineSettings",
    recipe: "FinetuneConfig",
    out: Path,
    quiet: bool,
    where: dict[str, Any],
) -> dict[str, Any]:
    """What is in rounds.json at the end; Ctrl-C is no error."""
    from mlpot.active.refine import refine as run
    from mlpot.train.loop import quiet as silence

    silence()
    try:
        return run(
            system,
            model,
            method,
            settings,
            recipe,
            out,
            progress=not quiet,
            report=aside,
            console=console(),
            watching=lambda what, store: progress_bar(what, quiet, store),
            **where,
        )
    except KeyboardInterrupt:
        aside(f"interrupted; what is done is kept in {out}. Give the same command to go on")
        raise typer.Exit(130) from None


def _show(told: dict[str, Any], out: Path) -> None:
    from mlpot.errors import MLPotError

    wide = console()
    wide.soft_wrap = False
    wide.print(_table(told["rounds"]))
    trained = sum(row["trained"] for row in told["rounds"])
    weights = out / "model.safetensors"
    if told["outcome"].startswith("stuck"):
        kept = f". {weights} is the model of the last of them" if trained else ""
        raise MLPotError(f"{told['outcome']} ({counted(trained, 'training')}){kept}")
    say(f"{told['outcome']} ({counted(trained, 'training')})")
    say(f"wrote {weights} ({size(weights)}) and {out / 'rounds.json'}")
    say(f"next: mlpot md MOLECULE --model {weights}")


def _table(rows: list[dict[str, Any]]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("round")
    for title in (
        "simulated at\nK",
        "stable\nps",
        "flagged or\nbroken",
        "frames\nlabelled",
        "rejected,\nfailed",
        "force MAE, meV/Å\nbefore > after",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        for i, at in enumerate(row["simulated"]):
            first = i == 0
            table.add_row(
                str(row["round"]) if first else "",
                f"{at['temperature']:g}",
                f"{at['stable_ps']:.3g}",
                f"{at['unstable']} of {at['replicas']}",
                *(_labelled(row) if first else ("", "", "")),
            )
    return table


def _labelled(row: dict[str, Any]) -> tuple[str, str, str]:
    frames = row["frames"]
    if "chosen" not in frames:
        return "–", str(frames["rejected"]), "–"
    bad = f"{frames['rejected']}, {frames['failed'] + frames['left_out']}"
    if "errors" not in row:
        return f"{frames['labelled']}", bad, "–"
    before, after = (_force_mae(row["errors"][k]) for k in ("before", "after"))
    return f"{frames['labelled']}", bad, f"{before} > {after}"


def _force_mae(errors: dict[str, float | None]) -> str:
    value = errors["force_mae"]
    return "–" if value is None else f"{1000 * value:.1f}"
