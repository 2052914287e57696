"""mlpot guard: tell a model what it was trained on."""

import time
from pathlib import Path
from typing import Annotated

import typer

from mlpot.cli.common import EnergyKey, ForcesKey, Units, counted, read_data, say, size


def guard(
    model: Annotated[
        str, typer.Argument(help="A .safetensors file, or the folder of a training run.")
    ],
    data: Annotated[
        list[Path], typer.Argument(help="What it was trained on, with forces; or frames like it.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the model here, and leave the old file as it is.")
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(help="JSON file of molecules that were not trained on, as in a recipe."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="The model it was fine-tuned from: lengths it knows are usual too."),
    ] = None,
    frames: Annotated[int, typer.Option(min=2, help="Look at so many frames at most.")] = 20_000,
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    units: Units = None,
) -> None:
    """Fit the statistics that the guard of `mlpot md` needs, and keep them in the model's file.

    Models from `mlpot finetune` have them already. This is for older ones, and for other data. The
    guard then knows a geometry outside the data from one inside; forces do not change.
    """
    from mlpot.errors import InputError
    from mlpot.train.guard import add_guard
    from mlpot.zoo import available_models, resolve

    if out is None and model in available_models():
        raise InputError(f"{model} comes with mlpot and is not altered; give a new file with --out")
    path = resolve(model)
    records = read_data(data, energy_key=energy_key, forces_key=forces_key, units=units)
    say(f"read {counted(len(records), 'frame')} from {counted(len(data), 'file')}")
    began = time.perf_counter()
    info, split = add_guard(
        path, records, out, held_out, frames, None if start is None else resolve(start)
    )
    told = info.extrapolation
    assert told is not None
    say(
        f"looked at {counted(told.frames, 'training frame')} and {told.held_back:,} held back "
        f"({split}) in {time.perf_counter() - began:.0f} s"
    )
    say(
        f"{100 * told.quantile:g} % of such frames stay below grade 1: on every atom an expected "
        f"force error under {1000 * told.unit:.0f} meV/Å, and a hidden layer near those of training"
    )
    say(f"wrote {out or path} ({size(out or path)})")
