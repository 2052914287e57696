"""A model as one flat graph of tensor operations, forces and parameter gradients included.

torch.compile cannot differentiate twice. Here autograd runs while the graph is recorded
(`make_fx`), so what is left is a plain function of tensors, dynamic in atoms, edges and
structures, that any compiler can take. Two rewrites make it cheaper:

* a bias is added by the operation that reads the product, not copied in front of it;
* distances, directions and envelopes are kept, instead of being computed anew, with their
  roots and divisions, by every operation that reads them.

A third, `sum_by_segments`, is for several cores in one large structure.
"""

import copy
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from mlpot.graph import Graph, whole
from mlpot.models.potential import Potential

aten = torch.ops.aten

#: edge quantities of up to so many numbers are kept rather than computed again
_NARROW = 8

#: sizes to trace with, ascending primes
_SIZES = [n for n in range(5, 200) if all(n % d for d in range(2, n))]

#: operations that only look at a tensor in another way
_VIEWS = (
    aten.view.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.select.int,
    aten.alias.default,
)


def trace_potential(potential: Potential, rewrite: bool = True) -> GraphModule:
    """Graph fields -> energy and interaction [B] eV (float64), forces [N, 3], virial [B, 3, 3].

    Weights become constants of the graph. With ``rewrite``, for a compiler, the fields are those of
    `mlpot.graph.halve`, and outputs after the fourth are intermediate results.
    """
    potential = potential.eval()

    def predict(*fields: Tensor) -> tuple[Tensor, ...]:
        p = potential(whole(Graph(*fields)) if rewrite else Graph(*fields))
        return p.energy, p.interaction, p.forces, p.virial

    with frozen(potential), paired(potential, rewrite):
        return flat_graph(predict, example_graph(potential), 2, rewrite)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While tracing: no gradients of parameters, or they would be traced as well."""
    learned = [p for p in model.parameters() if p.requires_grad]
    for p in learned:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learned:
            p.requires_grad_(True)


@contextmanager
def paired(model: nn.Module, yes: bool = True) -> Iterator[None]:
    """While tracing: the backbone may count on graphs from `mlpot.graph.whole`."""
    backbone: Any = model.backbone
    before, backbone.paired = backbone.paired, yes
    try:
        yield
    finally:
        backbone.paired = before


def trace_gradients(
    model: nn.Module,
    loss: Callable[..., tuple[Tensor, ...]],
    fixed: Sequence[Tensor],
    example: Sequence[Tensor],
) -> GraphModule:
    """`state` of the model, ``fixed`` and ``example`` -> loss and what else ``loss`` returns,
    then a gradient for every parameter.

    Args:
        model: in training mode; its parameters and buffers are inputs of the graph.
        loss: ``loss(*fixed, *example) -> (loss, ...)``, which calls the model.
        fixed: inputs that never change their size.
        example: tensors of typical sizes, all different; the fields of a Graph come first, as
            `mlpot.graph.halve` leaves them.
    """
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    count, learned = len(names), len(list(model.parameters()))

    def step(*inputs: Tensor) -> tuple[Tensor, ...]:
        weights = [p.detach().requires_grad_(True) for p in inputs[:learned]]
        replaced = dict(zip(names, (*weights, *inputs[learned:count]), strict=True))
        with torch.nn.utils.stateless._reparametrize_module(model, replaced):
            outputs = loss(*inputs[count:])
        gradients = torch.autograd.grad(outputs[0], weights, allow_unused=True)
        return (
            *(out.detach() for out in outputs),
            *(
                torch.zeros_like(w) if g is None else g
                for w, g in zip(weights, gradients, strict=True)
            ),
        )

    inputs = [*state(model), *fixed, *example]
    with paired(model):
        return flat_graph(step, inputs, edge_index=count + len(fixed) + 2)


def state(model: nn.Module) -> list[Tensor]:
    """Parameters, then buffers, as a graph of gradients takes them."""
    return [p.detach() for p in (*model.parameters(), *model.buffers())]


def example_graph(model: nn.Module) -> Graph:
    """A graph to trace with: values do not matter, but no two sizes are the same."""
    parameter = next(model.parameters())
    structures, atoms, edges = example_sizes(model, 3)
    rng = torch.Generator().manual_seed(0)
    # any element will do, and 1 is a row of every table
    fields = Graph(
        numbers=torch.ones(atoms, dtype=torch.int64),
        positions=torch.randn(atoms, 3, generator=rng),
        edge_index=torch.randint(0, atoms, (2, edges), generator=rng),
        shifts=torch.randn(edges, 3, generator=rng),
        batch=(torch.arange(atoms) * structures) // atoms,
        cell=torch.zeros(structures, 3, 3),
    )
    return Graph(
        *(
            f.to(parameter.device, parameter.dtype if f.is_floating_point() else f.dtype)
            for f in fields
        )
    )


def example_sizes(model: nn.Module, count: int) -> list[int]:
    """So many sizes to trace with, ascending. A size that a weight has as well would be taken for
    that of the weight, and fixed."""
    taken = {size for p in (*model.parameters(), *model.buffers()) for size in p.shape}
    return [n for n in _SIZES if n not in taken][::3][:count]


class Segments(NamedTuple):
    """Where the rows are that a sum adds up: a permutation, and where each sum's rows start.
    Tensors, or the nodes that stand for them in a graph."""

    by_receiver: Any  # [E] edges in the order of their receivers
    receivers: Any  # [N] where the edges of each receiver start
    by_sender: Any  # [E]
    senders: Any  # [N]
    half_by_receiver: Any  # [E/2] the same for one direction of every edge
    half_receivers: Any  # [N]
    half_by_sender: Any  # [E/2]
    half_senders: Any  # [N]
    atoms: Any  # [N] atoms in order
    structures: Any  # [B] where the atoms of each structure start
    structure_edges: Any  # [B] where the edges of each structure start, by receiver


def find_segments(half: Graph) -> Segments:
    """The segments of `whole(half)`; structures must be in order, edges need not be."""
    graph = whole(half)
    atoms = torch.arange(graph.numbers.shape[0])

    def ordered(index: Tensor) -> tuple[Tensor, Tensor]:
        value, order = index.sort()
        return order, torch.searchsorted(value, atoms)

    by_receiver, receivers = ordered(graph.edge_index[1])
    edges = by_receiver.shape[0]
    # the reverse of an edge is half the edges away, and sends to the atom that it came from
    by_sender = (by_receiver + edges // 2) % max(1, edges)
    structures = torch.arange(graph.cell.shape[0])
    return Segments(
        by_receiver,
        receivers,
        by_sender,
        receivers,
        *ordered(half.edge_index[1]),
        *ordered(half.edge_index[0]),
        atoms,
        torch.searchsorted(graph.batch, structures),
        torch.searchsorted(graph.batch[graph.edge_index[1][by_receiver]], structures),
    )


def sum_by_segments(module: GraphModule) -> GraphModule:
    """`trace_potential`'s graph with `Segments` as further inputs, its sums over edges and atoms
    taken segment by segment (embedding_bag): several cores can share those, where additions
    into one array by index would have to be atomic."""
    module = copy.deepcopy(module)
    graph = module.graph
    fields = [n for n in graph.nodes if n.op == "placeholder"]
    (both,) = (n for n in graph.nodes if _is_whole(n, fields[2]))
    edges = both.meta["val"].shape[1]
    with graph.inserting_after(fields[-1]):
        nodes = {name: graph.placeholder(name) for name in reversed(Segments._fields)}
    segments = Segments(**nodes)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is aten.index_add.default:
            source = node.args[3].meta["val"]
            which = _which(node.args[2], both, segments, source.shape[0] == edges)
            if which is None:
                continue
            rows, starts = which
            with graph.inserting_before(node):
                total = _bag(graph, node.args[3], rows, starts)
                if not str(node.args[0].target).startswith(("aten.zeros", "aten.new_zeros")):
                    total = graph.call_function(aten.add.Tensor, (node.args[0], total))
            total.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(total)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return module


def _is_whole(node: Node, half: Node) -> bool:
    """Is this the edge_index of `whole`: one direction and the other?"""
    return node.target is aten.cat.default and node.args[0][0] is half  # type: ignore


def _which(index: Node, both: Node, segments: Segments, edges: bool) -> tuple[Node, Node] | None:
    """The segments that an index stands for: a row of edge_index, or batch. None where self-loops
    were added to the edges."""
    row, half = None, False
    while index is not both and index.op == "call_function":
        if index.target is aten.cat.default:
            return None
        if index.target is aten.select.int:
            row = index.args[2]
        half = half or index.target is aten.slice.Tensor
        index = index.args[0]  # type: ignore[assignment]
    if index is not both:  # batch
        if edges:
            return segments.by_receiver, segments.structure_edges
        return segments.atoms, segments.structures
    if half:
        ends = (segments.half_by_sender, segments.half_senders)
        return ends if row == 0 else (segments.half_by_receiver, segments.half_receivers)
    ends = (segments.by_sender, segments.senders)
    return ends if row == 0 else (segments.by_receiver, segments.receivers)


def _bag(graph: torch.fx.Graph, source: Node, rows: Node, starts: Node) -> Node:
    """Sums of ``source`` over segments, whatever its trailing dimensions."""
    trailing = [int(size) for size in source.meta["val"].shape[1:]]
    flat = graph.call_function(aten.reshape.default, (source, [-1, math.prod(trailing)]))
    bags = graph.call_function(
        aten._embedding_bag.default, (flat, rows, starts, False, 0, False, None, False, -1)
    )
    total = graph.call_function(operator.getitem, (bags, 0))
    return graph.call_function(aten.reshape.default, (total, [-1, *trailing]))


def dynamic_sizes(inputs: Sequence[Tensor], first: int) -> tuple[Any, ...]:
    """For torch.export: which dimensions vary. ``first`` is the number of fixed inputs in front,
    then come the fields of a Graph and labels per atom or structure."""
    vary = torch.export.Dim.DYNAMIC
    edge_index = first + 2
    return tuple(
        None if i < first or t.dim() == 0 else {1 if i == edge_index else 0: vary}
        for i, t in enumerate(inputs)
    )


def flat_graph(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    edge_index: int,
    rewrite: bool = True,
) -> GraphModule:
    module = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    half = placeholders[edge_index].meta["val"].shape[1]
    if rewrite:
        _add_bias_last(module)
        _keep_edge_quantities(module, (half, 2 * half))
    # inputs and outputs as flat lists, whatever was traced
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _add_bias_last(module: GraphModule) -> None:
    """addmm(b, x, w) -> mm(x, w) - (-b). As a difference, because inductor would turn a sum back
    into addmm, which on a CPU copies the bias into every row first."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target is aten.addmm.default:
            bias, x, w = node.args
            with module.graph.inserting_before(node):
                product = module.graph.call_function(aten.mm.default, (x, w))
                negative = module.graph.call_function(aten.neg.default, (bias,))
                total = module.graph.call_function(aten.sub.Tensor, (product, negative))
            for new in (product, total):
                new.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(total)
            module.graph.erase_node(node)


def _keep_edge_quantities(module: GraphModule, edges: tuple[Any, ...]) -> None:
    """Make narrow edge quantities that wide ones read outputs: outputs are stored, and what is
    stored is read."""
    kept: list[Node] = []
    for node in module.graph.nodes:
        if node.op != "call_function" or not _is_narrow(node, edges):
            continue
        if any(_width(user) > _NARROW for user in node.users):
            source = node
            while source.target in _VIEWS:
                source = source.args[0]
            if source.op == "call_function" and source not in kept:
                kept.append(source)
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    output.args = ((*output.args[0], *kept),)


def _is_narrow(node: Node, edges: tuple[Any, ...]) -> bool:
    value = node.meta.get("val")
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() > 0
        and not isinstance(value.shape[0], int)
        and any(value.shape[0] == count for count in edges)
        and _width(node) <= _NARROW
    )


def _width(node: Node) -> int:
    """Numbers per row; 0 for what is no tensor."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() == 0:
        return 0
    width = 1
    for size in value.shape[1:]:
        width *= int(size)
    return width
