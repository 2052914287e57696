"""Graph: what every model reads. Fields carry their shape and unit; `check` is the one validator.

A NamedTuple of tensors, because torch.jit.script and torch.export both accept it.
N atoms, E directed edges, B structures.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from mlpot.errors import InputError


class Graph(NamedTuple):
    """One or several structures with their neighbours, in Å."""

    numbers: Tensor  # [N] int64, atomic numbers
    positions: Tensor  # [N, 3] Å
    edge_index: Tensor  # [2, E] int64: row 0 the sender j, row 1 the receiver i
    shifts: Tensor  # [E, 3] Å, lattice translation of the sender (zero if not periodic)
    batch: Tensor  # [N] int64, which structure an atom belongs to, ascending
    cell: Tensor  # [B, 3, 3] Å, rows are lattice vectors (zero if not periodic)


def edge_vectors(graph: Graph) -> Tensor:
    """Vector from receiver i to sender j of every edge, [E, 3] Å."""
    sender = graph.positions.index_select(0, graph.edge_index[0])
    receiver = graph.positions.index_select(0, graph.edge_index[1])
    return sender + graph.shifts - receiver


def batch(graphs: Sequence[Graph]) -> Graph:
    """Join graphs into one; atom and structure indices are renumbered."""
    if not graphs:
        raise InputError("cannot batch an empty list of graphs")
    sizes = [g.numbers.shape[0] for g in graphs]
    structures = [g.cell.shape[0] for g in graphs]
    first_atom = list(accumulate(sizes, initial=0))[:-1]
    first_structure = list(accumulate(structures, initial=0))[:-1]
    return Graph(
        torch.cat([g.numbers for g in graphs]),
        torch.cat([g.positions for g in graphs]),
        torch.cat([g.edge_index + n for g, n in zip(graphs, first_atom, strict=True)], dim=1),
        torch.cat([g.shifts for g in graphs]),
        torch.cat([g.batch + b for g, b in zip(graphs, first_structure, strict=True)]),
        torch.cat([g.cell for g in graphs]),
    )


def unbatch(graph: Graph) -> list[Graph]:
    """Split a batched graph into its structures (edges keep their order)."""
    graphs = []
    edge_structure = graph.batch[graph.edge_index[1]]
    for b in range(graph.cell.shape[0]):
        atoms = (graph.batch == b).nonzero()[:, 0]
        edges = edge_structure == b
        start = int(atoms[0]) if len(atoms) else 0
        graphs.append(
            Graph(
                graph.numbers[atoms],
                graph.positions[atoms],
                graph.edge_index[:, edges] - start,
                graph.shifts[edges],
                torch.zeros_like(atoms),
                graph.cell[b : b + 1],
            )
        )
    return graphs


def halve(graph: Graph) -> Graph:
    """One direction of every edge; `whole` adds the other.

    Raises:
        InputError: an edge has no reverse.
    """
    sender, receiver = graph.edge_index[0], graph.edge_index[1]
    kept = sender < receiver
    loops = sender == receiver
    if bool(loops.any()):  # an atom and its own image
        x, y, z = graph.shifts.unbind(1)
        kept = kept | (loops & ((x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))))
    half = graph._replace(edge_index=graph.edge_index[:, kept], shifts=graph.shifts[kept])
    if 2 * half.shifts.shape[0] != sender.shape[0]:
        raise InputError("every edge of a Graph must come with its reverse")
    return half


def whole(half: Graph) -> Graph:
    """Both directions of every edge: those of ``half``, then all of them reversed."""
    return Graph(
        half.numbers,
        half.positions,
        torch.cat([half.edge_index, half.edge_index.flip(0)], dim=1),
        torch.cat([half.shifts, -half.shifts]),
        half.batch,
        half.cell,
    )


class Cut(NamedTuple):
    """A run of neighbouring structures in a batched graph."""

    structures: slice
    atoms: slice
    edges: slice


def cut(graph: Graph, edges: int, least: int = 1) -> list[Cut]:
    """Cut a batched graph between structures, into parts of about so many edges; in one part if
    its edges do not come structure by structure, as `batch` joins them.

    Args:
        edges: of a part; a structure with more is a part of its own.
        least: at least so many parts, if there are so many structures.
    """
    structures = graph.cell.shape[0]
    bounds = torch.arange(structures + 1, device=graph.batch.device)
    atoms = torch.searchsorted(graph.batch, bounds).tolist()
    owner = graph.batch[graph.edge_index[1]]
    if bool((owner[1:] < owner[:-1]).any()):
        whole = (structures, graph.numbers.shape[0], owner.shape[0])
        return [Cut(*(slice(0, count) for count in whole))]
    filled = torch.searchsorted(owner, bounds)
    ends = filled.tolist()
    count = min(structures, max(least, round(ends[-1] / edges)))
    aims = torch.linspace(0, float(ends[-1]), count + 1, device=filled.device)[1:-1]
    firsts = [0, *torch.searchsorted(filled, aims).tolist(), structures]
    return [
        Cut(slice(a, b), slice(atoms[a], atoms[b]), slice(ends[a], ends[b]))
        for a, b in zip(firsts, firsts[1:], strict=False)
        if b > a
    ]


def take(graph: Graph, part: Cut) -> Graph:
    """The structures of a part, renumbered, as a graph."""
    return Graph(
        graph.numbers[part.atoms],
        graph.positions[part.atoms],
        graph.edge_index[:, part.edges] - part.atoms.start,
        graph.shifts[part.edges],
        graph.batch[part.atoms] - part.structures.start,
        graph.cell[part.structures],
    )


def to(graph: Graph, device: torch.device | str, dtype: torch.dtype) -> Graph:
    """Move every field to a device and every real field to a dtype."""
    return Graph(*(f.to(device, dtype) if f.is_floating_point() else f.to(device) for f in graph))


def check_sizes(graph: Graph) -> None:
    """Raise InputError if shapes or dtypes do not fit together. Looks at no values, so it costs
    microseconds."""
    n, e, b = graph.numbers.shape[0], graph.edge_index.shape[-1], graph.cell.shape[0]
    real = graph.positions.dtype
    wanted = {
        "numbers": ((n,), torch.int64),
        "positions": ((n, 3), real),
        "edge_index": ((2, e), torch.int64),
        "shifts": ((e, 3), real),
        "batch": ((n,), torch.int64),
        "cell": ((b, 3, 3), real),
    }
    for name, (shape, dtype) in wanted.items():
        field = getattr(graph, name)
        if tuple(field.shape) != shape:
            got = list(field.shape)
            raise InputError(f"Graph.{name} must have shape {list(shape)}, got {got}")
        if field.dtype != dtype:
            like = "" if dtype == torch.int64 else " like the positions"
            told = str(dtype).removeprefix("torch.")
            raise InputError(f"Graph.{name} must be {told}{like}, got {field.dtype}")


def check(graph: Graph) -> Graph:
    """Return the graph if its shapes, dtypes and values are usable, else raise InputError."""
    check_sizes(graph)
    n, e, b = graph.numbers.shape[0], graph.edge_index.shape[-1], graph.cell.shape[0]
    if n == 0:
        raise InputError("the structure has no atoms")
    if not bool(torch.isfinite(graph.positions).all()):
        bad = int((~torch.isfinite(graph.positions)).any(dim=1).nonzero()[0, 0])
        raise InputError(
            f"atom {bad} has a NaN or infinite coordinate; the simulation that made it has "
            "broken, or the file is damaged. Start from a finite geometry"
        )
    if int(graph.numbers.min()) < 0 or int(graph.numbers.max()) > 118:
        raise InputError("Graph.numbers must be atomic numbers, 1..118")
    if e and (int(graph.edge_index.min()) < 0 or int(graph.edge_index.max()) >= n):
        raise InputError(f"Graph.edge_index must lie in 0..{n - 1}")
    first, last = int(graph.batch[0]), int(graph.batch[-1])
    if bool((graph.batch[1:] < graph.batch[:-1]).any()) or first < 0 or last >= b:
        raise InputError(f"Graph.batch must ascend within 0..{b - 1}, one index for each cell")
    if not bool(torch.isfinite(graph.shifts).all() and torch.isfinite(graph.cell).all()):
        raise InputError("Graph.shifts and Graph.cell must be finite")
    return graph
