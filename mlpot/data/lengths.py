"""How near to each other two elements come in a set of frames."""

from collections.abc import Iterable

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlpot.data.record import Record
from mlpot.neighbors import NeighborFinder

#: atomic numbers are below this
_NUMBERS = 128


def shortest_lengths(records: Iterable[Record], cutoff: float) -> dict[str, float]:
    """Å, of every pair of elements ("H-C", by atomic number) that has one below ``cutoff`` Å;
    images of a periodic structure count."""
    shortest = np.full(_NUMBERS * _NUMBERS, np.inf)
    finder = NeighborFinder(cutoff)
    for record in records:
        edges, lengths = _edges(finder, record)
        low, high = np.sort(record.numbers[edges], axis=0)
        np.minimum.at(shortest, low * _NUMBERS + high, lengths)
    seen = np.flatnonzero(np.isfinite(shortest))
    return {pair_name(*divmod(int(k), _NUMBERS)): round(float(shortest[k]), 4) for k in seen}


def pair_name(a: int, b: int) -> str:
    """Symbols of two atomic numbers, the smaller first: H-C."""
    return "-".join(chemical_symbols[z] for z in sorted((a, b)))


def _edges(finder: NeighborFinder, record: Record) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """[2, E] and their lengths [E] Å."""
    positions = record.positions.astype(np.float64)
    edges, shifts = finder(positions, record.cell, record.pbc)
    apart = positions[edges[0]] + shifts - positions[edges[1]]
    return edges, np.linalg.norm(apart, axis=1)
