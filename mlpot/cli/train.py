"""mlpot pretrain and mlpot finetune: the recipes from the command line."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlpot.cli.common import EnergyKey, ForcesKey, Units, counted, read_data, say

if TYPE_CHECKING:
    from mlpot.data.record import Record

Data = Annotated[
    list[Path], typer.Argument(help="Files of structures: extended XYZ, MD17 npz, SPICE HDF5.")
]
Out = Annotated[Path, typer.Option(help="Folder for the model, its split, logs, checkpoints.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="Recipe (TOML); the other options override it.")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")]
Rate = Annotated[
    float | None, typer.Option(help="Peak learning rate; from nothing, 3e-3 is better than 1e-3.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
Start = Annotated[
    str,
    typer.Option("--from", help="Model to start from: a name, a .safetensors file, or none."),
]
Level = Annotated[
    str | None, typer.Option(help="Level of theory of the labels, to be kept in the model file.")
]
Part = Annotated[float | None, typer.Option(help="Share (below 1) or number of frames.")]


def pretrain(
    data: Data,
    out: Out,
    config: Config = None,
    steps: Steps = None,
    learning_rate: Rate = None,
    quiet: Quiet = False,
) -> None:
    """Train a network to remove noise from geometries. Needs no energies.

    What it learns is a good start for fine-tuning: `mlpot finetune --from OUT/model.safetensors`.
    A run that was interrupted goes on when the same command is given again.
    """
    from mlpot.train.loop import quiet as silence
    from mlpot.train.pretrain import PretrainConfig
    from mlpot.train.pretrain import pretrain as run

    recipe = _recipe(PretrainConfig, config, out.name, {}, steps, learning_rate)
    records = _read(data)
    silence()
    start = time.perf_counter()
    info = run(records, recipe, out, progress=not quiet, report=_say)
    loss = info.provenance["validation"]["loss"]
    _say(f"validation loss {loss:.3f} (1 is a model that knows nothing)")
    _say(f"wrote {out / 'model.safetensors'} in {_clock(time.perf_counter() - start)}")
    _say(f"next: mlpot finetune DATA --from {out / 'model.safetensors'} --out DIR")


def finetune(
    data: Data,
    out: Out,
    start: Start = "pretrained-visnet",
    config: Config = None,
    steps: Steps = None,
    learning_rate: Rate = None,
    train: Part = None,
    validation: Part = None,
    test: Part = None,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    units: Units = None,
    level: Level = None,
    quiet: Quiet = False,
) -> None:
    """Fit a model to your own energies and forces. A few hundred frames go a long way.

    All frames must be of one level of theory, with energy and forces. Errors are measured on
    frames that were not trained on. A run that was interrupted goes on when the same command is
    given again.
    """
    from mlpot.train.finetune import FinetuneConfig
    from mlpot.train.finetune import finetune as run
    from mlpot.train.loop import quiet as silence
    from mlpot.zoo import resolve

    parts = {"train": train, "validation": validation, "test": test, "level": level}
    recipe = _recipe(FinetuneConfig, config, out.name, parts, steps, learning_rate)
    origin = None if start == "none" else resolve(start)
    records = _read(data, energy_key=energy_key, forces_key=forces_key, units=units)
    silence()
    began = time.perf_counter()
    info, errors = run(records, recipe, out, origin, progress=not quiet, report=_say)
    weights = out / "model.safetensors"
    _say(f"wrote {weights} ({info.name}) in {_clock(time.perf_counter() - began)}")
    _say(f"next: mlpot md molecule.pdb --model {weights}")
    _say(f"  or: mlpot export {weights} {out / 'model.pt'}")


def _say(text: str) -> None:
    """Print; of several ranks, the first alone."""
    from lightning.pytorch.utilities import rank_zero_only

    rank_zero_only(say)(text)


def _read(paths: list[Path], **options: str | None) -> "list[Record]":
    records = read_data(paths, **options)
    _say(f"read {counted(len(records), 'frame')} from {counted(len(paths), 'file')}")
    return records


def _recipe(
    kind: Any,
    path: Path | None,
    name: str,
    top: dict[str, Any],
    steps: int | None,
    learning_rate: float | None,
) -> Any:
    """The recipe of a TOML file, or the default one, with what was given on the command line."""
    from pydantic import ValidationError

    from mlpot.errors import InputError
    from mlpot.train.loop import read_toml

    config = kind() if path is None else read_toml(path, kind)
    raw = config.model_dump()
    if path is None:
        raw["name"] = name or raw["name"]
    raw |= {key: _number(value) for key, value in top.items() if value is not None}
    loop = {"steps": steps, "learning_rate": learning_rate}
    raw["loop"] |= {key: value for key, value in loop.items() if value is not None}
    if steps is not None and "warmup" in raw["loop"]:
        # a warm-up longer than the run would never reach the learning rate
        raw["loop"]["warmup"] = min(raw["loop"]["warmup"], steps // 10)
        raw["loop"]["validate_every"] = min(raw["loop"]["validate_every"], steps)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {first['msg']}, got {first['input']!r}") from error


def _number(value: Any) -> Any:
    """Counts are whole: 200, not 200.0; words stay words."""
    if isinstance(value, str):
        return value
    return int(value) if value >= 1 and value == int(value) else value


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
