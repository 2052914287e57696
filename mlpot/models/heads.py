"""Heads: features -> per-atom energies, or per-atom noise vectors.

Gated equivariant blocks (Schütt et al., PaiNN, arXiv 2102.03150), as in TorchMD-NET and
ViSNet. A head never differentiates; `Potential` does.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mlpot.models.layers import vector_length
from mlpot.models.visnet import Features


class GatedEquivariantBlock(nn.Module):
    """Mixes scalars with vector lengths, and gates the vectors with the result."""

    def __init__(self, channels: int, out: int, activate: bool, softening: float):
        super().__init__()
        self.out = out
        self.activate = activate
        self.softening = softening
        self.length = nn.Linear(channels, channels, bias=False)
        self.gated = nn.Linear(channels, out, bias=False)
        self.hidden = nn.Linear(2 * channels, channels)
        self.result = nn.Linear(channels, 2 * out)
        _xavier(self)

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, H], vec [N, L, H] -> [N, out], [N, L, out]"""
        length = vector_length(self.length(vec), self.softening)
        mixed = self.result(silu(self.hidden(torch.cat([x, length], dim=1))))
        scalar, gate = mixed.chunk(2, dim=1)
        vec = gate.unsqueeze(1) * self.gated(vec)
        return (silu(scalar) if self.activate else scalar), vec


class EnergyHead(nn.Module):
    """Features -> energy of every atom [N], in the model's own scale."""

    def __init__(self, channels: int, softening: float = 0.1):
        super().__init__()
        half = channels // 2
        self.block = GatedEquivariantBlock(channels, half, activate=True, softening=softening)
        self.softening = softening
        self.length = nn.Linear(half, half, bias=False)
        self.hidden = nn.Linear(2 * half, half)
        self.result = nn.Linear(half, 1)
        _xavier(self)

    def forward(self, features: Features) -> Tensor:
        x, vec = self.block(features.scalar, features.vector)
        length = vector_length(self.length(vec), self.softening)
        hidden = silu(self.hidden(torch.cat([x, length], dim=1)))
        return self.result(hidden).squeeze(1)


class NoiseHead(nn.Module):
    """Features -> a vector for every atom [N, 3]: the noise to be removed, normalised."""

    def __init__(self, channels: int, softening: float = 0.1):
        super().__init__()
        half = channels // 2
        self.first = GatedEquivariantBlock(channels, half, activate=True, softening=softening)
        self.second = GatedEquivariantBlock(half, 1, activate=False, softening=softening)

    def forward(self, features: Features) -> Tensor:
        # harmonics of degree 2 are no vectors: only the first three components count
        x, vec = self.first(features.scalar, features.vector[:, :3])
        return self.second(x, vec)[1].squeeze(2)


def _xavier(module: nn.Module) -> None:
    for child in module.children():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
