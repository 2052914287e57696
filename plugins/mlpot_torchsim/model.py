"""The adapter: a SimState in; energy, forces and stress out, for all its systems in one call.

TorchSim's units are ours (eV, Å); its cells have lattice vectors as columns, ours as rows.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState

from mlpot.deploy.engines import DTYPES, BoundModel, DeployedModel
from mlpot.deploy.load import load
from mlpot.errors import InputError, UnsupportedSystemError
from mlpot.graph import batch


class MLPotModel(ModelInterface):
    """An mlpot model as a model of TorchSim.

    Args:
        model: zoo name, model file, or a DeployedModel.
        engine: what runs it, as in `mlpot.deploy.load.load`.
        dtype: ``float32`` or ``float64``, in which the model computes; None is its own.
        device: ``auto`` takes a GPU if there is one.
        compute_stress: also give the stress; systems must then be periodic in all directions.
        state_dtype: ``float32`` or ``float64``, of positions and results. float64 by default,
            whatever the model computes in: total energies of -20,000 eV have steps of 2 meV in
            float32.

    Raises:
        UnsupportedSystemError: in a call, for elements, charges, multiplicities or
            periodicities that the model does not cover.
        InputError: in a call, for NaN or overlapping positions.
    """

    def __init__(
        self,
        model: str | Path | DeployedModel = "pretrained-visnet",
        *,
        engine: str = "auto",
        dtype: str | None = None,
        device: str | torch.device = "auto",
        compute_stress: bool = False,
        state_dtype: str = "float64",
    ):
        super().__init__()
        if state_dtype not in DTYPES:
            raise InputError(f"state_dtype must be {' or '.join(DTYPES)}, got {state_dtype!r}")
        loaded = model if isinstance(model, DeployedModel) else load(model, engine, dtype, device)
        self.model = loaded
        self._device = loaded.device
        self._dtype = DTYPES[state_dtype]
        self._compute_stress = compute_stress
        self._compute_forces = True
        self._memory_scales_with = "n_atoms_x_density"
        self._bound: dict[int, tuple[Any, BoundModel]] = {}

    @property
    def compute_stress(self) -> bool:
        """Whether the stress is given."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self._compute_stress = value

    @property
    def compute_forces(self) -> bool:
        """Whether forces are given; they cost nothing beside the energy."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        self._compute_forces = value

    def forward(self, state: SimState | dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """Evaluate R systems of N atoms together.

        Returns:
            ``energy`` [R] eV, ``forces`` [N, 3] eV/Å, and where asked for ``stress`` [R, 3, 3]
            eV/Å^3, positive when stretched.
        """
        if isinstance(state, dict):
            state = SimState(**state)
        pbc = _periodic(state.pbc)
        if self._compute_stress and not all(pbc):
            raise UnsupportedSystemError(
                f"a stress needs a box in all directions, but these systems have pbc {pbc}. Use "
                "compute_stress=False, or periodic systems"
            )
        cells = state.row_vector_cell
        with torch.enable_grad():  # forces are gradients, and TorchScript cannot switch them on
            prediction = self.model.predict(self._graph(state, cells, pbc))
        found = {"energy": prediction.energy}
        if self._compute_forces:
            found["forces"] = prediction.forces
        if self._compute_stress:
            volume = torch.linalg.det(cells.double()).abs()[:, None, None]
            found["stress"] = -prediction.virial.double() / volume
        return {k: v.detach().to(state.positions.device, self._dtype) for k, v in found.items()}

    def _graph(self, state: SimState, cells: Tensor, pbc: tuple[bool, bool, bool]) -> Any:
        """All systems as one Graph, each with its own neighbours."""
        sizes = torch.bincount(state.system_idx, minlength=len(cells)).tolist()
        positions = state.positions.detach().double().cpu().split(sizes)
        numbers = state.atomic_numbers.cpu().split(sizes)
        boxes = cells.detach().double().cpu() if any(pbc) else [None] * len(sizes)
        charges, spins = _per_system(state, "charge", 0), _per_system(state, "spin", 1)
        bound = [
            self._bind(r, z.numpy(), pbc, charge, spin)
            for r, (z, charge, spin) in enumerate(zip(numbers, charges, spins, strict=True))
        ]
        return batch(
            [
                b.graph(x.numpy(), None if box is None else box.numpy())
                for b, x, box in zip(bound, positions, boxes, strict=True)
            ]
        )

    def _bind(self, place: int, numbers: Any, pbc: Any, charge: float, spin: int) -> BoundModel:
        """The model for the system at this place of the batch. Kept between calls with its
        neighbour list, until TorchSim puts another system there."""
        key = (numbers.tobytes(), pbc, charge, spin)
        known = self._bound.get(place)
        if known is None or known[0] != key:
            known = key, self.model.bind(numbers, pbc, charge, spin)
            self._bound[place] = known
        return known[1]


def _periodic(pbc: bool | Tensor | list[bool]) -> tuple[bool, bool, bool]:
    """One bool for all directions in TorchSim 0.3, one each in later versions."""
    x, y, z = (pbc,) * 3 if isinstance(pbc, bool) else (bool(p) for p in pbc)
    return x, y, z


def _per_system(state: SimState, name: str, neutral: int) -> list[int]:
    """Total charges or multiplicities, where the state has them; a spin of 0 says nothing."""
    given = getattr(state, name, None)
    if given is None:
        return [neutral] * state.n_systems
    return [round(float(v)) or neutral for v in torch.as_tensor(given).reshape(-1)]
