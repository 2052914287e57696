"""False stops, and warnings before a run breaks: replicas of molecules under the guard.

    python -m benchmarks.guard.runs run --part calm --mode standard    # 300 K: false stops
    python -m benchmarks.guard.runs run --part warm --mode standard    # 1000 K
    python -m benchmarks.guard.runs run --part breaks --mode standard \\
        --model FILE --molecules bicyclopentylamine                    # 600 to 1200 K
    python -m benchmarks.guard.runs render                             # results/runs.md

A run has broken where a bond is 0.5 Å longer or shorter than usual (the criterion of MDsim),
looked at every 5 steps, or where the integrator gave up. Usual are the means at 300 K of labelled
frames, where there are some (benchmarks/headline), and else the lengths after relaxation; hydrogens
in hydrogen bonds do not count there. A flag counts if it is from an earlier step. A flag at 300 K
in a run that stays whole is a false stop.

Rows go to results/runs-PART.json as soon as they are known, with all that decides them; a call that
was cut off goes on, and one with other weights, rules or lengths is refused. The mode dev writes to
runs/guard.
"""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.accuracy.experiment import (
    begun_at,
    known,
    of_model,
    read_results,
    table,
    write_results,
)
from benchmarks.guard.parts import MODES, ROOT, Part, expanded, find
from benchmarks.guard.simulated import BATCH_ATOMS, EVERY, SEED, simulate
from mlpot.analysis.criteria import BOND_DEPARTURE
from mlpot.analysis.intervals import fraction
from mlpot.deploy.grader import FeatureGrader
from mlpot.deploy.load import load
from mlpot.md.guard import CHECKS, INTERVAL, LOOK, SURE
from mlpot.models.checkpoint import ModelInfo, load_potential, write_atomically
from mlpot.zoo import resolve

RESULTS = Path(__file__).parent / "results"
DEV = ROOT / "runs" / "guard"

Json = dict[str, Any]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def settings_of(name: str, part: Part, info: ModelInfo) -> Json:
    """What decides the numbers: the part, the weights, and the rule of the guard."""
    molecules = {n: find(n).molecule.key for n in (*part.molecules, *part.large)}
    told = {
        "part": {"name": name, **asdict(part)},
        "model": {"name": info.name, "sha256": info.sha256},
        "rule": {"interval": INTERVAL, "look": LOOK, "checks": CHECKS, "line": 1.0, "sure": SURE},
        "molecules": molecules,
        "broken": {"departure": BOND_DEPARTURE, "every": EVERY},
        "runs": {"seed": SEED, "batch_atoms": BATCH_ATOMS},
    }
    return json.loads(json.dumps(told))  # as it will be read back


def file_of(part: str, mode: str, model: str) -> Path:
    folder = DEV if mode == "dev" else RESULTS
    return folder / f"{of_model(f'runs-{part}', model)}.json"


def chosen(
    part: str,
    mode: str,
    molecules: str = "",
    ps: float | None = None,
    runs: int | None = None,
    timestep: float | None = None,
) -> Part:
    """A part as it is in a mode, less what is given."""
    found = MODES[mode][known(part, MODES[mode])]
    given: Json = {"ps": ps, "runs": runs, "timestep": timestep}
    if molecules:  # these, and no others
        given |= {"molecules": tuple(m.strip() for m in molecules.split(","))}
        given |= {"large": (), "large_runs": 0}
    found = replace(found, **{k: v for k, v in given.items() if v is not None})
    return replace(found, molecules=expanded(found.molecules))


Mode = Annotated[str, typer.Option("--mode", help="dev or standard")]


@app.command()
def run(
    part: Annotated[str, typer.Option(help="calm, warm, breaks or melting")] = "calm",
    mode: Mode = "dev",
    model: Annotated[str, typer.Option(help="name, or a .safetensors file")] = "pretrained-visnet",
    molecules: Annotated[str, typer.Option(help="with commas between; else the part's")] = "",
    ps: Annotated[float | None, typer.Option(help="of a run; else the part's")] = None,
    runs: Annotated[int | None, typer.Option(help="of each molecule and temperature")] = None,
    timestep: Annotated[float | None, typer.Option(help="fs")] = None,
    engine: Annotated[str, typer.Option(help="auto, compiled or eager")] = "",
    threads: int = 1,
    grades: Annotated[Path | None, typer.Option(help="folder for all grades, npz")] = None,
) -> None:
    """Simulate what is not in the results yet."""
    asked = chosen(part, known(mode, MODES), molecules, ps, runs, timestep)
    path = resolve(model)
    info = load_potential(path)[1]
    settings, file = settings_of(part, asked, info), file_of(part, mode, info.name)
    typed = {"part": part, "mode": mode, "model": info.name, "molecules": molecules, "ps": ps}
    typed |= {"runs": runs, "timestep": timestep, "engine": engine, "threads": threads}
    result: Json = {"command": command(typed), "rows": {}} | begun_at(file, settings)
    torch.set_num_threads(threads)
    opened = load(path, engine or ("eager" if mode == "dev" else "compiled"))
    grader = FeatureGrader(path)
    atoms = {name: len(find(name).molecule.numbers) for name in settings["molecules"]}
    typer.echo(f"{asked.seconds(atoms) / 3600:.2g} core-hours at 200 µs an atom and step, at most")
    for name, kelvin, count in asked.jobs():
        key = f"{name} | {kelvin:g}"
        if key in result["rows"]:
            continue
        where = None if grades is None else grades / f"{info.name}-{name}-{kelvin:g}"
        begin = time.process_time()
        row = simulate(opened, grader, find(name), kelvin, asked, count, where)
        row |= {"molecule": name, "kelvin": kelvin, "engine": opened.engine}
        row["core_hours"] = round((time.process_time() - begin) / 3600, 4)
        result["rows"][key] = row
        write_results(file, result)
        typer.echo(f"{key}: {line(row)}")


def command(options: Json) -> str:
    """What was typed, but for the folder of a model file."""
    words = [f"--{k} {v}" for k, v in options.items() if v not in (None, "")]
    return " ".join(["python -m benchmarks.guard.runs run", *words])


@app.command()
def render() -> None:
    """results/runs.md from results/runs-*.json."""
    found = [read_results(path) for path in sorted(RESULTS.glob("runs-*.json"))]
    if not any(result["rows"] for result in found):
        raise typer.BadParameter("there are no results yet: `run --mode standard`")
    text = page(found)
    write_atomically(RESULTS / "runs.md", text.encode())
    typer.echo(text)


def line(row: Json) -> str:
    """What came of a row, for whoever waits."""
    whole = row["runs"] - row["broken"]
    return (
        f"{row['broken']} of {row['runs']} broke, {row['flagged_before_break']} of them flagged "
        f"before; {row['flagged_but_whole']} of {whole} whole ones flagged"
    )


HEADER = (
    "molecule",
    "K",
    "runs x ps",
    "whole, flagged",
    "broke, flagged before",
    "fs before: least, median",
)


def page(results: list[Json]) -> str:
    """A table of every file, with what all its molecules say together; Wilson's 95 % intervals."""
    parts = ["# Runs under the guard"]
    for result in results:
        rows = list(result["rows"].values())
        s = result["settings"]
        temperatures = sorted({row["kelvin"] for row in rows})
        every = [_cells("*all*", [r for r in rows if r["kelvin"] == t]) for t in temperatures]
        hours = sum(row["core_hours"] for row in rows)
        rule = "Checks every {interval} steps, lengths every {look}; a flag is {checks} checks in a"
        rule = f"{rule} row above {{line:g}}, or one above {{sure:g}}.".format(**s["rule"])
        parts += [
            f"## {s['part']['name']}: {s['model']['name']}",
            "\n".join(verdict([r for r in rows if r["kelvin"] == t]) for t in temperatures),
            table(HEADER, [*every, *(_cells(r["molecule"], [r]) for r in rows)]),
            f"`{result['command']}`",
            f"Time step {s['part']['timestep']:g} fs, friction {s['part']['friction']:g}/ps. "
            f"{rule} {hours:.2g} core-hours. Weights (SHA-256): {s['model']['sha256'][:8]}. Commit "
            f"{result['commit']}; {result['machine']}.",
        ]
    return "\n\n".join(parts) + "\n"


def verdict(rows: list[Json]) -> str:
    """A sentence for one temperature. That a flag came before a break says little where whole runs
    are flagged as often, so the two stand side by side."""
    kelvin, broke = rows[0]["kelvin"], _total(rows, "broken")
    whole = _total(rows, "runs") - broke
    flagged = _share(_total(rows, "flagged_but_whole"), whole)
    what = "false stops" if kelvin == 300.0 else "whole runs that were flagged"
    simulated = sum(row["runs"] * row["ps"] for row in rows) / 1000
    text = f"- {kelvin:g} K, {simulated:.3g} ns or less: {what}: {flagged}"
    if broke:
        text += f"; flagged before the break: {_share(_total(rows, 'flagged_before_break'), broke)}"
    if lead := [fs for row in rows for fs in row["lead_fs"]]:
        by_length = _total(rows, "first_for_its_lengths")
        text += f", {np.median(lead):g} fs before it on the median ({by_length} for a length)"
    return text


def _total(rows: list[Json], key: str) -> int:
    return sum(row[key] for row in rows)


def _share(count: int, of: int) -> str:
    """'3 of 404, 0.743 % (0.253 to 2.16)'"""
    if not of:
        return "–"
    value, low, high = (100 * x for x in fraction(count, of))
    return f"{count} of {of}, {value:.3g} % ({low:.3g} to {high:.3g})"


def _cells(name: str, rows: list[Json]) -> list[str]:
    lead = [fs for row in rows for fs in row["lead_fs"]]
    broke, runs = _total(rows, "broken"), _total(rows, "runs")
    return [
        name,
        f"{rows[0]['kelvin']:g}",
        f"{runs} x {rows[0]['ps']:g}",
        _share(_total(rows, "flagged_but_whole"), runs - broke),
        _share(_total(rows, "flagged_before_break"), broke),
        f"{min(lead):g}, {np.median(lead):g}" if lead else "–",
    ]


if __name__ == "__main__":
    app()
