"""Measure how far out simulations stay whole, and write the table.

    python -m benchmarks.stability run --mode standard           # simulates; goes on after a kill
    python -m benchmarks.stability run --model gfn2-xtb          # a peer, through the same code
    python -m benchmarks.stability analyze --mode standard       # sums up again, in seconds
    python -m benchmarks.stability show --mode dev               # prints the tables
    python -m benchmarks.stability render                        # the README's table

Trajectories and records go to runs/stability/MODEL-MODE, sums to results/MODEL-MODE.json. What came
of each run goes to results/MODEL-MODE-runs.json as well: another machine that has that file, and
not the trajectories, goes on from there.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlpot.analysis.scenarios import Scenario

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Mode = Annotated[str, typer.Option(help="dev, fast or standard: a minute to many core-hours")]
Model = Annotated[str, typer.Option(help="as for `mlpot stability`: a model or a calculator")]
Out = Annotated[Path | None, typer.Option(help="of trajectories and records")]
Label = Annotated[str | None, typer.Option(help="name of the results; else that of the model")]


def folder_of(model: str, mode: str, out: Path | None, label: str | None) -> Path:
    return out or ROOT / "runs" / "stability" / f"{label_of(model, label)}-{mode}"


def label_of(model: str, label: str | None) -> str:
    name = label or (Path(model).stem if Path(model).exists() else model)
    return re.sub(r"[^\w.-]", "-", name)


@app.command()
def run(
    mode: Mode = "fast",
    model: Model = "pretrained-visnet",
    option: Annotated[list[str], typer.Option(help="KEY=VALUE for a calculator")] = [],  # noqa: B006
    out: Out = None,
    label: Label = None,
    only: Annotated[str, typer.Option(help="scenarios to do now, by name: ladder,ramp")] = "",
    engine: str = "auto",
    dtype: str | None = None,
    workers: Annotated[int, typer.Option(help="processes; 0 runs in this one")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="address of a dask scheduler")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="do again what has failed")] = False,
) -> None:
    """Simulate what has not been simulated yet, and sum up."""
    from benchmarks.stability.content import content
    from mlpot.analysis.scenarios import MODES
    from mlpot.analysis.stability import run as run_suite
    from mlpot.analysis.subjects import subject
    from mlpot.cli.data import _bar, _options

    if mode not in MODES:
        sys.exit(f"mode must be {', '.join(MODES)}, got {mode!r}")
    folder = folder_of(model, mode, out, label)
    place: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "retry": retry}
    whole = content(mode)
    if only:
        whole = replace(whole, scenarios=chosen(whole.scenarios, only))
    tested = subject(model, _options(option), engine, dtype)
    place["elsewhere"] = {one["key"] for one in kept_runs(mode, model, label, tested.identity)}
    with _bar("simulating", False, folder) as bar:
        run_suite(tested, whole, folder, report=typer.echo, **place, **bar)
    analyze(mode, model, folder, label)


def chosen(scenarios: "Sequence[Scenario]", only: str) -> "list[Scenario]":
    """Those of some names, separated by commas."""
    names = {name.strip() for name in only.split(",")}
    if unknown := names - {s.name for s in scenarios}:
        known = ", ".join(sorted({s.name for s in scenarios}))
        sys.exit(f"no scenario is named {', '.join(sorted(unknown))}; there are {known}")
    return [s for s in scenarios if s.name in names]


def runs_file(mode: str, model: str, label: str | None) -> Path:
    return RESULTS / f"{label_of(model, label)}-{mode}-runs.json"


def kept_runs(mode: str, model: str, label: str | None, identity: str) -> list[dict[str, Any]]:
    """What came of the runs of this mode, wherever they were done; none if of another model."""
    path = runs_file(mode, model, label)
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return told["runs"] if told.get("identity") == identity else []


@app.command()
def analyze(
    mode: Mode = "fast", model: Model = "pretrained-visnet", out: Out = None, label: Label = None
) -> None:
    """Sum up what has been simulated, in results/MODEL-MODE.json."""
    from benchmarks.accuracy.experiment import write_results
    from benchmarks.stability.goals import goals
    from mlpot.analysis.records import Folder, write_json
    from mlpot.analysis.summary import analyze as sum_up
    from mlpot.analysis.summary import portable

    folder = folder_of(model, mode, out, label)
    identity = Folder(folder).suite().identity
    kept = kept_runs(mode, model, label, identity)
    summary = sum_up(folder, kept)
    RESULTS.mkdir(exist_ok=True)
    keep = {one["key"]: one for one in (*kept, *filter(portable, summary["runs"]))}
    write_results(
        runs_file(mode, model, label), {"identity": identity, "runs": list(keep.values())}
    )
    summary["runs"] = [one for one in summary["runs"] if one["broke"]]  # the rest is in groups
    summary["goals"] = [goal._asdict() | {"met": goal.met} for goal in goals(summary)]
    write_json(RESULTS / f"{label_of(model, label)}-{mode}.json", summary)
    typer.echo(f"wrote results/{label_of(model, label)}-{mode}.json")


def read_results(mode: str) -> list[dict[str, Any]]:
    """Of all models, the shipped one first."""
    files = sorted(RESULTS.glob(f"*-{mode}.json"), key=lambda f: (f.stem[:10] != "pretrained", f))
    if not files:
        sys.exit(f"no results; first: python -m benchmarks.stability run --mode {mode}")
    return [json.loads(file.read_text()) for file in files]


@app.command()
def show(mode: Mode = "dev") -> None:
    """Print the tables of a mode."""
    from benchmarks.stability.tables import markdown

    typer.echo(markdown(read_results(mode)))


@app.command()
def render(mode: Mode = "standard", readme: Path = ROOT / "README.md") -> None:
    """Write the table into the README."""
    from benchmarks.stability.tables import END, START, markdown, write_block

    if mode != "standard":
        sys.exit(f"the README needs --mode standard, not {mode!r}; for others: show --mode {mode}")
    if not write_block(readme, markdown(read_results(mode))):
        sys.exit(f"{readme.name} has no lines {START!r} and {END!r} around a table")
    typer.echo(f"wrote the table in {readme.name}")


if __name__ == "__main__":
    app()
