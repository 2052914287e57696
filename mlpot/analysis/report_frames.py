"""The worst frames of a suite in 3D: atoms and bonds, to be turned by hand."""

from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from numpy.typing import NDArray

from mlpot.analysis.criteria import INTEGRATOR, PIECES, bond_lengths, bond_name
from mlpot.analysis.records import Json
from mlpot.analysis.report_data import Side, group_name
from mlpot.analysis.report_figures import REFERENCE, Trace
from mlpot.analysis.report_page import Figure, Viewer

#: Å around the outermost atoms
MARGIN = 0.5


def worst_frames(sides: Sequence[Side]) -> Viewer | None:
    """The worst run of each molecule and model, broken ones first."""
    found = [
        (run, side)
        for side in sides
        for name in side.suite.molecules
        if (run := worst_run(side, name)) is not None
    ]
    found.sort(key=lambda of: _badness(*of))
    several = len(sides) > 1
    choices = [
        ("Broke" if run["broke"] else "Whole", _frame(run, side, several)) for run, side in found
    ]
    if not choices:
        return None
    caption = (
        "Of each molecule the run that broke first, or else the one with a bond furthest from its "
        "mean; that bond is red. Turn it with the mouse, or with a finger after a tap. Elements as "
        "in Jmol."
    )
    return Viewer("Frame", choices, caption)


def worst_run(side: Side, molecule: str) -> Json | None:
    return min(side.runs(molecule=molecule), key=lambda run: _badness(run, side), default=None)


def _badness(run: Json, side: Side) -> tuple[bool, float, float]:
    asked = side.records[run["key"]]["picoseconds"]
    part = run["stable_ps"] / asked if run["broke"] else 1.0
    return not run["broke"], part, -run["worst_departure"]


def _frame(run: Json, side: Side, several: bool) -> Figure:
    name, record = run["molecule"], side.records[run["key"]]
    numbers, bonds = side.numbers(name), side.bonds(name)
    if run["cause"] in (INTEGRATOR, PIECES):  # lost between frames: what came last tells more
        x = np.array(record["last"], dtype=np.float64)
        given = bond_lengths(np.array(side.suite.molecules[name]["positions"])[None], bonds)
        off = np.abs(bond_lengths(x[None], bonds) - given)[0]
        worst = bonds[int(np.nanargmax(off))] if np.isfinite(off).any() else None
        what = f"last sound step, {run['stable_ps']:.3f} ps"
    else:
        x = side.positions(run)[run["worst_frame"]].astype(np.float64)
        worst = next((b for b in bonds if bond_name(numbers, b) == run["worst_bond"]), None)
        time = run["worst_frame"] * record["interval"] / 1000
        what = f"{time:.3f} ps, {run['worst_bond']} off by {run['worst_departure']:.2f} Å"
    cause = f", {run['cause']}" if run["cause"] else ""
    title = f"{name}, {group_name(record)}{cause}: {what}"
    x = np.round(_facing(x), 3)
    return Figure(
        f"{side.label}: {title}" if several else title,
        _atoms(numbers, x, bonds, worst),
        _layout(x),
    )


def _layout(x: NDArray[np.float64]) -> Json:
    """A cube around the atoms; the page chooses how far the camera is, by what ``meta`` tells:
    how far atoms reach along each axis, in edges of the cube."""
    reach = np.abs(np.where(np.isfinite(x), x, 0.0)).max(axis=0) + MARGIN
    half = float(reach.max())
    bare = {"visible": False, "range": [-half, half]}
    return {
        "scene": {
            "xaxis": bare,
            "yaxis": bare,
            "zaxis": bare,
            "aspectmode": "cube",
            "dragmode": "orbit",
            "camera": {"up": {"x": 0.0, "y": 1.0, "z": 0.0}},
        },
        "meta": np.round(reach / (2 * half), 3).tolist(),
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "showlegend": False,
    }


def _atoms(
    numbers: NDArray[np.int64],
    x: NDArray[np.float64],
    bonds: NDArray[np.int64],
    worst: NDArray[np.int64] | None,
) -> list[Trace]:
    """Balls and sticks; what is no number is not drawn."""
    colours = [f"rgb({','.join(str(round(255 * c)) for c in jmol_colors[z])})" for z in numbers]
    other = [b for b in bonds if worst is None or b.tolist() != worst.tolist()]
    traces = [_sticks(x, other, {"color": REFERENCE, "width": 7})]
    if worst is not None:
        traces.append(_sticks(x, [worst], {"color": "#e02020", "width": 10}))
    balls = {
        "type": "scatter3d",
        "mode": "markers",
        **_xyz(x),
        "text": [f"{chemical_symbols[z]}{i}" for i, z in enumerate(numbers)],
        "hoverinfo": "text",
        "marker": {
            "color": colours,
            "size": [round(6 + 12 * float(covalent_radii[z]), 1) for z in numbers],
            "opacity": 1,
            "line": {"color": "#555", "width": 1},
        },
    }
    return [*traces, balls]


def _facing(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, 3] turned so that the shortest axis points to the viewer; never mirrored."""
    sound = np.isfinite(x).all(axis=1)
    if not sound.any():
        return x
    x = x - x[sound].mean(axis=0)
    axes = np.linalg.svd(x[sound], full_matrices=True)[2]
    axes[2] *= np.sign(np.linalg.det(axes))
    return x @ axes.T


def _sticks(x: NDArray[np.float64], bonds: Sequence[NDArray[np.int64]], style: Json) -> Trace:
    gap = np.full((1, 3), np.nan)
    ends = np.concatenate([np.empty((0, 3)), *(np.concatenate([x[b], gap]) for b in bonds)])
    return {"type": "scatter3d", "mode": "lines", **_xyz(ends), "line": style, "hoverinfo": "skip"}


def _xyz(x: NDArray[np.float64]) -> dict[str, list[float]]:
    return {name: x[:, k].tolist() for k, name in enumerate("xyz")}
