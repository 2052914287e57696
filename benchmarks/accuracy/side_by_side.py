"""The potentials of the zoo side by side: their errors, and what a step costs.

    python benchmarks/accuracy/side_by_side.py run      # times, in turns; on an idle machine
    python benchmarks/accuracy/side_by_side.py show

Errors are those that `model_card.py run` has measured. Times are of energy and forces through the
ASE calculator, compiled, medians over rounds in which all models take turns.
"""

import statistics
from collections.abc import Iterator
from typing import Any

import torch
import typer
from ase.io import read as read_atoms
from card_tables import ZERO_SHOT
from experiment import (  # this folder is where the script runs
    commit,
    machine,
    store,
    stored,
    table,
)
from front import SYSTEMS, TIMED, evaluations

from mlpot import MLPotCalculator
from mlpot.models.checkpoint import load
from mlpot.zoo import available_models, resolve

NAME = "side-by-side"
ROUNDS, CALLS = 5, 40
app = typer.Typer(add_completion=False)


def potentials() -> Iterator[str]:
    """Names of the models with energies, that mlpot is named after first."""
    for name in sorted(available_models(), key=lambda name: (len(name), name)):
        if load(resolve(name))[1].kind == "potential":
            yield name


@app.command()
def run(threads: int = 2, rounds: int = ROUNDS, calls: int = CALLS) -> None:
    """Time all models and write results/side-by-side.json."""
    torch.set_num_threads(threads)
    names = list(potentials())
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for system in TIMED:
        everyone = {}
        for name in names:
            everyone[name] = read_atoms(SYSTEMS / f"{system}.xyz")
            everyone[name].calc = MLPotCalculator(name, engine="compiled")
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, atoms in everyone.items():
                times[name].append(statistics.median(evaluations(atoms, calls)))
        for name in names:
            found[name][system] = statistics.median(times[name])
    rows = {n: {"sha256": load(resolve(n))[1].weights_sha256, "ms": ms} for n, ms in found.items()}
    told = {"threads": threads, "models": rows, "commit": commit(), "machine": machine()}
    store(NAME, told)
    typer.echo(tables(told))


def tables(result: dict[str, Any]) -> str:
    """Markdown of the models whose errors and times are of the same weights."""
    reference = next(iter(ZERO_SHOT))
    rows = []
    for name, timed in result["models"].items():
        errors = stored(name)
        if errors.get("sha256") == timed["sha256"]:
            held, outside = errors["held_out_all"], errors["zero_shot_forces"].get(reference)
            rows.append(
                [
                    f"`{name}`",
                    f"{errors['parameters']:,}",
                    *(f"{held[k]:.1f}" for k in ("energy_mae", "energy_rmse")),
                    *(f"{held[k]:.0f}" for k in ("force_mae", "force_rmse")),
                    f"{outside['force_rmse']:.0f}" if outside else "-",
                    *(f"{timed['ms'][system]:.1f}" for system in TIMED),
                ]
            )
    if len(rows) < 2:
        return ""
    header = ["model", "parameters", "E MAE", "E RMSE", "F MAE", "F RMSE"]
    header += [f"F RMSE, {reference}", *(f"{system}, ms" for system in TIMED)]
    return (
        "All held-out molecules (meV/atom, meV/Å), and a call of energy and forces (aspirin: 21 "
        f"atoms, peptide: 140; compiled, {result['threads']} threads; {result['machine']}):\n\n"
        f"{table(header, rows)}"
    )


@app.command()
def show() -> None:
    """Print the table."""
    typer.echo(tables(stored(NAME)))


if __name__ == "__main__":
    app()
