"""Records -> batches of graphs with labels, in an order that a resumed run repeats exactly."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpot.data.record import Record
from mlpot.data.torsions import twist
from mlpot.errors import DataError, InputError
from mlpot.graph import Graph, batch
from mlpot.neighbors import build_graph

# Noise may push two atoms onto each other, once in 1e5 bonds or so; then it is drawn again.
_DRAWS = 20


class LabelledGraph(NamedTuple):
    """A batch and its labels; labels that a record lacks are NaN."""

    graph: Graph
    energy: Tensor  # [B] float64 eV, total
    forces: Tensor  # [N, 3] eV/Å
    noise: Tensor  # [N, 3] in units of its sigma, zero where none was added


class GraphLoader:
    """Batches of about equal atom count; a map from (seed, epoch, position) to a batch.

    The order and the noise depend on nothing else, so a run that stops at any batch goes on
    as if it had not. Under DistributedDataParallel every rank takes its share of shuffled batches,
    and sees all of the others, so that every rank knows the same validation errors.

    Args:
        records: structures.
        cutoff: Å.
        batch_atoms: atoms per batch, on average.
        seed: of order and noise.
        shuffle: a new order (and new noise) every epoch; without it every pass is the same.
        noise: Å, standard deviation of Gaussian coordinate noise; 0 for none.
        dtype: of positions and forces.
        torsions: degrees, standard deviation of rotations about single bonds, before that noise
            and no part of it; 0 for none.

    Raises:
        DataError: there are no records, or a periodic one is to be twisted.
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
        torsions: float = 0.0,
    ):
        if not records:
            raise DataError("there are no frames to load. Check the split, or the filter before it")
        if torsions > 0 and any(any(r.pbc) for r in records):
            raise DataError(
                "rotations about bonds need molecules in one piece, and there are periodic frames. "
                "Set torsions to 0, or leave those frames out"
            )
        self.records = records
        self.cutoff, self.torsions = cutoff, torsions
        self.seed, self.shuffle, self.noise, self.dtype = seed, shuffle, noise, dtype
        self._sizes = np.array([len(r.numbers) for r in records])
        self._batches = max(1, min(len(records), round(int(self._sizes.sum()) / batch_atoms)))
        self.epoch = 0
        self.position = 0  # batches already given in this epoch

    def __len__(self) -> int:
        # The same on every rank, or the others would wait for ever.
        return max(1, self._batches // self._share()[1])

    def __iter__(self) -> Iterator[LabelledGraph]:
        rank, ranks = self._share()
        if not self.shuffle:
            self.position = 0
        chunks = self._chunks()
        indices = [rank + ranks * position for position in range(self.position, len(self))]
        for index, labelled in self._ahead(chunks, indices):
            position = index // ranks
            # Before the yield: Lightning does not ask again after the last batch.
            self.position = position + 1
            if self.position == len(self):
                self.epoch += 1 if self.shuffle else 0
                self.position = 0
            yield labelled

    def _ahead(
        self, chunks: list[np.ndarray], indices: list[int]
    ) -> Iterator[tuple[int, LabelledGraph]]:
        """Batches in order; while one is worked on, a thread makes the next."""
        epoch = self.epoch  # by the time a thread looks, the last batch may have ended it
        with ThreadPoolExecutor(1) as thread:

            def begin(index: int) -> Future[LabelledGraph]:
                return thread.submit(self._collate, chunks[index % len(chunks)], epoch, index)

            future = begin(indices[0]) if indices else None
            for index, following in zip(indices, [*indices[1:], None], strict=True):
                assert future is not None
                labelled = future.result()
                future = None if following is None else begin(following)
                yield index, labelled

    def state_dict(self) -> dict[str, Any]:
        """Where the run is (after a last batch: the next epoch); it goes into checkpoints."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        if self.position >= len(self):  # the end of an epoch is the start of the next
            self.epoch, self.position = self.epoch + (1 if self.shuffle else 0), 0

    def _share(self) -> tuple[int, int]:
        return _rank() if self.shuffle else (0, 1)

    def _chunks(self) -> list[np.ndarray]:
        """Indices of every batch of this epoch: always the same number of batches."""
        order = np.arange(len(self.records))
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        filled = np.cumsum(self._sizes[order])
        which = (filled - 1) * self._batches // filled[-1]
        # Every batch has a frame, also where one is larger than a batch should be.
        first = np.arange(self._batches)
        starts = np.maximum.accumulate(np.searchsorted(which, first) - first) + first
        starts = np.minimum(starts, len(order) - self._batches + first)
        return [np.sort(c) for c in np.split(order, starts[1:])]

    def _collate(self, indices: np.ndarray, epoch: int, position: int) -> LabelledGraph:
        rng = np.random.default_rng([self.seed, epoch, position, 1])
        graphs, energies, forces, noises = [], [], [], []
        for i in indices:
            record = self.records[i]
            graph, noise = self._graph(record, rng)
            graphs.append(graph)
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

    def _graph(self, record: Record, rng: np.random.Generator) -> tuple[Graph, NDArray]:
        """A graph, and the noise in it."""
        for draw in range(_DRAWS):
            noise = np.zeros(record.positions.shape)
            positions = record.positions
            if self.torsions > 0:
                positions = twist(record.numbers, positions, self.torsions, rng)
            if self.noise > 0:
                noise = rng.standard_normal(record.positions.shape)
            positions = positions + self.noise * noise
            try:
                graph = build_graph(
                    record.numbers, positions, self.cutoff, record.cell, record.pbc, self.dtype
                )
                return graph, noise
            except InputError:
                if (self.noise == 0 and self.torsions == 0) or draw == _DRAWS - 1:
                    raise
        raise AssertionError("unreachable")


def _rank() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
