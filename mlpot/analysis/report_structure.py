"""Figures of geometries beside a reference: distances, bond lengths, dihedrals."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlpot.analysis.report_data import Side
from mlpot.analysis.report_figures import REFERENCE, Trace, line
from mlpot.analysis.report_page import Figure, axis
from mlpot.analysis.structure import (
    BIN,
    SECTORS,
    Distributions,
    dihedral_quartets,
    distributions,
)

#: dihedrals shown of a molecule: those of heavy atoms on which models and reference differ most
DIHEDRALS = 4

#: Å, bins of bond lengths
LENGTH = 0.01

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
Named = list[tuple[str, Distributions]]


def structure_figures(sides: Sequence[Side]) -> list[Figure]:
    """h(r), bond lengths and dihedrals of each molecule with a reference trajectory."""
    found: list[Figure] = []
    for name in dict.fromkeys(s["molecule"] for side in sides for s in side.summary["structure"]):
        having = [side for side in sides if side.folder.reference(name).is_file()]
        first = having[0]
        with np.load(first.folder.reference(name)) as file:
            frames, kelvin = file["positions"], float(file["temperature"])
        numbers, bonds = first.numbers(name), first.bonds(name)
        shown: Named = [("reference", distributions(numbers, bonds, frames))]
        for side in having:
            positions = _sound(side, name)
            if len(positions) > 1:
                shown.append((side.label, distributions(numbers, bonds, positions)))
        # the reference keeps its grey, and a model its colour, whoever else has frames
        tones = [None, *(i for label, _ in shown[1:] for i in _index(sides, label))]
        title = f"{name}, {kelvin:g} K"
        found += [
            _panel(f"{title}: distances h(r)", "distance, Å", shown, tones, _hr),
            _panel(f"{title}: bond lengths", "length, Å", shown, tones, _lengths),
        ]
        quartets = dihedral_quartets(numbers, bonds)
        for d in _chosen(numbers, quartets, [one for _, one in shown]):
            atoms = "-".join(f"{chemical_symbols[numbers[a]]}{a}" for a in quartets[d])
            found.append(
                _panel(f"{title}: dihedral {atoms}", "angle, °", shown, tones, _dihedral(d))
            )
    return found


def _index(sides: Sequence[Side], label: str) -> list[int]:
    return [i for i, side in enumerate(sides) if side.label == label]


def _sound(side: Side, molecule: str) -> NDArray[np.float32]:
    """[F, N, 3] Å of all runs that are compared with the reference, before they broke."""
    runs = side.runs(molecule=molecule, set="reference")
    parts = [side.positions(run)[: side.sound_frames(run)] for run in runs]
    empty = np.empty((0, len(side.numbers(molecule)), 3), dtype=np.float32)
    return np.concatenate([empty, *parts])


def _panel(title: str, x: str, shown: Named, tones: Sequence[int | None], of: Any) -> Figure:
    traces: list[Trace] = []
    for (label, one), tone in zip(shown, tones, strict=True):
        at, density = of(one)
        style = {"color": REFERENCE, "width": 3} if tone is None else line(tone)
        traces.append(
            {
                "x": np.round(at, 4).tolist(),
                "y": np.round(density, 5).tolist(),
                "name": escape(label),
                "mode": "lines",
                "line": style,
            }
        )
    return Figure(title, traces, {"xaxis": axis(x), "yaxis": axis("density", rangemode="tozero")})


def _hr(one: Distributions) -> Curve:
    last = int(np.flatnonzero(one.hr)[-1]) + 2 if one.hr.any() else len(one.hr)
    hr = one.hr[:last]
    return (np.arange(len(hr), dtype=np.float64) + 0.5) * BIN, hr


def _lengths(one: Distributions) -> Curve:
    values = one.bonds.ravel()
    if not len(values):
        return values, values
    edges = np.arange(values.min() - LENGTH, values.max() + 2 * LENGTH, LENGTH)
    return _histogram(values, edges)


def _dihedral(d: int) -> Any:
    def of(one: Distributions) -> Curve:
        at, density = _histogram(one.dihedrals[:, d], np.linspace(-np.pi, np.pi, SECTORS + 1))
        return np.rad2deg(at), np.deg2rad(density)

    return of


def _histogram(values: NDArray[np.float64], edges: NDArray[np.float64]) -> Curve:
    density, _ = np.histogram(values, edges, density=True)
    return np.array([(a + b) / 2 for a, b in pairwise(edges)]), density


def _chosen(
    numbers: NDArray[np.int64], quartets: NDArray[np.int64], shown: Sequence[Distributions]
) -> list[int]:
    """Of heavy atoms only where there are any such; furthest from the reference first."""
    heavy = [d for d, atoms in enumerate(quartets) if (numbers[atoms] > 1).all()]
    curves = {d: [_dihedral(d)(one)[1] for one in shown] for d in heavy or range(len(quartets))}
    off = {d: max((np.abs(c - first).sum() for c in others), default=0.0)
           for d, (first, *others) in curves.items()}  # fmt: skip
    return sorted(off, key=lambda d: -off[d])[:DIHEDRALS]
