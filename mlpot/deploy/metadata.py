"""What a deployed file says of itself, and the checks at the door that follow from it."""

import json
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlpot.errors import InputError, ModelFileError, UnsupportedSystemError
from mlpot.graph import Graph, edge_vectors
from mlpot.models.checkpoint import ModelInfo
from mlpot.models.priors import FADE, floor_table, of_pairs

#: name of the description inside an exported file
ENTRY = "mlpot.json"

#: format of exported files
FORMAT = 1

Dtype = Literal["float32", "float64"]


class ExportInfo(BaseModel):
    """Description of an exported file: the model's own, and how it was exported."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    export_format: int = FORMAT
    engine: Literal["torchscript", "compiled"] = "torchscript"
    cpu: list[str] = Field(default=[], description="instruction sets that a compiled file needs")
    dtype: Dtype = "float32"
    mlpot: str
    torch: str
    energy_deviation: float  # eV per atom, largest seen against eager in the self-check
    force_deviation: float  # eV/Å
    model: ModelInfo


def parse_export_info(text: str, path: str) -> ExportInfo:
    """Read the description of an exported file."""
    try:
        raw = json.loads(text)
        if int(raw.get("export_format", -1)) > FORMAT:
            raise ModelFileError(
                f"{path} was exported by a newer mlpot (format {raw['export_format']}; this one "
                f"reads up to {FORMAT}). Upgrade mlpot"
            )
        return ExportInfo.model_validate(raw)
    except (ValueError, AttributeError, ValidationError) as error:
        raise ModelFileError(f"{path} holds no valid description: {error}") from error


def check_system(
    info: ModelInfo, numbers: ArrayLike, charge: float = 0, multiplicity: int = 1
) -> np.ndarray:
    """Atomic numbers as an array, if the model covers such a system.

    Raises:
        UnsupportedSystemError: an element, charge or multiplicity that it does not cover.
    """
    given = np.asarray(numbers)
    if given.ndim != 1 or len(given) == 0 or (given != np.round(given)).any():
        raise InputError(f"atomic numbers must be a non-empty list of whole numbers, got {given}")
    z = given.astype(np.int64)
    unknown = sorted({int(n) for n in z} - set(info.elements))
    if unknown:
        raise UnsupportedSystemError(
            f"{info.name} does not cover {_symbols(unknown)} (first at atom "
            f"{int(np.isin(z, unknown).argmax())}); it covers {_symbols(info.elements)}. Choose "
            "another model (`mlpot models`), or fine-tune one on data with these elements"
        )
    if abs(charge) > 1e-6:
        raise UnsupportedSystemError(
            f"{info.name} covers neutral systems only, but the total charge is {charge:g}. "
            "Neutralise the system, or use a model for charged ones"
        )
    if multiplicity != 1:
        raise UnsupportedSystemError(
            f"{info.name} covers closed-shell systems only, but the multiplicity is {multiplicity}"
        )
    return z


def warn_of_unseen_lengths(info: ModelInfo, graph: Graph) -> None:
    """Warn of the pair of atoms that is furthest below its floor (`mlpot.models.priors.Floor`)."""
    if not info.floors or graph.edge_index.shape[1] == 0:
        return
    table = floor_table(info.floors, max(info.elements) + 1).to(graph.positions)
    known, lengths = of_pairs(table, graph), edge_vectors(graph).norm(dim=1)
    edge = int((known - lengths).argmax())
    if known[edge] - lengths[edge] <= FADE:
        return
    ends = sorted(int(i) for i in graph.edge_index[:, edge])
    first, second = (f"{chemical_symbols[int(graph.numbers[i])]} {i}" for i in ends)
    warnings.warn(
        f"{first} and {second} are {float(lengths[edge]):.2f} Å apart. The training frames of "
        f"{info.name} have none below {float(known[edge]):.2f} Å, so it only pushes them apart. "
        "Relax the geometry; if this is a bond, fine-tune the model on frames that have it",
        stacklevel=4,
    )


def _symbols(numbers: Sequence[int]) -> str:
    names = [chemical_symbols[n] if 0 < n < len(chemical_symbols) else f"Z={n}" for n in numbers]
    return ", ".join(names)
