"""One training step: loss and gradients of a batch, eager or compiled.

Compiled, the loss with its double backward is one flat graph (`mlpot.models.tracing`), and a
batch is cut into parts small enough for a processor's cache, which threads work off, each on
one core. Gradients of the parts add up, because losses are sums.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlpot.data.loader import LabelledGraph
from mlpot.graph import Graph, cut, halve, take, whole
from mlpot.models.compiled import PART_EDGES, cached, compile_package, open_runner, workers
from mlpot.models.tracing import example_graph, state, trace_gradients

#: ``outputs(weights, batch) -> (loss, predictions, ...)``; a prediction has a row an atom or a
#: structure
Outputs = Callable[[Tensor, LabelledGraph], tuple[Tensor, ...]]


class CompiledStep:
    """Loss, predictions and gradients of a batch.

    Args:
        model: whose parameters are trained; on a CPU, in float32.
        outputs: the recipe's loss.
        terms: how many weights the loss takes.
        predictions: how many outputs there are beside the loss.
        key: what tells this graph from others: recipe and model configuration.
        threads: cores to use.
    """

    def __init__(
        self,
        model: nn.Module,
        outputs: Outputs,
        terms: int,
        predictions: int,
        key: dict[str, Any],
        threads: int,
    ):
        # Lightning and optimisers write into these tensors and never replace them.
        self._state, self._parameters = state(model), sum(1 for _ in model.parameters())
        self._threads, self._predictions = threads, predictions

        def build(path: Path) -> None:
            fixed = [torch.ones(terms)]
            example = _example(model)

            def loss(weights: Tensor, *fields: Tensor) -> tuple[Tensor, ...]:
                graph = whole(Graph(*fields[:6]))
                return outputs(weights, LabelledGraph(graph, *fields[6:]))

            graph = trace_gradients(model, loss, fixed, example)
            known = [*state(model), *fixed]
            compile_package(graph, [*known, *example], len(known), path)

        self._runner = cached(key, build, open_runner)
        self._pool = workers(threads)
        torch.set_num_threads(1)  # threads inside operations would only fight with ours

    def __deepcopy__(self, memo: Any) -> "CompiledStep":
        return self  # Lightning copies its module for averaged weights; a library is not copied

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def __call__(self, weights: Tensor, batch: LabelledGraph) -> tuple[list[Tensor], list[Tensor]]:
        """Loss and predictions of the whole batch; a gradient for every parameter."""
        known = [*self._state, weights]

        def run(part: LabelledGraph) -> list[Tensor]:
            return self._runner([*known, *_fields(part)])

        results = list(self._pool.map(run, parts(batch, self._threads)))
        first = 1 + self._predictions
        told = [torch.stack([p[0] for p in results]).sum()]
        told += [torch.cat([p[i] for p in results]) for i in range(1, first)]
        columns = zip(*(p[first : first + self._parameters] for p in results), strict=True)
        return told, [torch.stack(same).sum(dim=0) for same in columns]


class WithGradients(torch.autograd.Function):
    """Hands gradients that are known already to autograd, so that Lightning, clipping and DDP
    work as always. ``apply(loss, gradients, *parameters) -> loss``"""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(grad[0] * g for g in ctx.gradients))


def parts(batch: LabelledGraph, least: int) -> list[LabelledGraph]:
    """The batch in parts of about `PART_EDGES` edges, at least so many of them."""
    return [
        LabelledGraph(
            take(batch.graph, c),
            batch.energy[c.structures],
            batch.forces[c.atoms],
            batch.noise[c.atoms],
        )
        for c in cut(batch.graph, PART_EDGES, least)
    ]


def _fields(batch: LabelledGraph) -> list[Tensor]:
    labels = (batch.energy, batch.forces, batch.noise)
    return [f.contiguous() for f in (*halve(batch.graph), *labels)]


def _example(model: nn.Module) -> list[Tensor]:
    graph = example_graph(model)
    energy = torch.zeros(graph.cell.shape[0], dtype=torch.float64)
    nothing = torch.zeros_like(graph.positions)
    return [*graph, energy, nothing, nothing.clone()]
