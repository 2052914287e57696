"""Measure how far out simulations stay whole, and write the table.

    python -m benchmarks.stability run --mode standard           # simulates; goes on after a kill
    python -m benchmarks.stability run --model gfn2-xtb          # a peer, through the same code
    python -m benchmarks.stability analyze --mode standard       # sums up again, in seconds
    python -m benchmarks.stability show --mode dev               # prints the tables
    python -m benchmarks.stability render                        # results/MODE.md, the README

Trajectories and records go to runs/stability/MODEL-MODE, sums to results/MODEL-MODE.json. What came
of each run of the standard mode goes to results/MODEL-standard-runs.json as well: another machine
that has that file, and not the trajectories, goes on from there. Bonds are judged by their mean at
300 K, so do the ladder first where --only leaves scenarios for later.
"""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlpot.analysis.elsewhere import Elsewhere

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
    from mlpot.cli.jobs import parse_options, progress_bar

    if mode not in MODES:
        sys.exit(f"mode must be {', '.join(MODES)}, got {mode!r}")
    folder = folder_of(model, mode, out, label)
    place: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "retry": retry}
    tested = subject(model, parse_options(option), engine, dtype)
    kept = kept_runs(mode, model, label, tested.identity)
    place["elsewhere"] = {one["key"] for one in kept.runs}
    place["only"] = [name.strip() for name in only.split(",") if name.strip()]
    with progress_bar("simulating", False, folder) as bar:
        run_suite(tested, content(mode), folder, report=typer.echo, **place, **bar)
    analyze(mode, model, folder, label)


def runs_file(mode: str, model: str, label: str | None) -> Path:
    return RESULTS / f"{label_of(model, label)}-{mode}-runs.json"


def kept_runs(mode: str, model: str, label: str | None, identity: str) -> "Elsewhere":
    """What came of the runs of the standard mode, wherever they were done. The others are short
    enough to be done again."""
    from mlpot.analysis.elsewhere import Elsewhere

    path = runs_file(mode, model, label)
    if mode != "standard" or not path.is_file():
        return Elsewhere()
    told = json.loads(path.read_text(encoding="utf-8"))
    if told["identity"] != identity:
        sys.exit(
            f"results/{path.name} is of another model file (other weights, or other statistics of "
            "its guard) or another precision. Move it away, or name these results with --label"
        )
    return Elsewhere(told["runs"], told["lengths"], told["rules"])


def keep_runs(path: Path, identity: str, kept: "Elsewhere", summary: dict[str, Any]) -> None:
    """Add to that file what a summary knows, as far as it can be used without frames.

    Lengths too are of 300 K only: those of the input geometry would be used for ever.
    """
    from benchmarks.accuracy.experiment import write_results
    from mlpot.analysis.elsewhere import portable

    lines = {one["key"]: one for one in (*kept.runs, *filter(portable, summary["runs"]))}
    judged = {one["molecule"] for one in lines.values()}
    lengths = {**{n: v for n, v in summary["lengths"].items() if n in judged}, **kept.lengths}
    told = {"identity": identity, "rules": summary["rules"], "lengths": lengths}
    write_results(path, {**told, "runs": list(lines.values())})


@app.command()
def analyze(
    mode: Mode = "fast", model: Model = "pretrained-visnet", out: Out = None, label: Label = None
) -> None:
    """Sum up what has been simulated, in results/MODEL-MODE.json."""
    from benchmarks.stability.goals import goals
    from mlpot.analysis.records import Folder, write_json
    from mlpot.analysis.summary import analyze as sum_up

    folder = folder_of(model, mode, out, label)
    identity = Folder(folder).suite().identity
    kept = kept_runs(mode, model, label, identity)
    summary = sum_up(folder, kept)
    RESULTS.mkdir(exist_ok=True)
    if count := summary["provisional"]:
        typer.echo(
            f"{count} runs are judged by the input geometry, for want of frames at 300 K. Run the "
            "ladder: only then are they kept for other machines"
        )
    if mode == "standard":
        keep_runs(runs_file(mode, model, label), identity, kept, summary)
    del summary["lengths"]
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
    """Write all tables into results/MODE.md, and brief ones into the README: of the standard mode
    what the shipped model does, of the fast one how peers do beside it."""
    from benchmarks.stability.brief import beside, brief
    from benchmarks.stability.tables import END, PEERS, START, markdown, write_block

    results = read_results(mode)
    page = f"# Stability: {mode}\n\n{markdown(results)}\n"
    (RESULTS / f"{mode}.md").write_text(page, encoding="utf-8")
    typer.echo(f"wrote results/{mode}.md")
    blocks = {"standard": (brief, START), "fast": (beside, PEERS)}
    if mode not in blocks:
        return
    write, start = blocks[mode]
    if not write_block(readme, write(results), start):
        if mode == "fast":
            typer.echo(f"{readme.name} has no place for peers ({start} ... {END})")
            return
        sys.exit(f"{readme.name} has no lines {start!r} and {END!r} around a table")
    typer.echo(f"wrote the table in {readme.name}")


if __name__ == "__main__":
    app()
