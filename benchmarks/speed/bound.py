"""A bound: the time of the model's matrix products alone.

The shapes and memory layouts of every mm, addmm, bmm and baddbmm of one energy and its gradient
are recorded while the eager engine runs, then the same products are run in a loop on tensors made
beforehand. Nothing that computes these products can be faster with the same BLAS; a compiled
engine may leave some of them out, so the bound is that of the eager engine. Operands of different
products share memory, which keeps them in cache: the bound is, if anything, too low.
"""

from typing import Any, NamedTuple

import torch
from ase import Atoms
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed.candidates import Candidate, Step
from benchmarks.speed.ours import MODEL

NAME = "matrix products alone"


class Product(NamedTuple):
    """One matrix product: sizes and strides of both operands (batched if three-dimensional)."""

    a: tuple[int, ...]
    a_strides: tuple[int, ...]
    b: tuple[int, ...]
    b_strides: tuple[int, ...]

    @property
    def flops(self) -> int:
        *batch, m, k = self.a
        return 2 * (batch[0] if batch else 1) * m * k * self.b[-1]


class Recorder(TorchDispatchMode):
    """Records matrix products, those of the backward pass included."""

    #: operator -> index of its first matrix
    OPERATORS = {
        torch.ops.aten.mm.default: 0,
        torch.ops.aten.bmm.default: 0,
        torch.ops.aten.addmm.default: 1,
        torch.ops.aten.baddbmm.default: 1,
    }

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        first = self.OPERATORS.get(func)
        if first is not None:
            a, b = args[first], args[first + 1]
            self.products.append(Product(tuple(a.shape), a.stride(), tuple(b.shape), b.stride()))
        return func(*args, **(kwargs or {}))


def record(atoms: Atoms) -> list[Product]:
    """The matrix products of one energy and forces of the shipped model."""
    from mlpot.deploy.load import load

    model = load(MODEL, engine="eager", device="cpu")
    bound = model.bind(atoms.numbers, bool(atoms.pbc.all()))
    graph = bound.graph(atoms.positions, atoms.cell.array if atoms.pbc.any() else None)
    with Recorder() as recorder:
        model.predict(graph)
    return recorder.products


class Products:
    """Runs recorded products once per call."""

    def __init__(self, products: list[Product]):
        pools = [_pool(max(_extent(s, t) for s, t in sides)) for sides in _sides(products)]
        out = _pool(max(_size(p) for p in products))
        self._jobs = [
            (
                pools[0].as_strided(p.a, p.a_strides),
                pools[1].as_strided(p.b, p.b_strides),
                out[: _size(p)].view(*p.a[:-1], p.b[-1]),
            )
            for p in products
        ]

    def __call__(self) -> None:
        for a, b, out in self._jobs:
            if a.dim() == 2:
                torch.mm(a, b, out=out)
            else:
                torch.bmm(a, b, out=out)


def _sides(products: list[Product]) -> tuple[list[Any], list[Any]]:
    return [(p.a, p.a_strides) for p in products], [(p.b, p.b_strides) for p in products]


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _size(product: Product) -> int:
    *rest, _ = product.a
    return int(torch.Size(rest).numel()) * product.b[-1]


def _pool(count: int) -> Tensor:
    return 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(0))


def candidate() -> Candidate:
    """The bound, timed in turns with everything else."""

    def prepare(atoms: Atoms, threads: int) -> Step:
        return Products(record(atoms))

    return Candidate(NAME, "bound", prepare, largest=1500)


def describe(atoms: Atoms) -> dict[str, float]:
    """How many products, and their floating-point operations."""
    products = record(atoms)
    return {"products": len(products), "gflop": sum(p.flops for p in products) / 1e9}
