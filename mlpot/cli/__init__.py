"""The command line. One module a verb; what is slow to import is imported when a verb runs."""

from typing import Annotated

import typer

from mlpot import __version__
from mlpot.cli.common import Group
from mlpot.cli.data import conformers, label
from mlpot.cli.evaluate import evaluate
from mlpot.cli.export import export
from mlpot.cli.guard import guard
from mlpot.cli.md import md
from mlpot.cli.models import models
from mlpot.cli.refine import refine
from mlpot.cli.report import report
from mlpot.cli.stability import stability
from mlpot.cli.train import finetune, pretrain

app = typer.Typer(
    name="mlpot",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mlpot {__version__}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="MLPOT_DEBUG", help="Show tracebacks of errors.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Molecular dynamics on a machine-learned potential of your molecule.

    To start: **mlpot md CCO** simulates ethanol with the model that comes with mlpot.

    With your own quantum-chemistry data: **mlpot finetune my.xyz --out runs/mine**, then
    **mlpot md molecule.pdb --model runs/mine/model.safetensors**.
    """


app.command("md")(md)
app.command("models")(models)
app.command("finetune")(finetune)
app.command("evaluate")(evaluate)
app.command("export")(export)
app.command("pretrain")(pretrain)
app.command("conformers")(conformers)
app.command("label")(label)
app.command("stability")(stability)
app.command("guard")(guard)
app.command("report")(report)
app.command("refine")(refine)
