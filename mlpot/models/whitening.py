"""Matrices that turn the covariances of many elements into 1, in a few bits an entry.

A triangular matrix in float32 for each of ten elements would take more room than all else that a
model knows of its training set. Elements have most of a covariance in common, so each is told by
how it differs from their mean. With S the scales of the features, and L M lower triangles,

    B = L^-1,   L L' = mean over k of S^-1 C_k S^-1     basis, float16
    T_k = M^-1,   M M' = B S^-1 C_k S^-1 B'             1 and multiples of 1/64

T_k B S^-1 turns C_k into 1. What a B in float16 is off by, T_k makes up for. As C_k is no more
than the sum over the K elements, B S^-1 leaves nothing of its points larger than sqrt(K), and what
T_k is rounded by stays small beside 1: distances move by half a percent (root mean square), and by
a few in the direction where that is most. A training set's C is known no better.
"""

import torch
from torch import Tensor, nn

#: between entries of T_k; a power of two, which products keep exactly
_STEP = 1 / 64

#: float16 ends at 65504
_LARGEST = 6e4

#: added where features are collinear but for less than that, in units of S
_RIDGE = 1e-8


class Whitening(nn.Module):
    """Of K elements and H features. Covariances are 1 until it is told others, and are rounded
    when they are told, not when they are stored: a file gives back what was fitted."""

    def __init__(self, kinds: int, width: int):
        super().__init__()
        below = torch.tril_indices(width, width)
        self.register_buffer("below", below, persistent=False)
        self.register_buffer("scale", torch.ones(width))  # S, powers of two
        self.register_buffer("basis", (below[0] == below[1]).float())  # B, row by row
        self.register_buffer("steps", torch.zeros(kinds, below.shape[1], dtype=torch.int32))
        self.register_buffer("lower", torch.eye(width).repeat(kinds, 1, 1), persistent=False)
        self.below: Tensor
        self.scale: Tensor
        self.basis: Tensor
        self.steps: Tensor  # of T_k - 1
        self.lower: Tensor  # [K, H, H], T_k B S^-1
        self.register_load_state_dict_post_hook(_after_loading)

    def forward(self, centred: Tensor) -> Tensor:
        """White features [K, N, H] of features less the mean of each element, [K, N, H]."""
        return torch.bmm(centred, self.lower.transpose(1, 2))

    def set(self, covariances: Tensor) -> None:
        """Covariances [K, H, H]; a RuntimeError if they are not positive definite."""
        given = covariances.double()
        variance = given.diagonal(dim1=1, dim2=2).mean(0)
        scale = torch.exp2((0.5 * variance.log2()).round())
        given = given / scale / scale[:, None]
        one = torch.eye(len(scale)).to(given)
        factor, failed = torch.linalg.cholesky_ex(given.mean(0))
        if failed or not _inverse(factor).abs().max() < _LARGEST:
            given = given + _RIDGE * one
            factor = torch.linalg.cholesky(given.mean(0))
        basis = _inverse(factor).half().double()
        factors = _inverse(torch.linalg.cholesky(basis @ given @ basis.T))
        steps = (self._entries(factors - one) / _STEP).round()
        self.scale, self.basis = scale.to(self.scale), self._entries(basis).to(self.basis)
        self.steps = steps.to(self.steps)
        self.multiply()

    def set_lower(self, entries: Tensor) -> None:
        """Matrices that turn covariances into 1, [K, H (H + 1) / 2], as older files hold them."""
        inverse = _inverse(self._matrices(entries.double()))
        self.set(inverse @ inverse.transpose(1, 2))

    def multiply(self) -> None:
        """Make `lower`, in float64 before it is rounded to what the module computes in."""
        basis = self._matrices(self.basis.double()) / self.scale.double()
        factors = torch.eye(len(basis)).to(basis) + _STEP * self._matrices(self.steps.double())
        self.lower = (factors @ basis).to(self.lower)

    def _entries(self, matrices: Tensor) -> Tensor:
        """[..., H (H + 1) / 2] of lower triangles [..., H, H]."""
        return matrices[..., self.below[0], self.below[1]]

    def _matrices(self, entries: Tensor) -> Tensor:
        """The reverse."""
        h = self.lower.shape[1]
        made = entries.new_zeros(*entries.shape[:-1], h, h)
        made[..., self.below[0], self.below[1]] = entries
        return made


def _after_loading(whitening: Whitening, _: object) -> None:
    whitening.multiply()


def _inverse(lower: Tensor) -> Tensor:
    """Of lower triangles [..., H, H]."""
    one = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower, one.expand_as(lower), upper=False)
