"""mlpot report: one page about suites of mlpot stability."""

from pathlib import Path
from typing import Annotated

import typer

from mlpot.cli.common import say, size


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="Of `mlpot stability`; several are compared."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; FOLDER/report.html, or report.html for several folders."),
    ] = None,
) -> None:
    """Draw what mlpot stability has found: one HTML file that needs no network.

    Survival, temperatures, drift, structures, errors, and worst frames to turn in 3D. A suite
    that is still running can be looked at.

    Examples: `mlpot report runs/stability/mine`,
    `mlpot report runs/stability/scratch runs/stability/pretrained --out compared.html`
    """
    from mlpot.analysis.report import write_report

    place = out or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    write_report(folders, place)
    say(f"wrote {place} ({size(place)}); open it in any browser")
