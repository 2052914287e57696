"""What would fail hours later is refused before the first step."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlpot.active.sanity import Sanity
from mlpot.data.labellers import Labeller, probe
from mlpot.data.record import Record, check_records
from mlpot.data.splits import fingerprint
from mlpot.deploy.metadata import check_system
from mlpot.errors import DataError, InputError, UnsupportedSystemError
from mlpot.md.structure import Structure
from mlpot.models.checkpoint import ModelInfo, load_potential
from mlpot.train.finetune import FinetuneConfig
from mlpot.zoo import resolve


class Start(NamedTuple):
    """What a refinement starts from."""

    path: Path
    info: ModelInfo
    same_level: bool  # of theory, as the labeller
    asked: dict[str, Any]  # what the results follow from, beside settings and recipe


def check_start(
    structure: Structure,
    model: str | Path,
    labeller: Labeller,
    config: FinetuneConfig,
    data: Sequence[Record],
    probing: bool = True,
) -> Start:
    """The start model, if all fits together.

    Args:
        probing: make the calculator once, here.

    Raises:
        InputError: a box, a geometry that is no molecule, a model that cannot be trained further.
        UnsupportedSystemError: an element that the model does not cover.
        DataError: data without labels, or of another level of theory.
        MissingDependencyError: the labeller's package is absent.
    """
    path = resolve(model)
    if path.suffix in (".pt", ".pt2"):
        raise InputError(
            f"{path} is exported and cannot be trained further. Give the .safetensors file that "
            "it was made from"
        )
    _, info = load_potential(path)
    if structure.box is not None:
        raise UnsupportedSystemError(
            f"{structure.name} is periodic, and replicas run without a box only. Ignore the box "
            "with --no-pbc"
        )
    check_system(info, structure.numbers)
    if problem := Sanity(structure.numbers, structure.positions).problem(structure.positions):
        raise InputError(f"{structure.name}: {problem}. Start from a relaxed geometry")
    if config.held_out:
        raise InputError("held_out in the recipe names molecules; a refinement splits frames")
    _check_data(data, info, labeller)
    if probing:
        probe(labeller)
    geometry = np.round(structure.positions, 3) + 0.0  # no -0.0
    asked = {
        "model": info.sha256,
        "labeller": labeller.identity,
        "structure": hashlib.sha256(structure.numbers.tobytes() + geometry.tobytes()).hexdigest(),
        "data": fingerprint(data) if data else None,
        "forces": _forces(data) if data else None,
    }
    return Start(path, info, info.level == labeller.level, asked)


def _forces(data: Sequence[Record]) -> str:
    """A split is the same with other forces, a refinement is not."""
    digest = hashlib.sha256()
    for record in data:
        digest.update(np.asarray(record.forces, dtype="<f4").tobytes())
    return digest.hexdigest()


def _check_data(data: Sequence[Record], info: ModelInfo, labeller: Labeller) -> None:
    if not data:
        return
    check_records(data, need_energy=True, need_forces=True)
    levels = {r.level for r in data} - {"", labeller.level}
    if levels:
        raise DataError(
            f"the data are of {sorted(levels)[0]!r} and new labels would be of "
            f"{labeller.level!r}; their energies cannot be mixed. Label the data anew with "
            "`mlpot label`, or name the level they share with --level"
        )
    for index, record in enumerate(data):
        try:
            check_system(info, record.numbers, record.charge)
        except UnsupportedSystemError as error:
            raise DataError(f"frame {index} of the data: {error}") from error
