"""Per-element reference energies: what a structure's energy is counted from.

Total energies are tens of thousands of eV, nearly all of it inside the atoms. A model learns
the rest, E - sum of references. They belong to one level of theory and never mix with another.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlpot.data.record import Record
from mlpot.errors import DataError
from mlpot.units import HARTREE_TO_EV, KCAL_PER_MOL_TO_EV, KJ_PER_MOL_TO_EV

#: eV per atom; bonds are worth less than 10, a wrong unit hundreds or thousands
SUSPICIOUS = 100.0

#: eV per atom and share of the references, within which a unit explains energies: what bonds and
#: another functional or basis are worth
_EXPLAINED = 10.0, 0.02

#: correlation with a model's energies, from which on their differences tell the unit
_TELLING = 0.5

_UNITS = {
    "hartree": HARTREE_TO_EV,
    "kcal/mol": KCAL_PER_MOL_TO_EV,
    "kJ/mol": KJ_PER_MOL_TO_EV,
}


def split_isolated(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """(frames of one atom, the rest), each in its order. One atom teaches a model no forces."""
    isolated = [r for r in records if len(r.numbers) == 1]
    return isolated, [r for r in records if len(r.numbers) != 1]


def reference_energies(
    records: Sequence[Record], isolated: Sequence[Record] = ()
) -> dict[int, float]:
    """Energy of each element, for E(structure) = sum over its atoms + what a model learns.

    Neutral one-atom frames give their element directly. The other elements come from least
    squares over the composition; where compositions do not determine them (one molecule, say),
    the solution of smallest norm is taken, which still reproduces the mean energy.

    Args:
        records: frames of one level of theory; those without energy are ignored.
        isolated: more one-atom frames, from a file of isolated atoms.

    Returns:
        {atomic number: eV} for every element in records and isolated.

    Raises:
        DataError: no energies; several levels of theory; `isolated` holds molecules; two
            energies for one isolated atom.
    """
    isolated_inside, molecules = split_isolated(records)
    references = _from_atoms([*isolated_inside, *isolated])
    molecules = [r for r in molecules if r.energy is not None]
    levels = {r.level for r in (*molecules, *isolated_inside, *isolated)} - {""}
    if len(levels) > 1:
        raise DataError(
            f"the frames are of several levels of theory: {sorted(levels)}. Their energies differ "
            "by electronvolts per atom; give each level its own references"
        )
    if not molecules and not references:
        raise DataError(
            "no frame has an energy, so there are no reference energies. Tell the reader under "
            "which name energies are stored, or pass references of this level of theory"
        )
    counts, elements = _compositions(molecules)
    energies = np.array([r.energy for r in molecules], dtype=np.float64)
    known = np.array([z in references for z in elements], dtype=bool)
    energies -= counts[:, known] @ np.array([references[z] for z in elements if z in references])
    # Without a ridge: it would bias the references of a diverse set.
    fitted, *_ = np.linalg.lstsq(counts[:, ~known], energies, rcond=None)
    unknown = [z for z in elements if z not in references]
    references.update(zip(unknown, fitted.tolist(), strict=True))
    return dict(sorted(references.items()))


def reference_sum(records: Sequence[Record], references: Mapping[int, float]) -> NDArray:
    """Sum of the references of every frame's atoms, [F] eV.

    Raises:
        DataError: an element has no reference.
    """
    counts, elements = _compositions(records)
    missing = [chemical_symbols[z] for z in elements if z not in references]
    if missing:
        raise DataError(
            f"no reference energy for {', '.join(missing)}. Fit references on data that hold "
            "these elements, or leave out the frames that do"
        )
    return counts @ np.array([references[z] for z in elements], dtype=np.float64)


def check_units(
    records: Sequence[Record],
    references: Mapping[int, float],
    predicted: Sequence[float] | None = None,
) -> None:
    """Refuse energies that are more than 100 eV per atom off references (median frame), if another
    unit explains it.

    Energies of another kind (valence electrons only: GFN2-xTB, pseudopotentials; atomisation) are
    as far off, and may by chance look like a unit. Where a model's own energies are given, its
    differences between frames of one composition decide.

    Args:
        records: frames; those without energy are ignored.
        references: {atomic number: eV} of about the same level of theory, not fitted to these
            very records (they would agree whatever the unit).
        predicted: eV, a model's energies of all the records.

    Raises:
        DataError: wrong units suspected, with the unit that would fit; an element without
            reference.
    """
    if predicted is not None:
        predicted = [e for e, r in zip(predicted, records, strict=True) if r.energy is not None]
    records = [r for r in records if r.energy is not None]
    if not records:
        return
    energies = np.array([r.energy for r in records], dtype=np.float64)
    atoms = np.array([len(r.numbers) for r in records])
    wanted = reference_sum(records, references)

    def off(factor: float) -> float:
        return abs(float(np.median((energies * factor - wanted) / atoms)))

    if off(1.0) <= SUSPICIOUS:
        return
    remedies = {f"they seem to be in {unit}: multiply by {f:.10g}": f for unit, f in _UNITS.items()}
    remedies |= {
        f"they seem to be in eV already, but were converted from {unit}: multiply by "
        f"{1 / f:.10g}, or read them as eV": 1 / f
        for unit, f in _UNITS.items()
    }
    remedy = min(remedies, key=lambda text: off(remedies[text]))
    floor, share = _EXPLAINED
    explained = max(floor, share * abs(float(np.median(wanted / atoms))))
    if off(remedies[remedy]) > explained:
        return  # another kind of energy, whose references are fitted anew
    if predicted is not None and _fits(records, energies, predicted, remedies[remedy]):
        return
    raise DataError(
        f"wrong units suspected: the energies are {off(1.0):.0f} eV per atom away from the "
        f"reference energies (median frame); {remedy}"
    )


def _fits(
    records: Sequence[Record],
    energies: NDArray[np.float64],
    predicted: Sequence[float],
    factor: float,
) -> bool:
    """Are differences of energies between frames of one composition as a model predicts them, more
    than if they were multiplied by ``factor``? False where they say nothing."""
    _, same = np.unique([str(sorted(r.numbers)) for r in records], return_inverse=True)
    count = np.bincount(same)
    x, y = (
        values - (np.bincount(same, values) / count)[same]
        for values in (np.asarray(predicted, dtype=np.float64), energies)
    )
    norm = float(np.sqrt(x @ x * (y @ y)))
    if norm == 0 or x @ y < _TELLING * norm or len(x) - len(count) < 2:
        return False
    ratio = float(np.sqrt(y @ y / (x @ x)))
    return bool(abs(np.log(ratio)) < abs(np.log(ratio * factor)))


def _from_atoms(isolated: Sequence[Record]) -> dict[int, float]:
    found: dict[int, float] = {}
    for record in isolated:
        if len(record.numbers) != 1:
            raise DataError(
                f"a frame of the isolated atoms has {len(record.numbers)} atoms. Pass frames "
                "of one atom each"
            )
        if record.energy is None or record.charge:
            continue
        z = int(record.numbers[0])
        if abs(found.setdefault(z, record.energy) - record.energy) > 1e-3:
            raise DataError(
                f"two energies for an isolated {chemical_symbols[z]} atom, {found[z]:.4f} and "
                f"{record.energy:.4f} eV. Keep the one of this level of theory and spin state"
            )
    return found


def _compositions(records: Sequence[Record]) -> tuple[NDArray[np.float64], list[int]]:
    """Atoms of each element in each frame, [F, elements], and the elements, ascending."""
    if not records:
        return np.zeros((0, 0)), []
    numbers = np.concatenate([r.numbers for r in records])
    frame = np.repeat(np.arange(len(records)), [len(r.numbers) for r in records])
    elements, column = np.unique(numbers, return_inverse=True)
    counts = np.zeros((len(records), len(elements)))
    np.add.at(counts, (frame, column), 1.0)
    return counts, elements.tolist()
