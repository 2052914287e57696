"""Losses and error measures of energies, forces and noise."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mlpot.data.loader import LabelledGraph
from mlpot.models.potential import Prediction


def energy_force_loss(
    prediction: Prediction, target: LabelledGraph, energy_weight: float, force_weight: float
) -> Tensor:
    """Mean absolute energy error per atom (eV) and mean length of the force error (eV/Å).

    Absolute rather than squared errors: a few strained frames must not outweigh the rest.
    """
    energy, forces = _errors(prediction, target)
    # the length is smoothed below 1 meV/Å, where its gradient would not be defined
    length = torch.sqrt((forces * forces).sum(dim=1) + 1e-6)
    return energy_weight * energy.abs().mean().to(forces.dtype) + force_weight * length.mean()


def denoising_loss(predicted: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the normalised noise; 1 for a model that predicts none."""
    return ((predicted - noise) ** 2).mean()


class Errors(NamedTuple):
    """Errors over a data set. Energies in eV per atom, forces in eV/Å per component."""

    energy_mae: float
    energy_rmse: float
    force_mae: float
    force_rmse: float

    def describe(self) -> str:
        e, f = "meV/atom", "meV/Å"
        return (
            f"energy MAE {1e3 * self.energy_mae:.2f} RMSE {1e3 * self.energy_rmse:.2f} {e}, "
            f"forces MAE {1e3 * self.force_mae:.1f} RMSE {1e3 * self.force_rmse:.1f} {f}"
        )


class ErrorSums:
    """Accumulates errors batch by batch. Frames without a label (NaN) do not count; a model that
    predicts a NaN does: its errors become NaN or infinite."""

    def __init__(self) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64)
        self._counts = torch.zeros(2, dtype=torch.float64)

    def add(self, prediction: Prediction, target: LabelledGraph) -> None:
        energy, forces = (e.detach().double().cpu() for e in _errors(prediction, target))
        energy = energy[target.energy.isfinite().cpu()]
        forces = forces[target.forces.isfinite().cpu()]
        self._sums += torch.stack(
            [energy.abs().sum(), energy.square().sum(), forces.abs().sum(), forces.square().sum()]
        )
        self._counts += torch.tensor([energy.numel(), forces.numel()], dtype=torch.float64)

    def result(self) -> Errors:
        """NaN where nothing had that label."""
        energies, forces = (float(c) or math.nan for c in self._counts)
        s = self._sums.tolist()
        return Errors(
            s[0] / energies, math.sqrt(s[1] / energies), s[2] / forces, math.sqrt(s[3] / forces)
        )


def _errors(prediction: Prediction, target: LabelledGraph) -> tuple[Tensor, Tensor]:
    atoms = torch.bincount(target.graph.batch, minlength=target.energy.shape[0])
    energy = (prediction.energy - target.energy) / atoms
    return energy, prediction.forces - target.forces
