"""A potential as TorchScript without autograd: the traced graph, forces written out.

A third faster than scripting the modules, because nothing is recorded and differentiated at
every call, and weights are constants already laid out.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node, subgraph_rewriter
from torch.fx.experimental.proxy_tensor import make_fx

from mlpot.graph import Graph
from mlpot.models.potential import Potential, Prediction
from mlpot.models.tracing import trace_potential

aten = torch.ops.aten


def script(potential: Potential) -> torch.jit.ScriptModule:
    """``script(potential)(graph) -> Prediction``, in evaluation mode, on the potential's device
    and in its precision."""
    module = trace_potential(potential, rewrite=False)
    _use_kernels(module)
    _speak_torchscript(module)
    return torch.jit.script(_Scripted(module).eval())


def settle() -> None:
    """Keep torch.jit from tailoring code to the sizes it meets. In a simulation the number of edges
    is new at almost every step, and each new one cost more than the step itself. A GPU's fusers
    profit from it; there it is left alone. This is a setting of the whole process."""
    if not torch.cuda.is_available():
        torch.jit.set_fusion_strategy([("STATIC", 0), ("DYNAMIC", 0)])


class _Scripted(nn.Module):
    def __init__(self, traced: GraphModule):
        super().__init__()
        self.traced = traced

    def forward(self, graph: Graph) -> Prediction:
        energy, interaction, forces, virial = self.traced(
            graph.numbers,
            graph.positions,
            graph.edge_index,
            graph.shifts,
            graph.batch,
            graph.cell,
        )
        return Prediction(energy, forces, virial, interaction, None)


def _use_kernels(module: GraphModule) -> None:
    """One kernel where tracing wrote out several: the gradient of silu, and linear layers, which
    torch.jit would otherwise split into product and sum. Both are eager's own, to the last bit.
    Nothing else fuses on a CPU: torch's packages come without the LLVM that torch.jit needs."""
    written_out = make_fx(aten.silu_backward.default)(torch.ones(2), torch.ones(2))
    subgraph_rewriter.replace_pattern(
        module, written_out, lambda grad, x: aten.silu_backward.default(grad, x)
    )
    for node in module.graph.nodes:
        if node.target is aten.addmm.default and node.args[2].target is aten.t.default:
            bias, x, transposed = node.args
            node.target, node.args = aten.linear.default, (x, transposed.args[0], bias)


def _speak_torchscript(module: GraphModule) -> None:
    """Replace what TorchScript does not know: overloads, sizes as operators, devices."""
    graph = module.graph
    positions = [n for n in graph.nodes if n.op == "placeholder"][1]
    for node in list(graph.nodes):
        if node.op == "get_attr":  # a buffer moves to a GPU with the module, and needs no gradient
            constant: Tensor = getattr(module, node.target)
            delattr(module, node.target)
            module.register_buffer(node.target, constant.detach().clone())
        if node.op != "call_function" or not hasattr(node.target, "overloadpacket"):
            continue
        method = _as_method(node, positions)
        if method is not None:
            with graph.inserting_before(node):
                new = graph.call_method(*method)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
        elif node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        else:
            node.kwargs = _without_device(node)
            node.target = node.target.overloadpacket
    graph.eliminate_dead_code()
    module.recompile()


def _as_method(node: Node, positions: Node) -> tuple[str, tuple[Any, ...], dict[str, Any]] | None:
    """Method, arguments and keywords that do the same on any device; None if it may stay."""
    if node.target is aten.sym_size.int:
        return "size", node.args, {}
    if node.target is aten.zeros.default:
        return "new_zeros", (positions, node.args[0]), _without_device(node)
    if node.target is aten.new_zeros.default:
        return "new_zeros", node.args, _without_device(node)
    if node.target is aten._to_copy.default:
        return "to", (node.args[0], node.kwargs["dtype"]), {}
    return None


def _without_device(node: Node) -> dict[str, Any]:
    left_out = ("device", "layout", "pin_memory", "memory_format")
    return {k: v for k, v in node.kwargs.items() if k not in left_out}
