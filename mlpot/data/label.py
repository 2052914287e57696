"""Label any geometries with any ASE calculator, on many processes; resumable, nothing twice."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mlpot.data.jobs import run
from mlpot.data.labellers import Labeller, calculator, forget_calculator, probe
from mlpot.data.record import Record, check_records
from mlpot.data.store import Store
from mlpot.errors import InputError, UnsupportedSystemError

# Å. A frame that was stored in float32 in between has the same key, always; one from a text file of
# 8 digits nearly always: where a coordinate falls on the edge of a step it is computed again.
_RESOLUTION = 1e-5

_EXTRAS = ("committee_energy_std", "committee_force_std")


@dataclass(frozen=True)
class Labelled:
    """What `label` gives back.

    Attributes:
        records: the labelled frames, in the order of the input; equal frames once.
        extras: `committee_energy_std` (eV) and `committee_force_std` (eV/Å, the standard
            deviation of the component on which the members differ most), each [frames] and only
            where the calculator gives them.
        failed: index in the input -> reason, for frames without labels.
        duplicates: frames of the input left out because an equal one precedes them.
        computed: frames computed now, failures included.
        known: frames whose labels, or failures, were found in the store.
        indices: [frames], where each of the records is in the input.
    """

    records: list[Record]
    extras: dict[str, NDArray[np.float64]]
    failed: dict[int, str]
    duplicates: int
    computed: int
    known: int
    indices: NDArray[np.int64]


def label(
    records: Sequence[Record],
    labeller: Labeller,
    store: str | Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    retry: bool = False,
    on_start: Callable[[int, int], None] = lambda total, known: None,
    on_result: Callable[[bool], None] = lambda good: None,
) -> Labelled:
    """Energies (eV) and forces (eV/Å) of all frames; labels they had are replaced.

    Every result is kept in the store as it arrives; called again, with more frames or after an
    interruption, it computes what is not there yet (see `frame_key`).

    The energy is the one that the forces are the gradient of: the calculator's free energy where
    it tells one, such as with smeared occupations.

    Args:
        records: geometries, labelled or not.
        labeller: see `mlpot.data.labellers.labeller`.
        store: file of results, grown and never rewritten.
        workers: local processes; 0 runs in this one, for a debugger.
        scheduler: address of a dask scheduler to use instead.
        retry: compute again what has failed in an earlier call.
        on_start: called once with the number of different frames, and of those already known.
        on_result: called after each frame, with False for a failure.

    Raises:
        DataError: geometries that cannot be used, or a file that is no store.
        InputError: the labeller cannot be set up, or no scheduler answers.
        MissingDependencyError: the labeller's package, or dask, is absent.
    """
    check_records(records, need_energy=False, need_forces=False, allow_charged=True)
    keys = [frame_key(record, labeller) for record in records]
    first: dict[str, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    with Store(store) as results:
        known = {k for k in first if k in results or (k in results.failed and not retry)}
        on_start(len(first), len(known))
        run(
            partial(calculate, labeller),
            {key: records[i] for key, i in first.items() if key not in known},
            results,
            workers=workers,
            scheduler=scheduler,
            first=partial(probe, labeller),
            on_result=on_result,
        )
        indices = np.array([i for k, i in first.items() if k in results], dtype=np.int64)
        labelled, extras = _collect(records, first, results, labeller)
        failed = {i: results.failed[k] for i, k in enumerate(keys) if k not in results}
    duplicates, computed = len(keys) - len(first), len(first) - len(known)
    return Labelled(labelled, extras, failed, duplicates, computed, len(known), indices)


def frame_key(record: Record, labeller: Labeller) -> str:
    """SHA-256 of what determines the labels of a frame."""
    content = hashlib.sha256(labeller.identity.encode())
    content.update(np.asarray(record.numbers, dtype="<i8").tobytes())
    content.update(_rounded(record.positions))
    content.update(f"{record.charge} {record.pbc}".encode())
    if record.cell is not None and any(record.pbc):
        content.update(_rounded(record.cell))
    return content.hexdigest()


def _rounded(values: NDArray) -> bytes:
    single = np.asarray(values, dtype=np.float32).astype(np.float64)
    steps = np.rint(single / _RESOLUTION)
    return steps.astype("<i8").tobytes()


def _collect(
    records: Sequence[Record], first: Mapping[str, int], results: Store, labeller: Labeller
) -> tuple[list[Record], dict[str, NDArray[np.float64]]]:
    """Labelled records, and what the committee says of each: NaN where it says nothing."""
    labelled: list[Record] = []
    extras: dict[str, list[float]] = {name: [] for name in _EXTRAS}
    for key, i in first.items():
        if key not in results:
            continue
        result = results[key]
        forces = np.array(result["forces"], dtype=np.float64).reshape(-1, 3)
        labels = {"energy": result["energy"], "forces": forces, "level": labeller.level}
        labelled.append(replace(records[i], **labels))
        for name, values in extras.items():
            values.append(result.get(name, np.nan))
    arrays = {name: np.array(values) for name, values in extras.items()}
    return labelled, {name: array for name, array in arrays.items() if np.isfinite(array).any()}


# --- on the worker -------------------------------------------------------------------------------


def to_atoms(record: Record) -> Atoms:
    """ASE atoms with the total charge where calculators look for it."""
    atoms = Atoms(record.numbers, record.positions, cell=record.cell, pbc=record.pbc)
    # Most calculators sum the initial charges; ours and some others read info, torchmd-net's
    # without a word for none.
    atoms.info["charge"] = record.charge
    if record.charge:
        atoms.set_initial_charges(np.full(len(atoms), record.charge / len(atoms)))
    return atoms


def check_electrons(numbers: NDArray, charge: int, name: str) -> None:
    """Raise for an odd number of electrons."""
    if (int(np.sum(numbers)) - charge) % 2:
        raise UnsupportedSystemError(
            f"an odd number of electrons (charge {charge:+d}), and {name} labels closed shells "
            "only. Check the charge, and that no hydrogen is missing"
        )


def calculate(labeller: Labeller, record: Record) -> dict[str, Any]:
    """Labels of one frame, as the store keeps them: eV, eV/Å.

    Raises:
        InputError: not of the labeller's kind, or its results are not finite numbers.
        Exception: whatever the calculator raises.
    """
    if labeller.closed_shell:
        check_electrons(record.numbers, record.charge, labeller.name)
    atoms = to_atoms(record)
    atoms.calc = calculator(labeller)
    try:
        forces = np.asarray(atoms.get_forces(), dtype=np.float64)
        energy = float(atoms.get_potential_energy())
        results = dict(atoms.calc.results)
    except BaseException:
        forget_calculator()
        raise
    energy = float(results.get("free_energy", energy))
    if forces.shape != (len(atoms), 3) or not (np.isfinite(energy) and np.isfinite(forces).all()):
        forget_calculator()
        raise InputError(f"energy or forces are not finite numbers (energy {energy} eV)")
    return {"energy": energy, "forces": forces.tolist(), **_committee(results)}


def _committee(results: dict[str, Any]) -> dict[str, float]:
    """Standard deviations, under the names that calculators of ensembles give them."""
    found: dict[str, float] = {}
    if "energy_std" in results:
        found["committee_energy_std"] = float(results["energy_std"])
    elif "energy_var" in results:  # MACE and So3krates
        found["committee_energy_std"] = float(np.sqrt(results["energy_var"]))
    if "forces_std" in results:
        found["committee_force_std"] = float(np.max(results["forces_std"]))
    elif "forces_comm" in results:  # [members, N, 3]
        found["committee_force_std"] = float(np.std(results["forces_comm"], axis=0).max())
    return {name: value for name, value in found.items() if np.isfinite(value)}
