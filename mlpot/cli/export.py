"""mlpot export: one file for hosts."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlpot.cli.common import aside, say, size


class Precision(StrEnum):
    """Of the exported model."""

    float32 = "float32"
    float64 = "float64"


class Format(StrEnum):
    """Of the file."""

    torchscript = "torchscript"
    aoti = "aoti"


def export(
    model: Annotated[str, typer.Argument(help="Name of a model, or a .safetensors file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.pt", help="File to write; .pt2 for aoti.")],
    dtype: Annotated[
        Precision, typer.Option(help="float32 is faster, float64 more exact.")
    ] = Precision.float32,
    format: Annotated[
        Format | None,
        typer.Option(
            case_sensitive=False,
            help="torchscript: runs anywhere, also in C++; aoti: machine code for processors like "
            "this one, much faster. Left out, the name of OUT says.",
        ),
    ] = None,
) -> None:
    """Write a model as one file that OpenMM and ASE can run: TorchScript, or compiled.

    The file is checked against the original before it is written. To simulate from Python or
    with `mlpot md` you need no export: weights run as they are.
    """
    from mlpot.deploy.export import export as write
    from mlpot.errors import InputError

    if out.suffix not in (".pt", ".pt2"):
        raise InputError(
            f"the exported file must end in .pt (torchscript) or .pt2 (aoti), got {out}; that is "
            "how hosts know it"
        )
    chosen = format.value if format else {".pt": "torchscript", ".pt2": "aoti"}[out.suffix]
    if chosen == "aoti":
        aside("compiling, for a minute or two")
    info = write(model, out, dtype.value, chosen)
    say(
        f"self-check against eager: energies differ by at most {info.energy_deviation:.1e} eV per "
        f"atom, forces by {info.force_deviation:.1e} eV/Å"
    )
    say(f"wrote {out} ({size(out)}, {info.dtype}, {info.model.name})")
    say(f"next: mlpot md molecule.pdb --model {out}")
