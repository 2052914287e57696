"""mlpot models: what comes with mlpot."""

from typing import Annotated

import typer

from mlpot.cli.common import console, say, size


def models(
    card: Annotated[
        str | None, typer.Option("--card", metavar="NAME", help="Print the model card of NAME.")
    ] = None,
) -> None:
    """List the models that come with mlpot: elements, label source, size."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from mlpot.errors import UnknownModelError
    from mlpot.zoo import available_models

    zoo = available_models()
    if card is not None:
        if card not in zoo:
            raise UnknownModelError(
                f"no model is named {card!r}; there are: {', '.join(sorted(zoo)) or 'none'}"
            )
        say(zoo[card].card_path.read_text(encoding="utf-8"))
        return
    if not zoo:
        say("No models come with this version. Train one: mlpot finetune --help")
        return
    table = Table(box=SIMPLE_HEAD, show_lines=True)
    for column in ("name", "elements", "size", "labels from", "summary"):
        table.add_column(column, no_wrap=column in ("name", "size"), overflow="fold")
    for entry in zoo.values():
        elements, level = _description(entry.name)
        table.add_row(entry.name, elements, size(entry.path), level, entry.summary)
    wide = console()
    wide.soft_wrap = False
    wide.print(table)
    say("Use a name wherever a model is asked for. More about one: mlpot models --card NAME")


def _description(name: str) -> tuple[str, str]:
    """Elements and label source, from the model's own file."""
    from ase.data import chemical_symbols

    from mlpot.models.checkpoint import load
    from mlpot.zoo import resolve

    info = load(resolve(name))[1]
    return " ".join(chemical_symbols[z] for z in info.elements), info.level
