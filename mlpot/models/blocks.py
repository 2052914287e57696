"""Blocks: a large structure worked off a few atoms at a time, by several threads.

Memory is what the states between `mlpot.models.stages` take; all else lives for one block, in a
core's cache. Results are put together in the order of the blocks, whatever thread was first, so
that they are the same every time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlpot.graph import Graph, edge_vectors
from mlpot.models.potential import Prediction

#: tensors in, tensors out: a compiled or a traced graph
Run = Callable[[list[Tensor]], Sequence[Tensor]]

#: ``each(function, items)`` gives results in the order of the items: `map`, or that of a pool
Map = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]

#: edges of a block: fewer, and more of its time goes into the edge of the block, and into calls
BLOCK_EDGES = 1200


class Block(NamedTuple):
    """Atoms and the edges that they receive, in a structure whose edges are in the order of their
    receivers."""

    atoms: slice
    edges: slice
    members: Tensor  # [L] the atoms, then others that edges come from
    edge_index: Tensor  # [2, e] among the members


class _Kept(NamedTuple):
    """A state (`mlpot.models.stages.State`), or gradients with respect to it. What only a block
    itself reads stays as it came out of it."""

    own: list[Tensor]  # [T, ...] of every block; empty if there is none
    read: Tensor | None  # [N, ...]
    edges: list[Tensor]  # [e, ...] of every block; empty if there are none

    def of(self, number: int, rows: slice) -> list[Tensor]:
        """What a block takes, with these rows of ``read``."""
        read = [] if self.read is None else [self.read[rows]]
        return [*self.own[number : number + 1], *read, *self.edges[number : number + 1]]


def predict(run: Mapping[str, Run], graph: Graph, each: Map = map) -> Prediction:
    """Energy, forces and virial; of a graph whose structures are in order.

    To be called where torch has one thread: what is done between blocks is small, and shared out
    it would wait for threads that wait for the cores that the blocks are on.

    Args:
        run: the graphs of `mlpot.models.stages.trace_stages`, by name.
        each: runs blocks, in several threads if it likes.
    """
    order, graph = _in_order(graph)
    work = _Work(graph, run, each)
    last = sum(name.startswith("forward") for name in run)
    states = [_Kept([], None, [])]
    for i in range(last):
        states.append(work.forward(i, states[-1]))
    signal: _Kept | None = None
    for i in reversed(range(last + 1)):
        signal = work.backward(i, states.pop(), signal)
    gradient = torch.cat(work.gradient)
    forces = torch.zeros_like(graph.positions)
    forces.index_add_(0, graph.edge_index[1], gradient)
    forces.index_add_(0, graph.edge_index[0], gradient, alpha=-1)
    interaction = _per_structure(work.energy, graph)
    return Prediction(
        energy=interaction + _per_structure(work.reference, graph),
        forces=torch.empty_like(forces).index_copy_(0, order, forces),
        virial=_virial(work.vectors, gradient, graph),
        interaction=interaction,
    )


def _per_structure(per_atom: list[Tensor], graph: Graph) -> Tensor:
    total = torch.zeros(len(graph.cell), dtype=torch.float64)
    return total.index_add_(0, graph.batch, torch.cat(per_atom).double())


def _virial(vectors: Tensor, gradient: Tensor, graph: Graph) -> Tensor:
    """As of a `Potential`, but a product for every structure: no [E, 3, 3]."""
    owner = graph.batch[graph.edge_index[1]]
    ends = torch.searchsorted(owner, torch.arange(len(graph.cell) + 1)).tolist()
    virial = torch.stack([-vectors[a:b].T @ gradient[a:b] for a, b in pairwise(ends)])
    return 0.5 * (virial + virial.transpose(1, 2))


class _Work:
    """Stages on all blocks of a graph.

    Attributes:
        vectors: [E, 3] Å.
        energy, reference: [T] eV of every block, learned and given; there after the last stage.
        gradient: [e, 3] eV/Å of every block, dE/d(vectors); complete after the last call.
    """

    def __init__(self, graph: Graph, run: Mapping[str, Run], each: Map):
        self._numbers, self._run, self._each = graph.numbers, run, each
        self.vectors = edge_vectors(graph)
        self.energy: list[Tensor] = []
        self.reference: list[Tensor] = []
        self.gradient: list[Tensor] = []
        self._blocks: list[Block] = list(each(lambda cut: _block(graph, *cut), _cuts(graph)))

    def forward(self, i: int, before: _Kept) -> _Kept:
        """The state after stage ``i``."""
        after = _Kept([], None, [])
        for number, made in self._on_blocks(f"forward{i}", before, None):
            if after.read is None:
                after = after._replace(read=made[1].new_empty(len(self._numbers), made[1].shape[1]))
            after.own.append(made[0])
            after.read[self._blocks[number].atoms] = made[1]  # type: ignore[index]
            if i > 1:  # the first two layers have none to leave
                after.edges.append(made[2])
        return after

    def backward(self, i: int, before: _Kept, signal: _Kept | None) -> _Kept:
        """Gradients with respect to the state before stage ``i``, from those with respect to the
        state after it, which the last stage has none of. Those of edges replace their features,
        which nothing reads again."""
        read = None if before.read is None else torch.zeros_like(before.read)
        for number, (*made,) in self._on_blocks(f"backward{i}", before, signal):
            if signal is None:
                self.energy.append(made.pop(0))
                self.reference.append(made.pop(0))
                self.gradient.append(made[0])
            else:
                self.gradient[number] += made[0]
            if read is not None:
                before.own[number] = made[1]
                read.index_add_(0, self._blocks[number].members, made[2])
            if before.edges:
                before.edges[number] = made[3]
        return before._replace(read=read)

    def _on_blocks(
        self, name: str, before: _Kept, signal: _Kept | None
    ) -> Iterator[tuple[int, Sequence[Tensor]]]:
        run, numbers = self._run[name], self._numbers

        def one(number: int) -> Sequence[Tensor]:
            block = self._blocks[number]
            inputs = [numbers[block.atoms], block.members, block.edge_index]
            inputs += [self.vectors[block.edges], numbers, *before.of(number, slice(None))]
            return run(inputs + (signal.of(number, block.atoms) if signal else []))

        return enumerate(self._each(one, range(len(self._blocks))))


# --- which atoms make a block ----------------------------------------------------------------


def _in_order(graph: Graph) -> tuple[Tensor, Graph]:
    """Atoms that are near each other in space next to each other, structure by structure, edges in
    the order of their receivers: the new order of atoms, and the graph in it."""
    order = _near(graph)
    order = order[graph.batch[order].argsort(stable=True)]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    ends = place[graph.edge_index]
    by_receiver = ends[1].argsort(stable=True)
    return order, graph._replace(
        numbers=graph.numbers[order],
        positions=graph.positions[order],
        edge_index=ends[:, by_receiver],
        shifts=graph.shifts[by_receiver],
        batch=graph.batch,  # ascends, before as after
    )


def _near(graph: Graph) -> Tensor:
    """Order of atoms along a Z-order curve through cubes of 2 Å, in the first structure's cell."""
    cell, places = graph.cell[0], graph.positions
    if float(torch.linalg.det(cell).abs()) > 0:  # back into the cell
        fractions = torch.linalg.solve(cell.T, places.T).T
        places = (fractions - fractions.floor()) @ cell
    cubes = ((places - places.amin(dim=0)) / 2.0).long().clamp(max=1023)
    code = torch.zeros(len(places), dtype=torch.int64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cubes[:, axis] >> bit) & 1) << (3 * bit + axis)
    return code.argsort(stable=True)


def _cuts(graph: Graph) -> list[tuple[slice, slice]]:
    """Atoms and edges of blocks of about `BLOCK_EDGES` edges."""
    atoms, receiver = len(graph.numbers), graph.edge_index[1]
    ends = torch.searchsorted(receiver, torch.arange(atoms + 1))
    edges = len(receiver)
    count = max(1, min(atoms, round(edges / BLOCK_EDGES)))
    aims = torch.linspace(0, float(edges), count + 1)[1:-1]
    firsts = sorted({0, *torch.searchsorted(ends, aims).tolist(), atoms})
    starts = ends[firsts].tolist()
    return [
        (slice(a, b), slice(c, d))
        for a, b, c, d in zip(firsts, firsts[1:], starts, starts[1:], strict=False)
    ]


def _block(graph: Graph, atoms: slice, edges: slice) -> Block:
    """With the senders renumbered: the block's own atoms come first."""
    total, count = len(graph.numbers), atoms.stop - atoms.start
    sender = (graph.edge_index[0, edges] - atoms.start) % total
    every = torch.cat([torch.arange(count), sender])
    members, renumbered = torch.unique(every, return_inverse=True)
    ends = torch.stack([renumbered[count:], graph.edge_index[1, edges] - atoms.start])
    return Block(atoms, edges, (members + atoms.start) % total, ends)
