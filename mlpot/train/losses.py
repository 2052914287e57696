"""Losses and error measures of energies, forces and noise."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mlpot.data.loader import LabelledGraph
from mlpot.models.potential import Prediction


def energy_force_loss(prediction: Prediction, target: LabelledGraph, weights: Tensor) -> Tensor:
    """Sum of absolute energy errors per atom (eV), and of the lengths of force errors (eV/Å),
    each times its weight.

    Sums, so that the parts of a batch add up; weights [2] hold the division by its size.
    Absolute rather than squared errors: a few strained frames must not outweigh the rest.
    """
    energy, forces = errors(prediction.energy, prediction.forces, target)
    # the length is smoothed below 1 meV/Å, where its gradient would not be defined
    length = torch.sqrt((forces * forces).sum(dim=1) + 1e-6)
    return weights[0] * energy.abs().sum().to(forces.dtype) + weights[1] * length.sum()


def denoising_loss(predicted: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
    """Sum of squared errors of the normalised noise, times a weight [1]; with one over the
    number of components it is 1 for a model that predicts none."""
    return weight[0] * ((predicted - noise) ** 2).sum()


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

    def add(self, energy: Tensor, forces: Tensor, target: LabelledGraph) -> None:
        """Predicted total energies [B] eV and forces [N, 3] eV/Å."""
        energy, forces = (e.detach().double().cpu() for e in errors(energy, forces, target))
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


def errors(energy: Tensor, forces: Tensor, target: LabelledGraph) -> tuple[Tensor, Tensor]:
    """Energy errors per atom [B] eV, and force errors [N, 3] eV/Å."""
    ones = torch.ones_like(target.graph.batch, dtype=target.energy.dtype)
    atoms = torch.zeros_like(target.energy).index_add(0, target.graph.batch, ones)
    return (energy - target.energy) / atoms, forces - target.forces
