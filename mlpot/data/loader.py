"""Records -> batches of graphs with labels, in an order that a resumed run repeats exactly."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlpot.data.record import Record
from mlpot.graph import Graph, batch
from mlpot.neighbors import build_graph


class LabelledGraph(NamedTuple):
    """A batch and its labels; labels that a record lacks are NaN."""

    graph: Graph
    energy: Tensor  # [B] float64 eV, total
    forces: Tensor  # [N, 3] eV/Å
    noise: Tensor  # [N, 3] in units of its sigma, zero where none was added


class GraphLoader:
    """Batches of about equal atom count; a map from (seed, epoch, position) to a batch.

    The order and the noise depend on nothing else, so a run that stops at any batch goes on
    as if it had not. Under DistributedDataParallel every rank takes its share.

    Args:
        records: structures.
        cutoff: Å.
        batch_atoms: atoms per batch, on average.
        seed: of order and noise.
        shuffle: a new order (and new noise) every epoch; without it every pass is the same.
        noise: Å, standard deviation of Gaussian coordinate noise; 0 for none.
        dtype: of positions and forces.
    """

    def __init__(
        self,
        records: Sequence[Record],
        cutoff: float,
        batch_atoms: int = 512,
        seed: int = 0,
        shuffle: bool = True,
        noise: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        self.records = records
        self.cutoff = cutoff
        self.seed, self.shuffle, self.noise, self.dtype = seed, shuffle, noise, dtype
        self._sizes = np.array([len(r.numbers) for r in records])
        self._batches = max(1, min(len(records), round(int(self._sizes.sum()) / batch_atoms)))
        self.epoch = 0
        self.position = 0  # batches already given in this epoch

    def __len__(self) -> int:
        rank, ranks = _rank()
        return len(range(rank, self._batches - self._batches % ranks or self._batches, ranks))

    def __iter__(self) -> Iterator[LabelledGraph]:
        rank, ranks = _rank()
        if not self.shuffle:
            self.position = 0
        chunks = self._chunks()
        while self.position < len(self):
            index = rank + ranks * self.position
            self.position += 1
            yield self._collate(chunks[index % len(chunks)], index)
        self.epoch += 1 if self.shuffle else 0
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the run is; Lightning stores it in every checkpoint."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def _chunks(self) -> list[np.ndarray]:
        """Indices of every batch of this epoch: always the same number of batches."""
        order = np.arange(len(self.records))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        filled = np.cumsum(self._sizes[order])
        which = (filled - 1) * self._batches // filled[-1]
        chunks = np.split(order, np.flatnonzero(np.diff(which)) + 1)
        return [np.sort(c) for c in chunks]

    def _collate(self, indices: np.ndarray, position: int) -> LabelledGraph:
        rng = np.random.default_rng([self.seed, self.epoch, position, 1])
        graphs, energies, forces, noises = [], [], [], []
        for i in indices:
            record = self.records[i]
            noise = np.zeros(record.positions.shape)
            if self.noise > 0:
                noise = rng.standard_normal(record.positions.shape)
            graphs.append(
                build_graph(
                    record.numbers,
                    record.positions + self.noise * noise,
                    self.cutoff,
                    record.cell,
                    record.pbc,
                    self.dtype,
                )
            )
            noises.append(noise)
            energies.append(np.nan if record.energy is None else record.energy)
            nothing = np.full(record.positions.shape, np.nan)
            forces.append(nothing if record.forces is None else record.forces)
        return LabelledGraph(
            batch(graphs),
            torch.tensor(energies, dtype=torch.float64),
            torch.as_tensor(np.concatenate(forces)).to(self.dtype),
            torch.as_tensor(np.concatenate(noises)).to(self.dtype),
        )


def _rank() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
