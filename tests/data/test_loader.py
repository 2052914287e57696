"""The loader: every frame once an epoch, and a run that is resumed sees what it would have seen."""

import logging
from collections import Counter
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlpot.data import loader as loader_module
from mlpot.data.formats import read
from mlpot.data.loader import GraphLoader, LabelledGraph
from mlpot.data.record import Record
from mlpot.errors import DataError, InputError
from mlpot.graph import check, unbatch
from mlpot.neighbors import brute_force

FILES = Path(__file__).parent / "files"


def chain(size: int, name: float, **fields) -> Record:
    """A zigzag of hydrogen atoms; the energy tells frames apart."""
    i = np.arange(size)
    positions = np.stack([1.2 * i, i % 2, np.zeros(size)], axis=1)
    numbers = np.ones(size, dtype=np.int64)
    return Record(numbers, positions, energy=name, **fields)


def chains(*sizes: int) -> list[Record]:
    return [chain(size, float(i)) for i, size in enumerate(sizes)]


SIZES = np.random.default_rng(5).integers(2, 30, 60).tolist()


def energies(batches: list[LabelledGraph]) -> list[list[float]]:
    return [b.energy.tolist() for b in batches]


def assert_same(a: list[LabelledGraph], b: list[LabelledGraph]) -> None:
    assert len(a) == len(b)
    for first, second in zip(a, b, strict=True):
        fields = (*first.graph, *first[1:])
        for ours, theirs in zip(fields, (*second.graph, *second[1:]), strict=True):
            assert torch.equal(torch.nan_to_num(ours), torch.nan_to_num(theirs))


# --- which frames ----------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40), min_size=1, max_size=25), st.integers(1, 60), st.booleans())
def test_every_frame_comes_exactly_once_an_epoch(
    sizes: list[int], batch_atoms: int, shuffle: bool
) -> None:
    loader = GraphLoader(chains(*sizes), 2.0, batch_atoms, shuffle=shuffle)
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(len(b.energy) for b in batches)
        assert Counter(e for b in batches for e in b.energy.tolist()) == Counter(range(len(sizes)))


def test_a_large_frame_among_small_ones() -> None:
    # Once, the 100 atoms swallowed their neighbours' batches, and frames came three times.
    for seed in range(10):
        loader = GraphLoader(chains(1, 2, 100), 2.0, batch_atoms=34, seed=seed)
        assert sorted(energies(list(loader))) == [[0.0], [1.0], [2.0]]


def test_batches_hold_about_the_atoms_asked_for() -> None:
    loader = GraphLoader(chains(*SIZES), 2.0, batch_atoms=100)
    atoms = [len(b.graph.numbers) for b in loader]
    assert np.mean(atoms) == pytest.approx(100, rel=0.1)
    assert max(abs(n - np.mean(atoms)) for n in atoms) <= max(SIZES)


def test_no_frames_is_an_error_at_once() -> None:
    with pytest.raises(DataError, match="no frames to load"):
        GraphLoader([], 5.0)


# --- order, noise, resuming ------------------------------------------------------------------


def make(seed: int = 3, shuffle: bool = True, noise: float = 0.05) -> GraphLoader:
    return GraphLoader(chains(*SIZES), 2.0, 120, seed, shuffle, noise)


def test_the_same_seed_gives_the_same_batches_and_another_does_not() -> None:
    assert_same(list(make()), list(make()))
    assert energies(list(make())) != energies(list(make(seed=4)))


def test_epochs_differ_in_order_and_noise() -> None:
    loader = make()
    first, second = list(loader), list(loader)
    assert loader.epoch == 2
    assert energies(first) != energies(second)
    noises = [
        {e: x for b in epoch for e, x in zip(b.energy.tolist(), split_noise(b), strict=True)}
        for epoch in (first, second)
    ]
    assert not any(torch.equal(noises[0][e], noises[1][e]) for e in noises[0])


def split_noise(b: LabelledGraph) -> list[torch.Tensor]:
    return [b.noise[b.graph.batch == i] for i in range(len(b.energy))]


def test_validation_repeats_itself_in_the_order_of_the_file() -> None:
    loader = make(shuffle=False)
    first, second = list(loader), list(loader)
    assert_same(first, second)
    assert sum(energies(first), []) == list(range(len(SIZES)))
    next(iter(loader))  # given up half-way
    assert_same(list(loader), first)


@pytest.mark.parametrize("given", [0, 1, 4, 6])
def test_resuming_gives_exactly_the_remaining_batches(given: int) -> None:
    straight = make()
    assert len(straight) > 6
    want = list(straight) + list(straight)

    stopped = make()
    iterator = iter(stopped)
    seen = list(iterator)  # one epoch, then `given` batches of the next
    iterator = iter(stopped)
    seen += [next(iterator) for _ in range(given)]
    resumed = make()
    resumed.load_state_dict(stopped.state_dict())
    assert_same(seen + list(resumed), want)


def test_resuming_at_the_end_of_an_epoch_starts_the_next() -> None:
    want = make()
    list(want)
    for state in ({"epoch": 0, "position": len(want)}, {"epoch": 1, "position": 0}):
        resumed = make()
        resumed.load_state_dict(state)
        assert_same(list(resumed), list(make_at(1)))


def make_at(epoch: int) -> GraphLoader:
    loader = make()
    loader.epoch = epoch
    return loader


class Recorder(L.LightningModule):
    """Notes which frames a Trainer shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[float]]] = []

    def training_step(self, batch: LabelledGraph, index: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch.energy.tolist()))
        return self.weight * 1.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(steps: int, out: Path, checkpoint: Path | None = None) -> tuple[Recorder, Path]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module, loader = Recorder(), GraphLoader(chains(*[4] * 6), 2.0, 8)
    assert len(loader) == 3
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(out / f"{steps}.ckpt")
    return module, out / f"{steps}.ckpt"


def test_lightning_sees_every_epoch_whole(tmp_path: Path) -> None:
    # Lightning stops asking after len(loader) batches; a loader that only notices the end of
    # its epoch when asked once more gives an empty epoch after each.
    seen = train(9, tmp_path)[0].seen
    assert [epoch for epoch, _ in seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for epoch in range(3):
        assert sorted(sum((e for at, e in seen if at == epoch), [])) == list(range(6))


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_lightning_resumes_in_the_middle_of_an_epoch(tmp_path: Path, stop: int) -> None:
    want = [frames for _, frames in train(9, tmp_path)[0].seen]
    first, checkpoint = train(stop, tmp_path)
    second, _ = train(9, tmp_path, checkpoint)
    assert [frames for _, frames in first.seen + second.seen] == want


@pytest.mark.parametrize("frames", [7, 2, 1])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_take_different_batches_and_equally_many(
    monkeypatch: pytest.MonkeyPatch, frames: int, ranks: int
) -> None:
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(loader_module, "_rank", lambda r=rank: (r, ranks))
        loader = GraphLoader(chains(*[4] * frames), 2.0, batch_atoms=4)
        batches = list(loader)
        assert len(batches) == len(loader) == max(1, frames // ranks)  # else the others wait
        shares.append(sum(energies(batches), []))
    if frames >= ranks:
        together = sum(shares, [])
        assert len(set(together)) == len(together) == frames - frames % ranks


# --- what is in a batch ----------------------------------------------------------------------


def test_edges_are_those_of_brute_force_at_the_noisy_positions() -> None:
    box = np.array([[3.1, 0, 0], [0.4, 3.3, 0], [0, 0.2, 3.5]])
    records = [chain(n, n) for n in (3, 7, 5)] + [chain(2, 9.0, cell=box, pbc=(True, True, False))]
    loader = GraphLoader(records, 2.9, 1000, noise=0.1, shuffle=False, dtype=torch.float64)
    (labelled,) = loader
    check(labelled.graph)
    for graph, record, noise in zip(
        unbatch(labelled.graph), records, split_noise(labelled), strict=True
    ):
        positions = record.positions + 0.1 * noise.numpy()
        np.testing.assert_allclose(graph.positions, positions, atol=1e-12)
        edges, shifts = brute_force(positions, 2.9, record.cell, record.pbc)
        assert edge_set(graph.edge_index.numpy(), graph.shifts.numpy()) == edge_set(edges, shifts)
        assert len(edges[0]) > 0


def edge_set(edges: np.ndarray, shifts: np.ndarray) -> Counter:
    return Counter((*e, *s) for e, s in zip(edges.T.tolist(), shifts.round(6) + 0.0, strict=True))


def test_noise_is_given_in_units_of_its_width() -> None:
    records = chains(*[200] * 40)
    (labelled,) = GraphLoader(records, 2.0, 10**6, noise=0.05, dtype=torch.float64)
    clean = torch.as_tensor(np.concatenate([r.positions for r in records]))
    torch.testing.assert_close(labelled.graph.positions - clean, 0.05 * labelled.noise)
    assert float(labelled.noise.std()) == pytest.approx(1.0, abs=0.02)
    assert abs(float(labelled.noise.mean())) < 0.02
    (still,) = GraphLoader(records, 2.0, 10**6)
    assert not still.noise.any()


def test_noise_that_makes_atoms_overlap_is_drawn_again() -> None:
    # Two atoms 0.5 Å apart: a fifth of all draws at 0.2 Å is below the overlap of 0.3 Å.
    close = Record(np.array([1, 1]), np.array([[0.0, 0, 0], [0.5, 0, 0]]), energy=0.0)
    (labelled,) = GraphLoader([close] * 200, 2.0, 10**6, noise=0.2)
    first, second = labelled.graph.positions.reshape(200, 2, 3).unbind(1)
    assert float((first - second).norm(dim=1).min()) > 0.3
    overlapping = Record(np.array([1, 1]), np.array([[0.0, 0, 0], [0.1, 0, 0]]), energy=0.0)
    for noise in (0.0, 1e-3):  # no draw helps
        with pytest.raises(InputError, match="overlap"):
            list(GraphLoader([overlapping], 2.0, noise=noise))


def test_labels_stay_with_their_atoms_and_missing_ones_are_nan() -> None:
    records = [*read(FILES / "md17_ethanol_3.npz"), *chains(4)]
    loader = GraphLoader(records, 3.0, 20, dtype=torch.float64)
    by_energy = {r.energy: r for r in records}
    for labelled in loader:
        assert labelled.energy.dtype == torch.float64
        for i, energy in enumerate(labelled.energy.tolist()):
            record, atoms = by_energy[energy], labelled.graph.batch == i
            assert labelled.graph.numbers[atoms].tolist() == record.numbers.tolist()
            if record.forces is None:
                assert labelled.forces[atoms].isnan().all()
            else:
                np.testing.assert_array_equal(labelled.forces[atoms], record.forces)
    unlabelled = Record(np.array([1, 1]), np.array([[0.0, 0, 0], [0.7, 0, 0]]))
    (labelled,) = GraphLoader([unlabelled], 2.0)
    assert labelled.energy.isnan().all()


def test_energies_of_large_molecules_keep_their_digits() -> None:
    # float32 would round -17617.826906 eV to 2 meV.
    records = read(FILES / "rmd17_aspirin_3.xyz")
    loader = GraphLoader(records, 3.0, shuffle=False, dtype=torch.float32)
    assert [e for b in loader for e in b.energy.tolist()] == [r.energy for r in records]
    assert loader.dtype == torch.float32
