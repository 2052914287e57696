"""mlpot export: one file for hosts."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlpot.cli.common import say, size


class Precision(StrEnum):
    """Of the exported model."""

    float32 = "float32"
    float64 = "float64"


def export(
    model: Annotated[str, typer.Argument(help="Name of a model, or a .safetensors file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.pt", help="File to write.")],
    dtype: Annotated[
        Precision, typer.Option(help="float32 is faster, float64 more exact.")
    ] = Precision.float32,
) -> None:
    """Write a model as one file (TorchScript) that OpenMM, ASE and C++ programs can run.

    The file is checked against the original before it is written. To simulate from Python or
    with `mlpot md` you need no export: weights run as they are.
    """
    from mlpot.deploy.export import export as write
    from mlpot.errors import InputError

    if out.suffix != ".pt":
        raise InputError(f"the exported file must end in .pt, got {out}; that is how hosts know it")
    info = write(model, out, dtype.value)
    say(
        f"self-check against eager: energies differ by at most {info.energy_deviation:.1e} eV per "
        f"atom, forces by {info.force_deviation:.1e} eV/Å"
    )
    say(f"wrote {out} ({size(out)}, {info.dtype}, {info.model.name})")
    say(f"next: mlpot md molecule.pdb --model {out}")
