"""Engines: ways to run one model. Each turns a Graph into a Prediction and gives equal numbers.

``eager``        the Python modules themselves; what the others are checked against
``torchscript``  compiled by torch.jit; needs no Python class, so OpenMM's C++ can run it
``compiled``     machine code for this processor (`mlpot.deploy.compiled`); the fastest on a CPU
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mlpot.deploy.metadata import check_system, warn_of_unseen_lengths
from mlpot.errors import InputError, MLPotError, UnsupportedSystemError
from mlpot.graph import Graph, to
from mlpot.models.checkpoint import ModelInfo
from mlpot.models.potential import Prediction
from mlpot.neighbors import SKIN, NeighborFinder, build_graph

ENGINES = ("eager", "torchscript", "compiled")

#: Å; atoms this close have no direction between them
COINCIDENT = 1e-3

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Result(NamedTuple):
    """Numbers for a host, in numpy and float64."""

    energy: float  # eV, total
    forces: NDArray[np.float64]  # [N, 3] eV/Å
    stress: NDArray[np.float64] | None  # [3, 3] eV/Å^3, positive when stretched; None if no cell
    interaction: float  # eV, energy less the reference energies of the elements


class DeployedModel:
    """A model ready to run, and what it covers.

    Attributes:
        info: the model's description.
        engine: what runs it.
        module: the torch module (or script module); ``module(graph) -> Prediction``.
        cutoff: Å.
        source: the file it was loaded from, if it was.
    """

    source: Path | None = None

    def __init__(
        self,
        module: Any,
        info: ModelInfo,
        engine: str,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ):
        self.module = module
        self.info = info
        self.engine = engine
        self.dtype = dtype
        self.device = torch.device(device)
        self.cutoff = float(info.config["cutoff"])

    def __repr__(self) -> str:
        return (
            f"DeployedModel({self.info.name!r}, engine={self.engine!r}, "
            f"{str(self.dtype).removeprefix('torch.')}, {self.device})"
        )

    def prepare(self, atoms: int, structures: int = 1) -> None:
        """Get ready for calls with so many structures of up to so many atoms each: what has to be
        compiled is compiled now, and not in the middle of a run."""
        if self.engine == "compiled":
            self.module.prepare(atoms, structures)

    def predict(self, graph: Graph) -> Prediction:
        """Evaluate any batch of structures; moved to this model's device and dtype."""
        with torch.enable_grad():  # TorchScript cannot turn it on by itself
            return self.module(to(graph, self.device, self.dtype))

    def bind(
        self,
        numbers: ArrayLike,
        pbc: bool | tuple[bool, bool, bool] = False,
        charge: float = 0,
        multiplicity: int = 1,
        skin: float = SKIN,
    ) -> "BoundModel":
        """Fix the atoms once, then call with positions only: what a simulation does.

        Args:
            numbers: [N] atomic numbers.
            pbc: periodic in all, none or some directions.
            charge, multiplicity: of the whole system.
            skin: Å, Verlet skin of the neighbour list; 0 for unrelated geometries.

        Raises:
            UnsupportedSystemError: before the first step, if the model does not cover it.
        """
        z = check_system(self.info, numbers, charge, multiplicity)
        periodic = (pbc,) * 3 if isinstance(pbc, bool) else tuple(bool(p) for p in pbc)
        self.prepare(len(z))
        return BoundModel(self, z, periodic, skin)

    def __call__(
        self, numbers: ArrayLike, positions: ArrayLike, cell: ArrayLike | None = None
    ) -> Result:
        """Energy and forces of one structure; periodic in all directions if a cell is given."""
        return self.bind(numbers, pbc=cell is not None, skin=0.0)(positions, cell)


class BoundModel:
    """A model tied to one set of atoms: positions (and cell) in, energy, forces and stress out."""

    def __init__(self, model: DeployedModel, numbers: NDArray, pbc: tuple[bool, ...], skin: float):
        self.model = model
        self.numbers = numbers
        self.pbc = pbc
        self._finder = NeighborFinder(model.cutoff, skin)

    def graph(self, positions: ArrayLike, cell: ArrayLike | None = None) -> Graph:
        """The Graph that the model sees."""
        return build_graph(
            self.numbers,
            positions,
            self.model.cutoff,
            cell,
            self.pbc,
            self.model.dtype,
            self.model.device,
            self._finder,
        )

    def __call__(self, positions: ArrayLike, cell: ArrayLike | None = None) -> Result:
        """Evaluate.

        Args:
            positions: [N, 3] Å; wrapped into the cell or not.
            cell: [3, 3] Å, rows are lattice vectors; needed where pbc is true.

        Raises:
            InputError: NaN or overlapping positions, or a wrong shape.
            MLPotError: the model gave a NaN.
        """
        if any(self.pbc) and cell is None:
            raise UnsupportedSystemError("this system is periodic; give its cell ([3, 3] Å)")
        if not any(self.pbc) and cell is not None and np.any(cell):
            raise InputError("a cell was given for a system that is bound as not periodic")
        graph = self.graph(positions, cell)
        if self._finder.overlap != COINCIDENT:
            # Bad input is found at the door. Later, a minimiser's trial step may bring atoms close.
            self._finder.overlap = COINCIDENT
            warn_of_unseen_lengths(self.model.info, graph)
        prediction = self.model.module(graph)
        energy = float(prediction.energy[0])
        forces = prediction.forces.detach().cpu().numpy().astype(np.float64)
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise MLPotError(
                "the model gave a NaN or infinite energy or force: the geometry is far outside "
                "what it was trained on. Minimise first, or shorten the time step"
            )
        return Result(energy, forces, self._stress(prediction, cell), float(prediction.interaction))

    def _stress(self, prediction: Prediction, cell: ArrayLike | None) -> NDArray | None:
        if not all(self.pbc):
            return None
        volume = abs(float(np.linalg.det(np.asarray(cell, dtype=np.float64))))
        return -prediction.virial[0].detach().cpu().numpy().astype(np.float64) / volume
