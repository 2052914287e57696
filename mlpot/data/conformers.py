"""Many SMILES -> thermally sampled geometries, on many processes; resumable."""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlpot.data.jobs import run
from mlpot.data.labellers import Labeller, forget_calculator, probe
from mlpot.data.record import Record
from mlpot.data.sampling import Sampling, sample
from mlpot.data.store import Store
from mlpot.errors import DataError, InputError, UnsupportedSystemError, require

# A name that ends so is a file, though it may be absent; no SMILES ends so.
_SMILES_FILES = (".smi", ".smiles", ".txt", ".csv")


@dataclass(frozen=True)
class Sampled:
    """What `conformers` gives back.

    Attributes:
        records: frames, molecules in the order given. The group is the canonical SMILES.
        temperatures: [frames] K, at which each was sampled.
        failed: SMILES as given -> reason, for molecules without frames.
        dropped: why trajectories ended early, one reason for each: bonds changed, or the
            calculator raised.
        duplicates: SMILES left out because another spelling precedes them.
    """

    records: list[Record]
    temperatures: NDArray[np.float64]
    failed: dict[str, str]
    dropped: list[str]
    duplicates: int


def conformers(
    smiles: Sequence[str],
    labeller: Labeller | None,
    sampling: Sampling,
    store: str | Path,
    *,
    subset: str = "",
    workers: int = 1,
    scheduler: str | None = None,
    retry: bool = False,
    on_start: Callable[[int, int], None] = lambda total, known: None,
    on_result: Callable[[bool], None] = lambda good: None,
) -> Sampled:
    """Thermally sampled geometries of molecules. A molecule that fails does not stop the others.

    Each molecule's frames are kept in the store as they are ready; called again with the same
    store after an interruption, or with more molecules, it makes what is not there yet.

    Args:
        smiles: molecules; several, as in "O.O", are set side by side.
        labeller: gives the forces (see `mlpot.data.labellers.labeller`); None is MMFF94.
        sampling: temperatures, lengths, seed.
        store: file of results, grown and never rewritten.
        subset: stored with the frames.
        workers, scheduler, retry, on_start, on_result: as for `mlpot.data.label.label`, by
            molecule.

    Raises:
        InputError: no SMILES; the labeller cannot be set up.
        MissingDependencyError: RDKit, the labeller's package or dask is absent.
    """
    if not smiles:
        raise InputError("there are no SMILES. Give them in quotes, or in a .smi file")
    require("rdkit.Chem", "mlpot[chem]", "reading SMILES")
    names, failed = _names(smiles)
    invalid = sum(given in failed for given in smiles)
    keys = {name: _key(name, labeller, sampling) for name in names}
    with Store(store) as results:
        known = {k for k in keys.values() if k in results or (k in results.failed and not retry)}
        on_start(len(names), len(known))
        run(
            partial(_sample_job, labeller, sampling),
            {key: name for name, key in keys.items() if key not in known},
            results,
            workers=workers,
            scheduler=scheduler,
            first=partial(_probe, labeller),
            on_result=on_result,
        )
        found = {name: results[key] for name, key in keys.items() if key in results}
        failed |= {names[n]: results.failed[k] for n, k in keys.items() if n not in found}
    return Sampled(
        records=[r for name, result in found.items() for r in _records(name, result, subset)],
        temperatures=np.array([t for r in found.values() for t in r["temperatures"]]),
        failed=failed,
        dropped=[why for result in found.values() for why in _reasons(result["dropped"])],
        duplicates=len(smiles) - invalid - len(names),
    )


def read_smiles(source: str | Path) -> list[str]:
    """SMILES of a file, whatever its suffix, or the one given.

    Of each line the first word; of a .csv the column that the first row calls smiles (in any
    case), else the first column. Lines that begin with # and a first line "smiles" are skipped.

    Raises:
        DataError: a file that holds none, is absent, or is no text.
    """
    path = Path(source)
    # of os.path: what is too long for a name is no file, and no error
    if not os.path.isfile(path):
        if path.suffix.lower() not in _SMILES_FILES:
            return [str(source)]
        raise DataError(f"{path}: no such file. Check the path; it is relative to {Path.cwd()}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a mark in front
        found = _column(text) if path.suffix.lower() == ".csv" else _first_words(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: it is no text file. Give one SMILES a line") from error
    except csv.Error as error:
        raise DataError(f"{path}: it is no CSV ({error}). Check its quotes") from error
    if not found:
        raise DataError(f"{path}: it holds no SMILES. Give one a line")
    return found


def _first_words(text: str) -> list[str]:
    lines = text.splitlines()
    words = [line.replace(",", " ").split()[0] for line in lines if line.strip(" ,\t")]
    return [w for i, w in enumerate(words) if w[0] != "#" and (i or w.lower() != "smiles")]


def _column(text: str) -> list[str]:
    """The column smiles of a CSV, else the first. An empty cell stays: it is a failure to tell."""
    # strict: else a quote that is never closed would swallow the rest of the file
    lines = csv.reader(StringIO(text, newline=""), strict=True)
    cells = [[cell.strip() for cell in row] for row in lines]
    rows = [row for row in cells if any(row) and not row[0].startswith("#")]
    header = [cell.lower() for cell in rows[0]] if rows else []
    at = header.index("smiles") if "smiles" in header else None
    if at is None:
        return [_word(row[0]) for row in rows]
    return [_word(row[at]) if at < len(row) else "" for row in rows[1:]]


def _word(cell: str) -> str:
    """The first word of a cell: a name, or an extension of the SMILES, may follow it."""
    return cell.split()[0] if cell else ""


def canonical(smiles: str) -> str:
    """Canonical isomeric SMILES without atom maps.

    Raises:
        InputError: not a SMILES, or an empty one.
        UnsupportedSystemError: unpaired electrons, or atoms that are no element.
    """
    chem = require("rdkit.Chem", "mlpot[chem]", "reading SMILES")
    with require("rdkit.rdBase", "mlpot[chem]", "reading SMILES").BlockLogs():
        molecule = chem.MolFromSmiles(smiles)
    if molecule is None or not molecule.GetNumAtoms():
        raise InputError(f"{smiles!r} is not a valid SMILES. Check the spelling")
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(0)
        if atom.GetAtomicNum() == 0:
            raise UnsupportedSystemError(f"{smiles!r} holds an atom * that is no element")
        if atom.GetNumRadicalElectrons():
            raise UnsupportedSystemError(
                f"{smiles!r} has unpaired electrons, and only closed shells are sampled. Check "
                "that no hydrogen is missing"
            )
    # Explicit hydrogens ([H]C) would make a second spelling.
    return chem.MolToSmiles(chem.MolFromSmiles(chem.MolToSmiles(chem.RemoveHs(molecule))))


def _names(smiles: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """(canonical -> as first given, as given -> why it cannot be read)"""
    names: dict[str, str] = {}
    failed: dict[str, str] = {}
    for given in smiles:
        try:
            names.setdefault(canonical(given), given)
        except InputError as error:
            failed[given] = str(error)
    return names, failed


def _key(smiles: str, labeller: Labeller | None, sampling: Sampling) -> str:
    what = [smiles, labeller.identity if labeller else "MMFF94", asdict(sampling)]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _records(smiles: str, result: dict[str, Any], subset: str) -> list[Record]:
    numbers = np.array(result["numbers"], dtype=np.int64)
    frames = np.array(result["positions"], dtype=np.float64).reshape(-1, len(numbers), 3)
    charge = result["charge"]
    return [Record(numbers, x, charge=charge, group=smiles, subset=subset) for x in frames]


def _reasons(dropped: list[str] | int) -> list[str]:
    """Why trajectories of a molecule ended early.

    Stores of earlier versions hold their number only. Their frames have passed the same checks,
    so they are kept, and not computed again for the sake of a reason.
    """
    if isinstance(dropped, int):
        return ["an earlier version of mlpot did not record why"] * dropped
    return dropped


# --- on the worker -------------------------------------------------------------------------------


def _probe(labeller: Labeller | None) -> None:
    require("rdkit.Chem", "mlpot[chem]", "embedding molecules")
    if labeller is not None:
        probe(labeller)


def _sample_job(labeller: Labeller | None, sampling: Sampling, smiles: str) -> dict[str, Any]:
    try:
        return sample(smiles, labeller, sampling)
    except BaseException:
        forget_calculator()
        raise
