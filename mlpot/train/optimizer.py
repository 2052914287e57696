"""The optimisers that a recipe may name.

``muon`` takes orthogonalised momentum for the matrices between hidden features (Jordan et al.,
2024; Liu et al., arXiv 2502.16982) and AdamW for all else. Both are torch's, but for one thing:
matrices of one shape are made orthogonal together. With steps scaled to the size of AdamW's, one
learning rate serves both.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer


def make_optimizer(
    model: nn.Module, kind: str, learning_rate: float, weight_decay: float
) -> Optimizer:
    """``adamw`` or ``muon`` over the parameters of a model."""
    if kind == "adamw":
        return AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    matrices = hidden_matrices(model)
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    return MuonAdamW(matrices, others, learning_rate, weight_decay)


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Weights of linear layers with more than one output; no embeddings, biases or norms."""
    return [
        m.weight for m in model.modules() if isinstance(m, nn.Linear) and min(m.weight.shape) > 1
    ]


class BatchedMuon(Muon):
    """torch's Muon with one matrix product for all matrices of a shape, in their own dtype.

    torch takes one matrix after the other, in bfloat16: for matrices this small on a CPU, a sixth
    of a whole training step went into the calls alone.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float):
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; ``closure`` evaluates the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, params, grads, momenta)
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            towards = torch._foreach_lerp(grads, momenta, group["momentum"])  # Nesterov
            directions = _orthogonal(towards, group)
            rates = [group["lr"] * 0.2 * max(p.shape) ** 0.5 for p in params]
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_mul_(directions, rates)
            torch._foreach_sub_(params, directions)
        return loss


def _orthogonal(matrices: Sequence[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """The Newton-Schulz iteration of Muon over stacks of matrices of one shape."""
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        alike[matrix.shape].append(i)
    result = list(matrices)
    for indices in alike.values():
        stack = _newton_schulz(torch.stack([matrices[i] for i in indices]), group)
        for i, matrix in zip(indices, stack, strict=True):
            result[i] = matrix
    return result


def _newton_schulz(x: Tensor, group: dict[str, Any]) -> Tensor:
    """Singular values of [K, M, N] brought near one."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    a, b, c = group["ns_coefficients"]
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MuonAdamW(Optimizer):
    """Muon for some parameters and AdamW for others, as one optimiser.

    Lightning, learning-rate schedules and checkpoints deal with one; the two inside share its
    parameter groups and its state.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        learning_rate: float,
        weight_decay: float,
    ):
        common: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
        self._parts: tuple[Optimizer, Optimizer] = (
            BatchedMuon(matrices, **common),
            AdamW(others, **common),
        )
        super().__init__([part.param_groups[0] for part in self._parts], {})
        self._share()

    def _share(self) -> None:
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # makes new groups and a new state
        self._share()

    def step(self, closure: Any = None) -> Any:
        """One step of both; ``closure`` evaluates the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
