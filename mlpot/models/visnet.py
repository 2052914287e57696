"""ViSNet (Wang et al., Nat. Commun. 15, 313 (2024), arXiv 2210.16518), fast and smooth.

Differences from the published code, all switchable where published weights need them:

* ``smooth``: every message, scalar and vector, is multiplied by a C2 envelope. Published
  ViSNet envelopes the attention only, and the bias in front of the vector message lets it
  through at r = cutoff, so energy and forces jump when a pair crosses.
* ``vector_norm="soft"``: no kinks where two channels swap order.
* ``paired``: where the second half of the edges are the first reversed (`mlpot.graph.whole`), what
  is the same both ways is computed once.
* Projections that share an input are one matrix product; those of the sender's and the
  receiver's vectors are taken on atoms, not on edges; the first layer, whose vector
  features are zero, does no work on them.

Names against the paper: see README.md in this folder.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import silu

from mlpot.graph import Graph
from mlpot.models.layers import (
    Envelope,
    ExpNormalBasis,
    ScalarNorm,
    VectorNorm,
    spherical_harmonics,
    sum_over_edges,
)


class ViSNetConfig(BaseModel):
    """Hyper-parameters of a ViSNet backbone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(4, ge=1)
    channels: int = Field(64, ge=8, description="width of scalar and vector features")
    heads: int = Field(
        8,
        ge=1,
        description="attention heads; as many as channels runs fastest (no sum over a head)",
    )
    lmax: Literal[1, 2] = 1
    radial: int = Field(32, ge=2, description="number of radial basis functions")
    cutoff: float = Field(5.0, gt=0, description="Å")
    max_number: int = Field(100, ge=1, description="embedding rows: atomic numbers below this")
    smooth: bool = True
    vector_norm: Literal["soft", "max_min", "none"] = "soft"
    self_loops: bool = False

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> "ViSNetConfig":
        if self.channels % self.heads:
            raise ValueError(
                f"channels must be a multiple of heads, got {self.channels} and {self.heads}"
            )
        return self


class Features(NamedTuple):
    """What a backbone makes of a graph."""

    scalar: Tensor  # [N, H]
    vector: Tensor  # [N, L, H], L = 3 or 8


class ViSNetLayer(nn.Module):
    """One round of messages. ``first`` has no incoming vectors, ``last`` updates no edges."""

    def __init__(self, config: ViSNetConfig, first: bool, last: bool):
        super().__init__()
        h = config.channels
        self.channels, self.heads = h, config.heads
        self.first, self.smooth = first, config.smooth
        self.update_edges = not (first or last)  # the update is zero while vectors are zero
        # d.d is lmax on every edge, so the product of two rejections (a - (a.d)d).(b - (b.d)d)
        # is a.b + (lmax - 2)(a.d)(b.d); on self-loops d = 0 and it is a.b as well.
        self.rejection = float(config.lmax - 2)
        self.scalar_norm = ScalarNorm(h)
        self.vector_norm: nn.Module = VectorNorm(h, config.vector_norm, config.lmax)
        self.qkv = nn.Linear(h, 3 * h)
        self.edge = nn.Linear(h, (3 if self.update_edges else 2) * h)  # dk, dv (, f)
        self.vector: nn.Module = nn.Linear(h, (5 if self.update_edges else 3) * h, bias=False)
        self.message = nn.Linear(h, (1 if first else 2) * h)  # (s1,) s2
        self.out = nn.Linear(h, (1 if first else 3) * h)  # (o1, o2,) o3
        if first:
            self.vector_norm, self.vector = nn.Identity(), nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for every block of rows that the paper has as a projection of its own."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                for block in module.weight.split(self.channels):
                    nn.init.xavier_uniform_(block)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        vec: Tensor,
        f: Tensor,
        edge_index: Tensor,
        envelope: Tensor,
        direction: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Residuals of x [N, H], vec [N, L, H] and f [E, H].

        envelope [E, 1]; direction [E, L, 1] unit harmonics of the edge. f may be that of the
        first half of paired edges, [E/2, H].
        """
        sender, receiver = edge_index[0], edge_index[1]
        atoms, h = x.shape[0], self.channels
        q, k, v = self.qkv(self.scalar_norm(x)).split(h, dim=1)
        # splits, not slices: the gradient of a split is one concatenation
        edge = _all(silu(self.edge(f)), envelope.shape[0]).split(h, dim=1)
        dk, dv = edge[0], edge[1]

        product = q.index_select(0, receiver) * k.index_select(0, sender) * dk
        if self.heads != h:
            product = product.view(-1, self.heads, h // self.heads).sum(dim=2)
        weight = silu(product) * envelope
        if self.heads != h:
            weight = weight.repeat_interleave(h // self.heads, dim=1)
        m = v.index_select(0, sender) * dv * weight
        s = silu(self.message(m))
        if self.smooth:
            s = s * envelope
        summed = sum_over_edges(m, receiver, atoms)
        o = self.out(summed).split(h, dim=1)

        if self.first:
            messages = s.unsqueeze(1) * direction
            return o[0], sum_over_edges(messages, receiver, atoms), None

        vec = self.vector_norm(vec)
        projected = self.vector(vec).split(h, dim=2)
        s1, s2 = s.split(h, dim=1)
        messages = torch.addcmul(
            vec.index_select(0, sender) * s1.unsqueeze(1), s2.unsqueeze(1), direction
        )
        dvec = projected[2] * o[0].unsqueeze(1) + sum_over_edges(messages, receiver, atoms)
        dx = (projected[0] * projected[1]).sum(dim=1) * o[1] + o[2]
        if not self.update_edges:
            return dx, dvec, None

        a = projected[3].index_select(0, receiver)
        b = projected[4].index_select(0, sender)
        dot = (a * b).sum(dim=1)
        if self.rejection != 0.0:
            dot = dot + self.rejection * (a * direction).sum(dim=1) * (b * direction).sum(dim=1)
        return dx, dvec, edge[2] * dot


def _all(values: Tensor, edges: int) -> Tensor:
    """Of all edges, from those of all, or of the first half of paired ones."""
    return values if values.shape[0] == edges else values.repeat(2, 1)


class ViSNet(nn.Module):
    """Backbone: Graph and its edge vectors -> Features.

    Attributes:
        paired: graphs come from `mlpot.graph.whole`.
    """

    def __init__(self, config: ViSNetConfig):
        super().__init__()
        self.config = config
        self.cutoff = config.cutoff
        self.lmax = config.lmax
        self.self_loops = config.self_loops
        self.paired = False
        h, kind = config.channels, "polynomial" if config.smooth else "cosine"
        self.envelope = Envelope(config.cutoff, kind)
        self.basis = ExpNormalBasis(config.cutoff, config.radial, kind)
        self.embedding = nn.Embedding(config.max_number, h)
        self.neighbor_embedding = nn.Embedding(config.max_number, h)
        # neighbour filter and edge embedding read the same basis: one product
        self.radial = nn.Linear(config.radial, 2 * h)
        self.combine = nn.Linear(2 * h, h)
        last = config.layers - 1
        self.layers = nn.ModuleList(
            ViSNetLayer(config, first=i == 0, last=i == last) for i in range(config.layers)
        )
        self.scalar_norm = ScalarNorm(h)
        self.vector_norm = VectorNorm(h, config.vector_norm, config.lmax)
        for block in self.radial.weight.split(h):
            nn.init.xavier_uniform_(block)
        nn.init.zeros_(self.radial.bias)
        nn.init.xavier_uniform_(self.combine.weight)
        nn.init.zeros_(self.combine.bias)

    def forward(self, graph: Graph, vectors: Tensor) -> Features:
        """Features of every atom.

        Args:
            graph: neighbours may reach beyond the cutoff; they do not count.
            vectors: [E, 3] Å, `edge_vectors(graph)`; forces are its gradient.
        """
        edge_index = graph.edge_index
        distance = torch.sqrt((vectors * vectors).sum(dim=1))
        direction = spherical_harmonics(vectors / distance.unsqueeze(1), self.lmax)
        edges = vectors.shape[0]
        once = edges // 2 if self.paired and not self.self_loops else edges
        radial, edge_filter = self._radial(distance[:once])
        x = self._embed(graph.numbers, edge_index, _all(radial, edges))
        if self.self_loops:
            edge_index, distance, direction = self._with_self_loops(
                x.shape[0], edge_index, distance, direction
            )
            edge_filter = self._radial(distance)[1]
            once = distance.shape[0]
        ends = edge_index[:, :once]  # the sum over both ends is the same both ways
        f = x.index_select(0, ends[0]) + x.index_select(0, ends[1])
        f = f * edge_filter
        envelope = self.envelope(distance).unsqueeze(1)
        direction = direction.unsqueeze(2)
        vec = torch.zeros(
            [x.shape[0], direction.shape[1], x.shape[1]], dtype=x.dtype, device=x.device
        )
        for layer in self.layers:
            dx, dvec, df = layer(x, vec, f, edge_index, envelope, direction)
            x, vec = x + dx, vec + dvec
            if df is not None:  # the update knows an edge from its reverse
                f = _all(f, envelope.shape[0]) + df
        return Features(self.scalar_norm(x), self.vector_norm(vec))

    def _radial(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Neighbour filter (enveloped) and edge filter, each [E, H]."""
        near, edge = self.radial(self.basis(distance)).chunk(2, dim=1)
        return near * self.envelope(distance).unsqueeze(1), edge

    def _embed(self, numbers: Tensor, edge_index: Tensor, radial: Tensor) -> Tensor:
        neighbors = self.neighbor_embedding(numbers).index_select(0, edge_index[0]) * radial
        summed = sum_over_edges(neighbors, edge_index[1], numbers.shape[0])
        return self.combine(torch.cat([self.embedding(numbers), summed], dim=1))

    def _with_self_loops(
        self, atoms: int, edge_index: Tensor, distance: Tensor, direction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        loop = edge_index.new_ones([atoms]).cumsum(0) - 1  # arange, traceable for any device
        zeros = torch.zeros([atoms, direction.shape[1]], dtype=direction.dtype, device=loop.device)
        return (
            torch.cat([edge_index, torch.stack([loop, loop])], dim=1),
            torch.cat([distance, zeros[:, 0]]),
            torch.cat([direction, zeros]),
        )
