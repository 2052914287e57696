"""What the verbs share: where to print, how errors look, files that several verbs read."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from mlpot.errors import MLPotError

if TYPE_CHECKING:
    from mlpot.data.record import Record


def console() -> Console:
    """Standard output. Made anew each time, so that redirections are seen."""
    return Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line as it is: square brackets are not markup."""
    console().print(text, markup=False)


def aside(text: str) -> None:
    """Print a line that is good to know but not a result."""
    console().print(text, style="dim", markup=False)


class Group(TyperGroup):
    """The verbs; an mlpot error becomes one line and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `mlpot models | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (MLPotError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            message = " ".join(str(error).split())
            if isinstance(error, OSError) and not isinstance(error, MLPotError):
                told = f"{error.filename}: {error.strerror}" if error.strerror else message
                message = f"{told}. Check the path and its permissions"
            Console(stderr=True, highlight=False, soft_wrap=True).print(
                f"[bold red]error:[/] {escape(message)}"
            )
            raise typer.Exit(1) from None


EnergyKey = Annotated[
    str | None, typer.Option(help="Name of the energies in extended XYZ, such as REF_energy.")
]
ForcesKey = Annotated[
    str | None, typer.Option(help="Name of the forces in extended XYZ, such as REF_forces.")
]
Units = Annotated[str | None, typer.Option(help="Of an npz file: kcal/mol or eV.")]


def read_data(paths: list[Path], **options: str | None) -> "list[Record]":
    """Records of all files, in order; the file's name is the subset where it has none."""
    from dataclasses import replace

    from mlpot.data.formats import read_all

    given = {name: value for name, value in options.items() if value is not None}
    records: list[Record] = []
    for path in paths:
        found = read_all([path], **given)
        records += [r if r.subset else replace(r, subset=path.name) for r in found]
    return records


def counted(number: int, noun: str) -> str:
    """1 frame, 2 frames, 12,345 frames"""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(path: Path) -> str:
    """Of a file, for people."""
    number = path.stat().st_size
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{max(1, round(number / 1e3))} kB"
