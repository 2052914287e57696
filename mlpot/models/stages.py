"""A potential as stages, for structures too large to be worked off at once.

A stage takes every atom from one state to the next: first the embedding, then a layer each, the
head with the last one. Of its neighbours an atom reads only the state before, so a stage can be
worked off in blocks of atoms, in any order and by several threads; and so can its gradient, with
intermediate results computed again. What lives longer than a block is the states.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn.functional import linear, silu

from mlpot.graph import Graph
from mlpot.models.layers import spherical_harmonics, sum_over_edges
from mlpot.models.potential import Potential
from mlpot.models.tracing import example_sizes, flat_graph, frozen
from mlpot.models.visnet import Features, ViSNet


class State(NamedTuple):
    """What a stage leaves to the next. Nothing before the first; after the last, ``own`` is the
    learned energies [N] and ``read`` the reference energies.

    Edges are most of the memory, so there are none before the third layer: what the first two read
    of them is made again from x after the embedding, the last H columns of ``read``."""

    own: Tensor | None = None  # [N, ...] what an atom reads of itself
    read: Tensor | None = None  # [N, ...] what its neighbours read of it
    edges: Tensor | None = None  # [E, ...]

    def tensors(self) -> list[Tensor]:
        """Those that are there."""
        return [t for t in self if t is not None]


class Place(NamedTuple):
    """A block: T atoms, all e edges that they receive, and the L atoms that those come from, the T
    atoms first."""

    atoms: int  # T
    numbers: Tensor  # [L]
    edge_index: Tensor  # [2, e]: row 0 the sender, below L, row 1 the receiver, below T
    vectors: Tensor  # [e, 3] Å


#: (own [T, ...], read [L, ...], edges [e, ...]) -> (own [T, ...], read [T, ...], edges [e, ...])
Stage = Callable[[Place, State], State]


def stages(potential: Potential) -> list[Stage]:
    """The stages of a potential for which `has_stages`."""
    backbone: Any = potential.backbone
    layers = range(len(backbone.layers))
    return [partial(_start, potential), *(partial(_layer, potential, i) for i in layers)]


def has_stages(potential: Potential) -> bool:
    """Is its backbone one that is written in stages: a ViSNet without self-loops?"""
    return isinstance(potential.backbone, ViSNet) and not potential.backbone.self_loops


def _start(potential: Potential, place: Place, nothing: State) -> State:
    """Embedding of every atom, with its neighbourhood."""
    backbone: Any = potential.backbone
    h, numbers = backbone.config.channels, place.numbers
    sender, receiver = place.edge_index[0], place.edge_index[1]
    distance, _, envelope = _geometry(potential, place)
    near = linear(backbone.basis(distance), *_rows(backbone.radial, 0, h))
    near = near * envelope * backbone.neighbor_embedding(numbers).index_select(0, sender)
    summed = sum_over_edges(near, receiver, place.atoms)
    x = backbone.combine(torch.cat([backbone.embedding(numbers[: place.atoms]), summed], dim=1))
    layer: Any = backbone.layers[0]
    q, k, v = layer.qkv(layer.scalar_norm(x)).split(h, dim=1)
    return State(q.clone(), torch.cat([k, v, x], dim=1))


def _layer(potential: Potential, i: int, place: Place, state: State) -> State:
    """Layer ``i``, and what the next one, or the head, makes of its result."""
    backbone: Any = potential.backbone
    x, vec, f = _messages(potential, backbone.layers[i], place, state)
    if i + 1 < len(backbone.layers):
        after = _before(backbone.layers[i + 1], x, vec)
        if i > 0:
            return after._replace(edges=f)
        assert state.read is not None and after.read is not None
        embedded = state.read[: place.atoms, -x.shape[1] :]
        return after._replace(read=torch.cat([after.read, embedded], dim=1))
    latent = Features(backbone.scalar_norm(x), backbone.vector_norm(vec))
    energy = potential.head(latent) * potential.scale
    if potential.prior is not None:
        energy = energy + potential.prior(_graph(place), place.vectors)[: place.atoms]
    return State(energy, potential.reference_energies[place.numbers[: place.atoms]])


def _before(layer: Any, x: Tensor, vec: Tensor) -> State:
    """What a layer after the first makes of atoms for their neighbours."""
    h = layer.channels
    known, w = linear(layer.scalar_norm(x), *_rows(layer.qkv, h, 3 * h)), layer.vector_norm(vec)
    read = [known, w.flatten(1)]
    if layer.update_edges:
        read.append(linear(w, layer.vector.weight[4 * h :]).flatten(1))
    return State(torch.cat([x, vec.flatten(1)], dim=1), torch.cat(read, dim=1))


def _messages(
    potential: Potential, layer: Any, place: Place, state: State
) -> tuple[Tensor, Tensor, Tensor]:
    """x, vec and f after a layer; with `_before` the equations of `ViSNetLayer.forward`."""
    backbone: Any = potential.backbone
    h, atoms = layer.channels, place.atoms
    sender, receiver = place.edge_index[0], place.edge_index[1]
    distance, direction, envelope = _geometry(potential, place)
    assert state.own is not None and state.read is not None
    known, f = state.read, state.edges
    if f is None:
        known, embedded = known[:, :-h], known[:, -h:]
        f = embedded.index_select(0, sender) + embedded.index_select(0, receiver)
        f = f * linear(backbone.basis(distance), *_rows(backbone.radial, h, 2 * h))
    if layer.first:
        x, q, (k, v) = embedded[:atoms], state.own, known.split(h, dim=1)
    else:
        x, vec = state.own[:, :h], state.own[:, h:].unflatten(1, (-1, h))
        q = linear(layer.scalar_norm(x), *_rows(layer.qkv, 0, h))
        k, v, w, *b = _parts(known, h, direction.shape[1])

    edge = silu(layer.edge(f)).split(h, dim=1)
    product = q.index_select(0, receiver) * k.index_select(0, sender) * edge[0]
    if layer.heads != h:
        product = product.view(-1, layer.heads, h // layer.heads).sum(dim=2)
    weight = silu(product) * envelope
    if layer.heads != h:
        weight = weight.repeat_interleave(h // layer.heads, dim=1)
    m = v.index_select(0, sender) * edge[1] * weight
    s = silu(layer.message(m))
    if layer.smooth:
        s = s * envelope
    o = layer.out(sum_over_edges(m, receiver, atoms)).split(h, dim=1)
    if layer.first:
        vec = sum_over_edges(s.unsqueeze(1) * direction, receiver, atoms)
        return x + o[0], vec, f

    own = w[:atoms].reshape(-1, h)
    mixed = linear(own, layer.vector.weight[: (4 if layer.update_edges else 3) * h])
    projected = mixed.view(atoms, -1, mixed.shape[1]).split(h, dim=2)
    s1, s2 = s.split(h, dim=1)
    messages = torch.addcmul(
        w.index_select(0, sender) * s1.unsqueeze(1), s2.unsqueeze(1), direction
    )
    vec = vec + projected[2] * o[0].unsqueeze(1) + sum_over_edges(messages, receiver, atoms)
    x = x + (projected[0] * projected[1]).sum(dim=1) * o[1] + o[2]
    if layer.update_edges:
        a_i, b_j = projected[3].index_select(0, receiver), b[0].index_select(0, sender)
        dot = (a_i * b_j).sum(dim=1)
        if layer.rejection != 0.0:
            along = (a_i * direction).sum(dim=1) * (b_j * direction).sum(dim=1)
            dot = dot + layer.rejection * along
        f = f + edge[2] * dot
    return x, vec, f


def _rows(layer: Any, first: int, end: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of some outputs of a linear layer."""
    return layer.weight[first:end], layer.bias[first:end]


def _parts(rows: Tensor, h: int, components: int) -> list[Tensor]:
    """Two scalars [*, H], then vectors [*, L, H], as `_before` joined them."""
    scalars, vectors = rows[:, : 2 * h], rows[:, 2 * h :].split(components * h, dim=1)
    return [*scalars.split(h, dim=1), *(v.unflatten(1, (components, h)) for v in vectors)]


def _graph(place: Place) -> Graph:
    """With what a prior and a floor read of one."""
    nothing = torch.zeros(0)
    return Graph(place.numbers, nothing, place.edge_index, nothing, nothing, nothing)


def _geometry(potential: Potential, place: Place) -> tuple[Tensor, Tensor, Tensor]:
    """Distance [e], direction [e, L, 1], envelope [e, 1], as learned features see them."""
    backbone: Any = potential.backbone
    vectors = potential.seen(_graph(place), place.vectors)
    distance = torch.sqrt((vectors * vectors).sum(dim=1))
    direction = spherical_harmonics(vectors / distance.unsqueeze(1), backbone.lmax)
    return distance, direction.unsqueeze(2), backbone.envelope(distance).unsqueeze(1)


# --- traced ----------------------------------------------------------------------------------


class Traced(NamedTuple):
    """A flat graph and inputs that it was traced with."""

    graph: GraphModule
    example: list[Tensor]


def stage_functions(potential: Potential) -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    """``forward0``, ... but for the last stage, and ``backward0``, ... to the last.

    Inputs of all: numbers [T], members [L] (the atoms that the block reads), edge_index [2, e],
    vectors [e, 3], numbers [N], then the state before: own [T, ...], read [N, ...], edges
    [e, ...]. ``forward`` gives the state after. ``backward`` takes gradients with respect to it
    (the last stage takes none and gives both energies [T] first) and gives those with respect to
    vectors and the state before: [T], [L] and [e] rows.
    """
    todo = stages(potential)
    before = [0, 2, 2, *(3 for _ in todo[3:])][: len(todo)]  # tensors in the state before
    forward = {f"forward{i}": partial(_forward, stage) for i, stage in enumerate(todo[:-1])}
    backward = {
        f"backward{i}": partial(_backward, stage, count)
        for i, (stage, count) in enumerate(zip(todo, before, strict=True))
    }
    return {**forward, **backward}


def trace_stages(potential: Potential) -> dict[str, Traced]:
    """`stage_functions` as flat graphs. Outputs after theirs are intermediate results."""
    functions, traced = stage_functions(potential.eval()), {}
    atoms, members, edges, everyone = example_sizes(potential, 4)
    real: Any = {"dtype": potential.scale.dtype}
    inputs = [
        torch.ones(atoms, dtype=torch.int64),
        torch.arange(members),
        torch.arange(2 * edges).view(2, edges) % atoms,
        torch.randn(edges, 3, **real),
        torch.ones(everyone, dtype=torch.int64),
    ]
    state: list[Tensor] = []
    with frozen(potential):
        for i in range(len(functions) // 2 + 1):
            example: list[Tensor] = [*inputs, *state]
            after: list[Tensor] = []
            if forward := functions.get(f"forward{i}"):
                with torch.no_grad():
                    after = list(forward(*example))
                traced[f"forward{i}"] = _trace(forward, example)
            traced[f"backward{i}"] = _trace(functions[f"backward{i}"], [*example, *after])
            # of everyone, where a block gives its own
            state = [
                torch.randn(everyone, t.shape[1], **real) if j == 1 else t
                for j, t in enumerate(after)
            ]
    return traced


def _trace(function: Callable[..., tuple[Tensor, ...]], example: list[Tensor]) -> Traced:
    return Traced(flat_graph(function, example, edge_index=2), example)


def _placed(
    numbers: Tensor,
    members: Tensor,
    edge_index: Tensor,
    vectors: Tensor,
    everyone: Tensor,
    *before: Tensor,
) -> tuple[Place, State]:
    place = Place(numbers.shape[0], everyone.index_select(0, members), edge_index, vectors)
    state = State(*before)
    if state.read is not None:
        state = state._replace(read=state.read.index_select(0, members))
    return place, state


def _forward(stage: Stage, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(stage(*_placed(*inputs)).tensors())


def _backward(stage: Stage, before: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    """``before``: how many tensors the state before has."""
    place, state = _placed(*inputs[: 5 + before])
    signals = inputs[5 + before :]
    leaves = [t.detach().requires_grad_(True) for t in (place.vectors, *state.tensors())]
    after = stage(place._replace(vectors=leaves[0]), State(*leaves[1:])).tensors()
    if signals:
        return tuple(torch.autograd.grad(after, leaves, signals))
    energy, reference = after
    return (energy.detach(), reference, *torch.autograd.grad([energy.sum()], leaves))
