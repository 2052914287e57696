"""Two atoms, from far apart to deep inside each other: has every pair of elements a wall?

    python benchmarks/accuracy/dimers.py run --model pretrained-visnet     # seconds
    python benchmarks/accuracy/dimers.py render                 # results/dimers.md and .png

Dimers are mostly radicals and no part of what a closed-shell model covers, so depths and lengths
of bonds are not judged. What a simulation needs is: repulsion that grows without a gap where
atoms are closer than in any bond, forces that are the gradient, nothing left at the cutoff.
"""

from collections.abc import Container
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
import typer
from ase.data import chemical_symbols, covalent_radii
from experiment import (  # this folder is where the script runs
    SHIPPED,
    commit,
    machine,
    made_at,
    of_model,
    save_plot,
    store,
    stored,
    table,
    write_page,
)
from numpy.typing import NDArray

from mlpot.data.lengths import pair_name
from mlpot.deploy.engines import DeployedModel
from mlpot.deploy.load import load
from mlpot.graph import Graph
from mlpot.models.priors import FADE

NAME = "dimers"
DEPTH = 0.6  # Å below the sum of covalent radii, where the curve begins
NEAREST = 0.3  # Å, or here if that is farther: closer atoms are refused at the door
#: Å from the beginning that must be repulsive. It ends 0.4 Å below the sum of the radii, where
#: triple bonds are compressed as well (N2 lies 0.32 Å below its sum)
WALL = 0.2
BEYOND = 0.5  # Å of the curve beyond the cutoff
STEP = 0.01  # Å
DRAWN = 3  # every so many points are stored
NUDGE = 1e-5  # Å, for finite differences; atoms that are no molecule have features as narrow as mÅ
#: Å inside the cutoff, where nothing may be left, or there would be a step
RIM = 0.02
#: Å inside the cutoff, where what the cutoff takes away is told; it is not judged
CUT_OFF = 0.1
#: what may be left there: eV, eV/Å
LEFT = (1e-4, 5e-3)
CONSISTENT = 1e-3  # eV/Å, largest |F + dE/dr|
SIGNIFICANT = 1e-4  # eV/Å, smaller forces have no sign
WELL = 0.5  # eV, deeper ones are told
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def distances(pair: tuple[int, int], cutoff: float) -> NDArray[np.float64]:
    """Å, ascending."""
    start = max(NEAREST, float(covalent_radii[list(pair)].sum()) - DEPTH)
    return np.arange(start, cutoff + BEYOND, STEP)


def dimer_graph(pair: tuple[int, int], r: NDArray[np.float64], cutoff: float) -> Graph:
    """All distances as structures of one batch; atoms lie on the x axis."""
    count = len(r)
    positions = torch.zeros(2 * count, 3, dtype=torch.float64)
    positions[1::2, 0] = torch.from_numpy(r)
    first = 2 * torch.from_numpy(np.flatnonzero(r < cutoff))
    edges = torch.stack([torch.stack([first, first + 1], 1), torch.stack([first + 1, first], 1)])
    edges = edges.reshape(2, -1)  # structure by structure, both directions
    return Graph(
        numbers=torch.tensor(pair).repeat(count),
        positions=positions,
        edge_index=edges,
        shifts=positions.new_zeros(edges.shape[1], 3),
        batch=torch.arange(count).repeat_interleave(2),
        cell=positions.new_zeros(count, 3, 3),
    )


def curve(
    model: DeployedModel, pair: tuple[int, int], r: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Interaction energy (eV, zero for two lone atoms) and force along r (eV/Å, positive is
    repulsive)."""
    given = np.append(r, model.cutoff + 1.0)  # the last: two lone atoms
    prediction = model.predict(dimer_graph(pair, given, model.cutoff))
    energy = prediction.energy.detach().numpy().astype(np.float64)
    force = prediction.forces.detach().numpy()[1::2, 0].astype(np.float64)
    return (energy - energy[-1])[:-1], force[:-1]


def slope(
    model: DeployedModel, pair: tuple[int, int], r: NDArray[np.float64]
) -> NDArray[np.float64]:
    """dE/dr by differences of fourth order: second order is not enough in a steep wall."""
    minus2, minus, plus, plus2 = (curve(model, pair, r + k * NUDGE)[0] for k in (-2, -1, 1, 2))
    return (8 * (plus - minus) - (plus2 - minus2)) / (12 * NUDGE)


def sign_flips(force: NDArray[np.float64]) -> int:
    """How often a force changes its direction."""
    signs = np.sign(force[np.abs(force) > SIGNIFICANT])
    return int((signs[1:] != signs[:-1]).sum())


def measure(model: DeployedModel, pair: tuple[int, int]) -> dict[str, Any]:
    """Curve and checks of a pair of elements."""
    r = distances(pair, model.cutoff)
    energy, force = curve(model, pair, r)
    deviation = np.abs(force + slope(model, pair, r))
    wall = r <= r[0] + WALL
    known = (model.info.floors or {}).get(pair_name(*pair))
    floor = float(covalent_radii[list(pair)].sum()) if known is None else known
    rim, tail = (int(np.searchsorted(r, model.cutoff - x)) for x in (RIM, CUT_OFF))
    lowest = int(energy.argmin())
    return {
        "pair": "-".join(chemical_symbols[z] for z in pair),
        "radii": float(covalent_radii[list(pair)].sum()),
        "wall_repulsive": bool((force[wall] > 0).all()),
        "wall_monotone": bool((np.diff(force[wall]) < 0).all()),
        "wall_flips": sign_flips(force[wall]),
        "floor": known,  # the cutoff where they never met in training; None: floors are not noted
        "repulsive_below_floor": bool((force[r < floor - FADE] > 0).all()),
        "flips": sign_flips(force),
        "weakest_wall_force": float(force[wall].min()),
        "deviation": float(deviation.max()),
        "energy_at_rim": float(np.abs(energy[rim:]).max()),
        "force_at_rim": float(np.abs(force[rim:]).max()),
        "energy_in_tail": float(np.abs(energy[tail:]).max()),
        "force_in_tail": float(np.abs(force[tail:]).max()),
        "minimum": [float(r[lowest]), float(energy[lowest])],
        "r": r[::DRAWN].round(3).tolist(),
        "energy": energy[::DRAWN].round(4).tolist(),
        "force": force[::DRAWN].round(4).tolist(),
    }


def failures(row: dict[str, Any]) -> list[str]:
    """What is wrong with a pair; nothing if it is sound."""
    found = {
        "no wall": not row["wall_repulsive"],
        "wall not monotone": not row["wall_monotone"],
        "attraction below the floor": not row["repulsive_below_floor"],
        "force is no gradient": row["deviation"] > CONSISTENT,
        "not zero at the cutoff": row["energy_at_rim"] > LEFT[0] or row["force_at_rim"] > LEFT[1],
    }
    return [name for name, wrong in found.items() if wrong]


@app.command()
def run(model: str = "pretrained-visnet") -> None:
    """Measure all pairs of elements that a model covers."""
    deployed = load(model, engine="eager", dtype="float64", device="cpu")
    info = deployed.info
    settings = {"model": info.name, "sha256": info.weights_sha256, "cutoff": deployed.cutoff}
    pairs = list(combinations_with_replacement(sorted(info.elements), 2))
    found = [measure(deployed, pair) for pair in pairs]
    rows = {row["pair"]: row for row in found}
    told = {"settings": settings, "commit": commit(), "machine": machine(), "pairs": rows}
    store(of_model(NAME, info.name), told)
    bad = [row["pair"] for row in found if failures(row)]
    print(f"{len(found)} pairs, {len(bad)} with a failure: {', '.join(bad) or 'none'}")


@app.command()
def render(model: str = SHIPPED) -> None:
    """Write results/dimers.md and dimers.png."""
    name = of_model(NAME, model)
    result = stored(name)
    page = write_page(name, f"# Dimer curves\n\n{tables(result)}\n\n{details(result)}")
    print(f"wrote {page.name} and {save_plot(plot(result), name).name}")


def tables(result: dict[str, Any]) -> str:
    """Markdown summary, from the results alone."""
    rows = list(result["pairs"].values())
    bonds = stored(result["settings"]["model"]).get("relations", {}).get("bonds")
    weakest = min(rows, key=lambda row: row["weakest_wall_force"])
    bad: dict[str, list[str]] = {}
    for row in rows:
        for failure in failures(row):
            bad.setdefault(failure, []).append(row["pair"])
    told = [f"- {name}: {', '.join(pairs)}" for name, pairs in bad.items()]

    def passed(name: str) -> str:
        return f"{len(rows) - len(bad.get(name, []))} of {len(rows)}"

    flips = [row["flips"] for row in rows]

    def largest(where: str) -> str:
        energy, force = (1e3 * max(r[f"{x}_{where}"] for r in rows) for x in ("energy", "force"))
        return f"{energy:.2g} meV, {force:.2g} meV/Å"

    checks = [
        [f"repulsive over the innermost {WALL:g} Å, the wall", passed("no wall")],
        ["repulsion grows monotonically inwards there", passed("wall not monotone")],
        [
            f"repulsive wherever it is {FADE:g} Å below the shortest length of training (floor)",
            passed("attraction below the floor"),
        ],
        ["sign flips of the force there, all pairs", str(sum(r["wall_flips"] for r in rows))],
        [
            "sign flips over the whole curve, mean and largest (a bond has one)",
            f"{np.mean(flips):.1f}, {max(flips)}",
        ],
        ["largest abs(F + dE/dr)", f"{max(r['deviation'] for r in rows):.1e} eV/Å"],
        [
            f"largest left {RIM:g} Å inside the cutoff",
            largest("at_rim"),
        ],
        [f"and {CUT_OFF:g} Å inside: what the cutoff takes away", largest("in_tail")],
        [
            "weakest force in a wall",
            f"{weakest['weakest_wall_force']:.1f} eV/Å ({weakest['pair']})",
        ],
    ]
    return "\n".join(
        [
            f"{len(rows)} pairs of elements of {result['settings']['model']}, from {DEPTH} Å below"
            f" the sum of covalent radii (at least {NEAREST} Å) to beyond the cutoff. The wall is"
            f" the innermost {WALL:g} Å of that, which ends where triple bonds are compressed as"
            " well; further out lie bonds, and a lone pair of atoms may attract.",
            "",
            table(["check", "result"], checks),
            "",
            *(["Pairs with a failure:", "", *told] if told else ["No pair fails a check."]),
            *(wells(rows, bonds) + too_short(rows, bonds) if bonds else []),
        ]
    )


def wells(rows: list[dict[str, Any]], bonds: Container[str]) -> list[str]:
    """Where pairs that were never bonded attract each other all the same, deepest first."""
    deep = sorted((r for r in rows if r["pair"] not in bonds), key=lambda row: row["minimum"][1])
    deep = [row for row in deep if row["minimum"][1] < -WELL]
    if not deep:
        return []
    told = [f"{r['pair']} {r['minimum'][1]:.1f} eV at {r['minimum'][0]:.2f} Å" for r in deep]
    return [
        "",
        f"Lone pairs of elements without a bond in training that bind by more than {WELL:g} eV: "
        f"{', '.join(told)}. Nothing was learned of such bonds.",
    ]


def too_short(rows: list[dict[str, Any]], bonds: Container[str]) -> list[str]:
    """Where a lone pair is lowest at a shorter length than any in training."""
    short = [r for r in rows if r["pair"] in bonds and r["minimum"][0] < r["floor"] - 2 * STEP]
    if not short:
        return []
    told = [f"{r['pair']} {r['minimum'][0]:.2f} Å ({r['floor']:.2f})" for r in short]
    return [
        "",
        "Lone pairs that are lowest at a shorter length than any in training (which is in "
        f"brackets): {', '.join(told)}. Most of these pairs are radicals, which training has not.",
    ]


def details(result: dict[str, Any]) -> str:
    header = "pair | radii, Å | from, Å | weakest wall force, eV/Å | monotone | flips"
    rows = [
        [
            name,
            f"{row['radii']:.2f}",
            f"{row['r'][0]:.2f}",
            f"{row['weakest_wall_force']:.1f}",
            "yes" if row["wall_monotone"] else "no",
            f"{row['wall_flips']}, {row['flips']}",
            f"{row['deviation']:.1e}",
            f"{row['minimum'][0]:.2f}, {row['minimum'][1]:.2f}",
            "-" if row["floor"] is None else f"{row['floor']:.2f}",
        ]
        for name, row in result["pairs"].items()
    ]
    columns = [*header.split(" | "), "abs(F + dE/dr), eV/Å", "minimum, Å, eV", "floor, Å"]
    return (
        f"{table(columns, rows)}\n\nFlips: in the wall, and over the whole curve. Minima are no "
        f"bonds of closed-shell molecules.\n\n{made_at(result)}"
    )


def plot(result: dict[str, Any]) -> Any:
    """Small multiples: energy against distance, a row and a column an element."""
    from matplotlib.figure import Figure

    names = [name.split("-") for name in result["pairs"]]
    elements = list(dict.fromkeys(symbol for name in names for symbol in name))
    size = len(elements)
    shape = (1.3 * size + 1.0, 1.1 * size + 1.0)
    figure = Figure(figsize=shape, layout="constrained")
    grid = figure.subplots(size, size, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat:
        axes.set_visible(False)
    for first, second in names:
        row = result["pairs"][f"{first}-{second}"]
        axes = grid[elements.index(second)][elements.index(first)]
        axes.set_visible(True)
        beyond = np.array(row["r"]) - row["radii"]
        axes.axhline(0.0, color="0.8", lw=0.6)
        axes.axvspan(beyond[0], beyond[0] + WALL, color="0.9")
        axes.plot(beyond, row["energy"], lw=1.0, color="C3" if failures(row) else "C0")
        axes.set_title(f"{first}-{second}", fontsize=7, pad=1)
        axes.tick_params(labelsize=6, length=2)
    grid[0][0].set(xlim=(-DEPTH, 2.0), ylim=(-10, 300))
    grid[0][0].set_yscale("symlog", linthresh=1.0)
    told = "distance less the sum of covalent radii, Å (grey: the wall; red: fails a check)"
    figure.supxlabel(told, fontsize=9)
    figure.supylabel("energy of interaction, eV (linear within 1 eV, then logarithmic)", fontsize=9)
    return figure


if __name__ == "__main__":
    app()
