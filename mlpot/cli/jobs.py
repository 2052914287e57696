"""What the verbs that run many jobs share: who computes, options, a progress bar."""

import ast
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mlpot.cli.common import aside, console

if TYPE_CHECKING:
    from mlpot.data.labellers import Labeller


def labeller_of(name: str, option: Sequence[str] | None, level: str) -> "Labeller":
    """A known labeller, an import path, or an mlpot model."""
    from mlpot.data.labellers import LABELLERS
    from mlpot.data.labellers import labeller as make
    from mlpot.errors import UnknownModelError
    from mlpot.zoo import resolve

    options = parse_options(option)
    if name in LABELLERS or (":" in name and not Path(name).exists()):
        return make(name, options, level)
    try:
        path = resolve(name)
    except UnknownModelError as error:
        raise UnknownModelError(
            f"{error}. Other calculators: {', '.join(LABELLERS)}, or an import path module:callable"
        ) from error
    options = {"model": str(path), **options}
    return make("mlpot.calculator:MLPotCalculator", options, level or f"mlpot {path.stem}")


def parse_options(given: Sequence[str] | None) -> dict[str, Any]:
    """KEY=VALUE as Python values where they are, such as numbers; else as text. true, false and
    none are values in any case of letters: as text, "false" would be true to a calculator."""
    from mlpot.errors import InputError

    options: dict[str, Any] = {}
    for item in given or ():
        key, equals, value = item.partition("=")
        if not (equals and key.isidentifier()):
            raise InputError(f"an option must be KEY=VALUE, got {item!r}")
        if value.lower() in _WORDS:
            options[key] = _WORDS[value.lower()]
            continue
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options


_WORDS = {"true": True, "false": False, "none": None}

#: seconds between lines where there is no terminal for a bar: the log of a cluster's job
_BETWEEN_LINES = 60.0


@contextmanager
def progress_bar(what: str, quiet: bool, store: Path) -> Iterator[dict[str, Any]]:
    """A progress bar with the number of failures in it, or a line a minute where there is no
    terminal; Ctrl-C is no error."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
    screen = console()
    # in a log file a bar would leave empty lines
    hidden = quiet or not screen.is_terminal
    with Progress(*columns, console=screen, disable=hidden, transient=True) as progress:
        task = progress.add_task(what, total=None)
        failures, told = 0, time.monotonic()

        def start(total: int, known: int) -> None:
            progress.update(task, total=total, completed=known)

        def advance(good: bool) -> None:
            nonlocal failures, told
            failures += not good
            words = f"{what}, {failures} failed" if failures else what
            progress.update(task, advance=1, description=words)
            if hidden and not quiet and time.monotonic() - told > _BETWEEN_LINES:
                told, now = time.monotonic(), progress.tasks[task]
                aside(f"{words}: {now.completed:,.0f} of {now.total or 0:,.0f}")

        try:
            yield {"on_start": start, "on_result": advance}
        except KeyboardInterrupt:
            progress.stop()
            aside(f"interrupted; what is done is kept in {store}. Give the same command to go on")
            raise typer.Exit(130) from None
