"""What stays fixed while molecules move side by side: their atoms, masses and seeds."""

from collections.abc import Sequence

import numpy as np
import torch
from ase.data import atomic_masses
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mlpot.deploy.engines import DeployedModel
from mlpot.deploy.metadata import check_system
from mlpot.errors import InputError
from mlpot.neighbors import NeighborFinder

#: steps whose random numbers are drawn together. Part of what a seed means: do not change.
BLOCK = 32


class Systems:
    """R molecules; the atoms of all follow one another in arrays of length N.

    Attributes:
        numbers: [N_r] int64 of each.
        masses: [N_r] amu of each.
        seeds: of each.
        sizes: N_r of each.
        degrees: [R] degrees of freedom; the centre of mass stays put.
        first: [R + 1] index of the first atom of each, and N.
    """

    def __init__(
        self,
        numbers: Sequence[ArrayLike],
        masses: Sequence[ArrayLike] | None,
        seeds: int | Sequence[int],
    ):
        if not len(numbers):
            raise InputError("there are no systems; give atomic numbers and positions of one")
        self.numbers = [np.asarray(z, dtype=np.int64) for z in numbers]
        self.sizes = [len(z) for z in self.numbers]
        self.degrees = np.array([max(3, 3 * n - 3) for n in self.sizes])
        self.first = np.concatenate([[0], np.cumsum(self.sizes)])
        given = [atomic_masses[z] for z in self.numbers] if masses is None else masses
        self.masses = self.checked("masses", given, ())
        if not all((m > 0).all() for m in self.masses):
            raise InputError("masses must be positive, in amu")
        self.seeds = _seeds(seeds, len(self))

    def __len__(self) -> int:
        return len(self.sizes)

    def checked(
        self, name: str, values: Sequence[ArrayLike], tail: tuple[int, ...] = (3,)
    ) -> list[NDArray[np.float64]]:
        """One array [N_r, *tail] for each system, or an InputError."""
        arrays = [np.asarray(v, dtype=np.float64) for v in values]
        wanted = [(n, *tail) for n in self.sizes]
        got = [a.shape for a in arrays]
        if got != wanted:
            at = next((r for r, (g, w) in enumerate(zip(got, wanted, strict=False)) if g != w), -1)
            raise InputError(
                f"{name} must be {len(self)} arrays, one a system, got {len(got)}"
                if at < 0
                else f"{name} of system {at} must have shape {wanted[at]}, got {got[at]}"
            )
        return arrays

    def per_system(self, name: str, values: float | ArrayLike) -> NDArray[np.float64]:
        """[R] of one number for all or one each, not negative."""
        array = np.asarray(values, dtype=np.float64)
        if array.shape not in ((), (len(self),)) or not (array >= 0).all():
            raise InputError(
                f"{name} must be one number or {len(self)}, none of them negative, got {array}"
            )
        return np.broadcast_to(array, len(self)).copy()

    def split(self, whole: Tensor) -> list[NDArray[np.float64]]:
        """An array [N, ...] as one for each system."""
        return np.split(whole.cpu().numpy(), self.first[1:-1])

    def atoms(self, chosen: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the atoms of the chosen systems, in their order."""
        spans = [np.arange(self.first[r], self.first[r + 1]) for r in chosen]
        return np.concatenate([np.empty(0, dtype=np.int64), *spans])

    def kicks(self, system: int, block: int) -> NDArray[np.float64]:
        """[BLOCK, N_r, 3] 1/sqrt(amu): normal random numbers / sqrt(mass), no net momentum.

        Scaled with sqrt(kT), a Maxwell-Boltzmann distribution for a resting centre of mass.
        Known by seed and block alone, so that a system's kicks are the same in any batch.
        """
        # spawn_key, because the entropies [7] and [7, 0] make one and the same sequence
        sequence = np.random.SeedSequence(self.seeds[system], spawn_key=(block,))
        mass = self.masses[system][:, None]
        drawn = np.random.default_rng(sequence).standard_normal((BLOCK, len(mass), 3))
        drawn /= np.sqrt(mass)
        return drawn - (mass * drawn).sum(axis=1, keepdims=True) / mass.sum()


def check_systems(
    model: DeployedModel, systems: Systems, positions: Sequence[NDArray[np.float64]]
) -> None:
    """The checks at the door: elements, NaN, overlapping atoms.

    Raises:
        InputError: naming the system.
    """
    find = NeighborFinder(model.cutoff)
    for r, (z, x) in enumerate(zip(systems.numbers, positions, strict=True)):
        try:
            check_system(model.info, z)
            find(x)
        except InputError as error:
            if len(systems) == 1:
                raise
            raise type(error)(f"system {r}: {error}") from error


def to_device(array: NDArray, device: torch.device | str) -> Tensor:
    """A tensor of the same dtype."""
    return torch.as_tensor(np.ascontiguousarray(array)).to(device)


def _seeds(seeds: int | Sequence[int], count: int) -> list[int]:
    array = np.asarray(seeds)
    given = array + np.arange(count) if array.ndim == 0 else array
    if given.shape != (count,) or given.dtype.kind not in "iu" or (given < 0).any():
        raise InputError(
            f"seeds must be the first of consecutive ones or {count} of them, whole and not "
            f"negative, got {seeds}"
        )
    return given.tolist()
