"""Potential: backbone + head + reference energies -> energy, forces, virial.

The only place where mlpot differentiates. Forces and virial both come from one gradient
with respect to the edge vectors, so forces add up to zero by construction, periodic images
need no special care, and asking for the virial costs nothing more.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlpot.graph import Graph, edge_vectors
from mlpot.models.visnet import Features


class Prediction(NamedTuple):
    """What a potential says of a graph. Energies are always float64: a total energy of
    -20,000 eV has steps of 2 meV in float32."""

    energy: Tensor  # [B] eV, float64, total: interaction + reference energies
    forces: Tensor  # [N, 3] eV/Å
    virial: Tensor  # [B, 3, 3] eV, -dE/d(strain); stress is -virial / volume
    interaction: Tensor  # [B] eV, float64, energy less the reference energies
    features: Tensor | None = None  # [N, H] scalar features of the backbone, where asked for


class Potential(nn.Module):
    """Energy and forces of neutral closed-shell structures.

    Args:
        backbone: ``backbone(graph, edge_vectors) -> Features``; has ``cutoff`` in Å.
        head: ``head(features) -> [N]``, per-atom energies in units of ``scale``.
        reference_energies: eV per atomic number, for every element the model covers.
        scale: eV per unit of head output.
        prior: ``prior(graph, edge_vectors) -> [N]``, eV per atom, added to what is learned.
        floor: ``floor(graph, edge_vectors) -> [E, 3]``, edge vectors as the backbone sees them.
    """

    reference_energies: Tensor
    scale: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        reference_energies: dict[int, float],
        scale: float = 1.0,
        prior: nn.Module | None = None,
        floor: nn.Module | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.prior = prior
        self.floor = floor
        self.cutoff = float(backbone.cutoff)  # type: ignore[arg-type]
        self.elements = sorted(reference_energies)
        table = torch.zeros(max(self.elements) + 1, dtype=torch.float64)
        for number, energy in reference_energies.items():
            table[number] = energy
        self.register_buffer("reference_energies", table)
        self.register_buffer("scale", torch.tensor(float(scale)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Potential":
        """Keep reference energies in float64 whatever dtype the model is moved to."""
        exact = self.reference_energies
        super()._apply(fn, recurse)
        self.reference_energies = exact.to(self.reference_energies.device)
        return self

    def forward(self, graph: Graph, features: bool = False) -> Prediction:
        """Energy, forces and virial; differentiable once more while training.

        Args:
            graph: any number of structures.
            features: also return the backbone's scalar features.
        """
        if torch.jit.is_scripting():
            return self._predict(graph, features)
        with torch.enable_grad():  # forces are gradients, under torch.no_grad() as well
            return self._predict(graph, features)

    def _predict(self, graph: Graph, features: bool) -> Prediction:
        vectors = edge_vectors(graph)
        if not vectors.requires_grad:
            vectors = vectors.detach().requires_grad_(True)
        latent = self.latent(graph, vectors)
        interaction = self._per_structure(self._per_atom(latent, graph, vectors), graph)
        reference = self._per_structure(self.reference_energies[graph.numbers], graph)
        gradient = self._gradient(interaction, vectors)
        forces = torch.zeros_like(graph.positions)
        forces = forces.index_add(0, graph.edge_index[1], gradient)
        forces = forces.index_add(0, graph.edge_index[0], -gradient)
        if not self.training:
            forces, interaction = forces.detach(), interaction.detach()
        return Prediction(
            energy=interaction + reference,
            forces=forces,
            virial=self._virial(vectors, gradient, graph),
            interaction=interaction,
            features=latent.scalar if features else None,
        )

    def energy(self, graph: Graph) -> Tensor:
        """Total energy [B] eV alone, differentiable with respect to the positions."""
        vectors = edge_vectors(graph)
        latent = self.latent(graph, vectors)
        per_atom = self._per_atom(latent, graph, vectors).double()
        return self._per_structure(per_atom + self.reference_energies[graph.numbers], graph)

    def latent(self, graph: Graph, vectors: Tensor) -> Features:
        """What the backbone makes of a graph and its edge vectors [E, 3] Å."""
        features: Features = self.backbone(graph, self.seen(graph, vectors))
        return features

    def seen(self, graph: Graph, vectors: Tensor) -> Tensor:
        """Edge vectors [E, 3] Å as the backbone sees them."""
        return vectors if self.floor is None else self.floor(graph, vectors)

    def _per_atom(self, latent: Features, graph: Graph, vectors: Tensor) -> Tensor:
        """What was learned, and the prior: [N] eV."""
        energy = self.head(latent) * self.scale
        if self.prior is not None:
            energy = energy + self.prior(graph, vectors)
        return energy

    def _per_structure(self, per_atom: Tensor, graph: Graph) -> Tensor:
        total = torch.zeros(graph.cell.shape[0], dtype=torch.float64, device=per_atom.device)
        return total.index_add(0, graph.batch, per_atom.double())

    def _gradient(self, energy: Tensor, vectors: Tensor) -> Tensor:
        """dE/d(edge vectors) [E, 3]; zero where there is nothing to differentiate."""
        gradient = torch.autograd.grad(
            [energy.sum()], [vectors], create_graph=self.training, allow_unused=True
        )[0]
        if gradient is None:
            return torch.zeros_like(vectors)
        return gradient

    def _virial(self, vectors: Tensor, gradient: Tensor, graph: Graph) -> Tensor:
        per_edge = -vectors.unsqueeze(2) * gradient.unsqueeze(1)
        structure = graph.batch.index_select(0, graph.edge_index[1])
        virial = torch.zeros_like(graph.cell).index_add(0, structure, per_edge)
        return (0.5 * (virial + virial.transpose(1, 2))).detach()


class Denoiser(nn.Module):
    """Backbone + noise head: the pre-training model. [N, 3], noise in units of its sigma."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.cutoff = float(backbone.cutoff)  # type: ignore[arg-type]

    def forward(self, graph: Graph) -> Tensor:
        return self.head(self.backbone(graph, edge_vectors(graph)))
