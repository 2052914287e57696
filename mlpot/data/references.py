"""Per-element reference energies, and the check for wrong units that they allow."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlpot.data.record import Record
from mlpot.errors import DataError
from mlpot.units import EV_TO_KJ_PER_MOL, HARTREE_TO_EV, KCAL_PER_MOL_TO_EV

#: eV per atom; a median further off than this is not chemistry
SUSPICIOUS = 100.0


def split_isolated(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """(one-atom frames, the rest)"""
    alone = [r for r in records if len(r.numbers) == 1]
    return alone, [r for r in records if len(r.numbers) != 1]


def references_from_isolated(records: Sequence[Record]) -> dict[int, float]:
    """Atomic number -> energy of the free atom, eV, from one-atom frames."""
    references = {}
    for record in records:
        if len(record.numbers) == 1 and record.energy is not None:
            references[int(record.numbers[0])] = float(record.energy)
    if not references:
        raise DataError("no one-atom frame with an energy; use least squares instead")
    return references


def fit_references(
    records: Sequence[Record], offset: Sequence[float] | None = None
) -> dict[int, float]:
    """Least-squares energy per element, eV.

    Composition may not determine them (a single molecule has one equation); then the
    solution of minimum norm is taken, whose sum over the molecule is right.

    Args:
        records: frames with energies.
        offset: eV per frame, a part of the energy that something else explains.
    """
    labelled = [i for i, r in enumerate(records) if r.energy is not None]
    if not labelled:
        raise DataError("no frame has an energy; reference energies cannot be fitted")
    counts, elements = composition([records[i] for i in labelled])
    energies = np.array([records[i].energy for i in labelled], dtype=float)
    if offset is not None:
        energies = energies - np.asarray(offset, dtype=float)[labelled]
    solution = np.linalg.lstsq(counts, energies, rcond=1e-10)[0]
    return {z: float(e) for z, e in zip(elements, solution, strict=True)}


def composition(records: Sequence[Record]) -> tuple[NDArray[np.float64], list[int]]:
    """Atoms of every element in every frame [frames, elements], and the elements."""
    table = np.stack([np.bincount(r.numbers, minlength=120) for r in records])
    elements = np.flatnonzero(table.any(axis=0))
    return table[:, elements].astype(float), [int(z) for z in elements]


def check_units(records: Sequence[Record], references: dict[int, float]) -> None:
    """Raise DataError where energies are off by more than 100 eV per atom from references."""
    known = [r for r in records if r.energy is not None and set(r.numbers) <= set(references)]
    if not known:
        return
    sums = np.array([sum(references[int(z)] for z in r.numbers) for r in known])
    energies = np.array([r.energy for r in known], dtype=float)
    atoms = np.array([len(r.numbers) for r in known])

    def off(factor: float) -> float:
        return float(np.median(np.abs(energies * factor - sums) / atoms))

    if off(1.0) <= SUSPICIOUS:
        return
    factors = {
        "hartree": HARTREE_TO_EV,
        "kcal/mol": KCAL_PER_MOL_TO_EV,
        "kJ/mol": 1.0 / EV_TO_KJ_PER_MOL,
    }
    best = min(factors, key=lambda name: off(factors[name]))
    hint = "They fit no common unit; look at the level of theory and at core electrons"
    if off(factors[best]) <= SUSPICIOUS:
        hint = f"They would fit if they were in {best}; convert them to eV (x {factors[best]:.6g})"
    raise DataError(
        f"wrong units suspected: energies are off by {off(1.0):.0f} eV per atom from the "
        f"reference energies. {hint}"
    )
