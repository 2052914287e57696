"""The optimisers that a recipe may name.

``muon`` takes orthogonalised momentum for the matrices between hidden features (Jordan et al.,
2024; Liu et al., arXiv 2502.16982) and AdamW for all else. Both are torch's; with steps scaled to
the size of AdamW's, one learning rate serves both.
"""

from collections.abc import Iterable
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
            Muon(matrices, adjust_lr_fn="match_rms_adamw", **common),
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
