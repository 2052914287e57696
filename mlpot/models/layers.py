"""What more than one backbone or head needs: envelopes, radial bases, norms, sums over edges.

Everything here can be scripted by torch.jit, differentiated twice, and runs in float32
and float64.
"""

import math

import torch
from torch import Tensor, nn

from mlpot.errors import InputError


class Envelope(nn.Module):
    """Cutoff function of the distance: 1 at r = 0, 0 from r = cutoff on.

    ``polynomial`` is 1 - 28 u^6 + 48 u^7 - 21 u^8 with u = r / cutoff (Gasteiger et al.,
    arXiv 2003.03123, eq. 8, p = 6): value, slope and curvature vanish at the cutoff (C2).
    ``cosine`` is (cos(pi u) + 1) / 2, which is C1 only; published weights need it.
    """

    def __init__(self, cutoff: float, kind: str = "polynomial"):
        super().__init__()
        if kind not in ("polynomial", "cosine"):
            raise InputError(f"envelope must be 'polynomial' or 'cosine', got {kind!r}")
        self.cutoff = cutoff
        self.cosine = kind == "cosine"

    def forward(self, distance: Tensor) -> Tensor:
        """[...] Å -> [...]"""
        u = (distance / self.cutoff).clamp(max=1.0)
        if self.cosine:
            return 0.5 * (torch.cos(u * math.pi) + 1.0)
        u3 = u * u * u
        u6 = u3 * u3
        return 1.0 - u6 * (28.0 - u * (48.0 - 21.0 * u))


class ExpNormalBasis(nn.Module):
    """Gaussians in exp(-5 r / cutoff), times an envelope (PhysNet; Unke & Meuwly 2019)."""

    def __init__(self, cutoff: float, count: int, envelope: str = "polynomial"):
        super().__init__()
        self.alpha = 5.0 / cutoff
        self.envelope = Envelope(cutoff, envelope)
        start = math.exp(-5.0)
        self.register_buffer("means", torch.linspace(start, 1.0, count))
        self.register_buffer("betas", torch.full((count,), (2.0 / count * (1.0 - start)) ** -2))
        self.means: Tensor
        self.betas: Tensor

    def forward(self, distance: Tensor) -> Tensor:
        """[E] Å -> [E, count]"""
        r = distance.unsqueeze(-1)
        exponents = -self.betas * (torch.exp(-self.alpha * r) - self.means) ** 2
        # exp(-60) is nothing beside the other Gaussians; exp(-90) would be a subnormal number,
        # and processors take a hundred times as long over those
        gaussians = torch.exp(exponents.clamp(min=-60.0))
        return self.envelope(r) * gaussians


def spherical_harmonics(direction: Tensor, lmax: int) -> Tensor:
    """Real harmonics of degree 1..lmax, each degree of unit norm: [E, 3] -> [E, 3] or [E, 8]."""
    if lmax == 1:
        return direction
    x, y, z = direction.unbind(-1)
    root3 = math.sqrt(3.0)
    second = [
        root3 * x * z,
        root3 * x * y,
        y * y - 0.5 * (x * x + z * z),
        root3 * y * z,
        0.5 * root3 * (z * z - x * x),
    ]
    return torch.cat([direction, torch.stack(second, dim=-1)], dim=-1)


def vector_length(vectors: Tensor, softening: float) -> Tensor:
    """Length over dimension 1: [N, L, H] -> [N, H].

    With softening s > 0 it is sqrt(|v|² + s²) - s, smooth at v = 0. With s = 0 it is the
    plain length with derivative 0 at v = 0, as torch.norm has it, but safe to
    differentiate twice.
    """
    square = (vectors * vectors).sum(dim=1)
    if softening > 0.0:
        return torch.sqrt(square + softening * softening) - softening
    zero = square == 0
    return torch.where(zero, torch.zeros_like(square), torch.where(zero, 1.0, square).sqrt())


class ScalarNorm(nn.LayerNorm):
    """Layer norm written out. The built-in one is a single kernel, but its second derivative
    fixes the number of atoms when it is traced, and compilers fuse this one as well."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, H] -> [N, H]"""
        centred = x - x.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class VectorNorm(nn.Module):
    """Normalises vector features [N, L, H], each degree apart, then scales every channel.

    ``soft`` divides by sqrt(1 + mean over channels of |v|²): smooth, linear for small
    vectors, bounded for large ones. ``max_min`` is the published one (ViSNet, eq. S7):
    lengths mapped to [0, 1] between the shortest and the longest channel, hence with kinks
    in the forces where two channels swap order. ``none`` only scales.
    """

    def __init__(self, channels: int, kind: str, lmax: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.kind = kind
        self.lmax = lmax

    def _normalise(self, v: Tensor) -> Tensor:
        if self.kind == "soft":
            mean_square = (v * v).sum(dim=1, keepdim=True).mean(dim=2, keepdim=True)
            return v * torch.rsqrt(1.0 + mean_square)
        if self.kind == "max_min":
            length = vector_length(v, 0.0).unsqueeze(1).clamp(min=1e-12)
            low, high = length.amin(dim=2, keepdim=True), length.amax(dim=2, keepdim=True)
            spread = torch.where(high == low, torch.ones_like(high), high - low)
            return torch.relu((length - low) / spread) * (v / length)
        return v

    def forward(self, v: Tensor) -> Tensor:
        if self.lmax == 1:
            return self._normalise(v) * self.weight
        first = self._normalise(v[:, :3])
        return torch.cat([first, self._normalise(v[:, 3:])], dim=1) * self.weight


def sum_over_edges(values: Tensor, receiver: Tensor, atoms: int) -> Tensor:
    """Add edge values [E, ...] onto their receivers, [atoms, ...]."""
    shape = [atoms] + list(values.shape[1:])
    return torch.zeros(shape, dtype=values.dtype, device=values.device).index_add(
        0, receiver, values
    )
