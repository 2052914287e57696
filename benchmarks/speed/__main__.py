"""Measure speed, and write the README's table.

    python -m benchmarks.speed run --mode standard     # measures, writes JSON
    python -m benchmarks.speed training                # molecules/s in training alone, minutes
    python -m benchmarks.speed show --mode dev         # prints the tables
    python -m benchmarks.speed render                  # plot and README table

Run on an idle machine, pinned: ``taskset -c 2,3 python -m benchmarks.speed run``.
"""

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def efforts() -> dict[str, Any]:
    from benchmarks.speed.geometries import SYSTEMS
    from benchmarks.speed.timing import Effort

    small = ("ethanol", "aspirin", "peptide", "water-300")
    return {
        "dev": Effort(3, 0.05, 2.0, small, slow_setup=False),
        "fast": Effort(7, 0.1, 5.0, tuple(n for n in SYSTEMS if n != "water-6000")),
        "standard": Effort(7, 0.15, 10.0, tuple(SYSTEMS)),
    }


def results_file(mode: str) -> Path:
    return RESULTS / f"{mode}.json"


def read_result(mode: str) -> dict[str, Any]:
    path = results_file(mode)
    if not path.is_file():
        sys.exit(f"no {path.name}; first: python -m benchmarks.speed run --mode {mode}")
    return json.loads(path.read_text())


def for_readme() -> dict[str, Any]:
    """The standard mode, with what `training` has measured since."""
    result = read_result("standard")
    if results_file("training").is_file():
        result["training_alone"] = read_result("training")
    return result


@app.command()
def run(
    mode: Annotated[str, typer.Option(help="dev, fast or standard: seconds to an hour")] = "fast",
    threads: Annotated[int, typer.Option(help="besides one thread")] = 2,
    only: Annotated[list[str], typer.Option(help="names that contain this; not stored")] = [],  # noqa: B006
    system: Annotated[list[str], typer.Option(help="these systems only; not stored")] = [],  # noqa: B006
) -> None:
    """Measure; the whole of a mode is stored in results/<mode>.json. A run that was cut off goes on
    with the next system."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before any library starts its pool
    warnings.filterwarnings("ignore")  # the peers' own
    from benchmarks.speed import bound, geometries, machine, ours, peers, timing
    from benchmarks.speed.report import markdown

    effort = efforts().get(mode) or sys.exit(f"mode must be {', '.join(efforts())}, got {mode!r}")
    if unknown := set(system) - set(geometries.SYSTEMS):
        sys.exit(f"no system {', '.join(unknown)}; there are {', '.join(geometries.SYSTEMS)}")
    names = [n for n in geometries.SYSTEMS if n in (system or effort.systems)]
    everything = [*ours.candidates(), *peers.candidates(), bound.candidate()]
    chosen = [c for c in everything if not only or any(o in c.name for o in only)]
    before = machine.load_average()
    result: dict[str, Any] = {
        "mode": mode,
        "threads": threads,
        "rounds": effort.rounds,
        "machine": machine.describe(),
        "code": machine.code(),
        "systems": {name: geometries.SYSTEMS[name].atoms for name in names},
        "bound": {},
        "times": {},
        "seconds": 0.0,
    }
    part = results_file(mode).with_suffix(".part")
    if part.is_file() and not (only or system):
        result = _unfinished(part, result)
    for name in names:
        if name in result["times"]:
            continue
        started = time.perf_counter()
        atoms = geometries.load(name)
        typer.echo(f"{name}, {len(atoms)} atoms")
        rows = timing.time_all(chosen, atoms, threads, effort, typer.echo)
        result["times"][name] = [row.to_json() for row in rows]
        if len(atoms) <= 1500:
            result["bound"][name] = bound.describe(atoms)
        result["seconds"] = round(result["seconds"] + time.perf_counter() - started, 1)
        result["load_average"] = [before, machine.load_average()]
        if not (only or system):
            _write(part, result)
    if only or system:
        typer.echo(markdown(result))
        return
    _batches_and_memory(result, threads, effort)
    _write(part, result)
    part.replace(results_file(mode))
    typer.echo(f"wrote results/{mode}.json in {result['seconds']} s")


def _unfinished(part: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """What an interrupted run of the same code on the same machine has measured."""
    found = json.loads(part.read_text())
    same = all(found.get(key) == fresh[key] for key in ("threads", "rounds", "machine", "code"))
    return found if same else fresh


def _batches_and_memory(result: dict[str, Any], threads: int, effort: Any) -> None:
    from benchmarks.speed import memory, throughput
    from mlpot.deploy.engines import ENGINES

    typer.echo("replicas, training, memory")
    result["replicas"] = throughput.replicas(threads, effort)
    result["training"] = throughput.training(threads, effort)
    boxes = [name for name in effort.systems if name.startswith("water")]
    result["memory"] = {
        box: {engine: memory.measure(box, engine, threads) for engine in ENGINES} for box in boxes
    }


@app.command()
def training(threads: int = 2) -> None:
    """Measure training alone, in results/training.json, which takes the place of what `run` has
    measured of it: what was made faster there does not need an hour of peers."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from benchmarks.speed import machine, throughput

    told = {"machine": machine.describe(), "code": machine.code(), "load": [machine.load_average()]}
    told["training"] = throughput.training(threads, efforts()["standard"])
    told["load"].append(machine.load_average())
    _write(results_file("training"), told)
    for row in told["training"]:
        typer.echo(f"{row['task']}, {row['trainer']}: {row['molecules_per_s']} molecules/s")


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


@app.command()
def show(mode: str = "dev") -> None:
    """Print the tables of a mode."""
    from benchmarks.speed.report import markdown

    typer.echo(markdown(read_result(mode)))


@app.command()
def render(mode: str = "standard", readme: Path = ROOT / "README.md") -> None:
    """Write results/<mode>.md and .png, and the brief table into the README."""
    from benchmarks.speed import report

    if mode != "standard":
        sys.exit(f"the README needs --mode standard, not {mode!r}; for others: show --mode {mode}")
    result, file = for_readme(), results_file(mode)
    report.plot(result, file.with_suffix(".png"))
    page = f"# Speed: {mode}\n\n{report.markdown(result)}\n"
    file.with_suffix(".md").write_text(page, encoding="utf-8")
    if not report.write_readme(readme, report.brief(result)):
        sys.exit(f"{readme.name} has no lines {report.START!r} and {report.END!r} around a table")
    typer.echo(f"wrote {mode}.md, {mode}.png and the table in {readme.name}")


if __name__ == "__main__":
    app()
