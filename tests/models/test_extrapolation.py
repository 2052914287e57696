"""The extrapolation grade: symmetries, low inside and high outside the data, and on disk."""

import json
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from safetensors.torch import load_file, save_file
from scipy.spatial.transform import Rotation
from torch import Tensor

from mlpot.data.record import Record
from mlpot.errors import InputError, ModelFileError
from mlpot.graph import Graph, batch, edge_vectors
from mlpot.models import checkpoint, extrapolation_file
from mlpot.models.checkpoint import ModelInfo, load, load_extrapolation, save
from mlpot.models.extrapolation import Extrapolation, grade, last_hidden, surroundings
from mlpot.models.extrapolation_fit import fit
from mlpot.models.potential import Potential
from mlpot.neighbors import build_graph
from mlpot.train.guard import add_guard
from mlpot.zoo import resolve
from tests.helpers import ethanol, random_potential, save_random_model

Labelled = tuple[Graph, Tensor]


def thermal(atoms: Atoms, frames: int, seed: int, width: float = 0.04) -> list[Atoms]:
    """Gaussian displacements (Å), about those of 300 K."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(frames):
        moved = atoms.copy()
        moved.positions += width * rng.standard_normal(moved.positions.shape)
        made.append(moved)
    return made


def labelled(model: Potential, frames: list[Atoms], seed: int = 0) -> list[Labelled]:
    """Batches whose labels are a model's own forces and an error that grows with distortion."""
    rng = torch.Generator().manual_seed(seed)
    batches = []
    for start in range(0, len(frames), 20):
        graphs = [build_graph(a.numbers, a.positions, 5.0) for a in frames[start : start + 20]]
        forces = model(batch(graphs)).forces
        noise = 0.02 * (1 + forces.norm(dim=1, keepdim=True))
        batches.append((batch(graphs), forces + noise * torch.randn(forces.shape, generator=rng)))
    return batches


@pytest.fixture(scope="module")
def model() -> Potential:
    return random_potential(seed=3)


@pytest.fixture(scope="module")
def fitted(model: Potential) -> Extrapolation:
    atoms = ethanol()
    training = labelled(model, thermal(atoms, 200, seed=1))
    return fit(model, training, labelled(model, thermal(atoms, 100, seed=2)))


def grades(model: Potential, fitted: Extrapolation, atoms: Atoms) -> np.ndarray:
    dtype = model.scale.dtype
    graph = build_graph(atoms.numbers, atoms.positions, model.cutoff, dtype=dtype)
    return grade(model, fitted, graph).numpy()


def test_invariant_to_rotation_translation_and_permutation(fitted: Extrapolation) -> None:
    model, exact = random_potential(seed=3).double(), Extrapolation(fitted.info)
    exact.load_state_dict(fitted.state_dict())
    exact = exact.double()
    atoms = thermal(ethanol(), 1, seed=9)[0]
    before = grades(model, exact, atoms)
    moved = atoms.copy()
    turn = Rotation.from_rotvec([0.3, -1.1, 2.0]).as_matrix()
    moved.positions = moved.positions @ turn.T + [5.0, -3.0, 11.0]
    assert grades(model, exact, moved) == pytest.approx(before, rel=1e-8)
    order = np.random.default_rng(0).permutation(len(atoms))
    assert grades(model, exact, atoms[order]) == pytest.approx(before[order], rel=1e-8)


def test_a_batch_is_graded_as_its_structures_are(model: Potential, fitted: Extrapolation) -> None:
    frames = [*thermal(ethanol(), 3, seed=5), molecule("H2O"), molecule("CH4")]
    joined = batch([build_graph(a.numbers, a.positions, model.cutoff) for a in frames])
    apart = np.concatenate([grades(model, fitted, a) for a in frames])
    assert grade(model, fitted, joined).numpy() == pytest.approx(apart, rel=1e-3)


def test_one_in_a_hundred_frames_like_the_training_set_is_above_the_line(
    model: Potential, fitted: Extrapolation
) -> None:
    fresh = thermal(ethanol(), 400, seed=11)
    worst = np.array([grades(model, fitted, a).max() for a in fresh])
    assert (worst > 1).mean() < 0.04
    assert np.median(worst) > 0.3  # the line is not far above what is usual, either
    assert fitted.info.frames == 200 and fitted.info.held_back == 100


def test_it_grows_while_a_bond_is_stretched(model: Potential, fitted: Extrapolation) -> None:
    """C-C of ethanol, carbons and their hydrogens moved apart. Normalised features are bounded, so
    it does not grow for ever, but it stays high."""
    atoms, found = ethanol(), []
    near = atoms.get_distances(0, range(len(atoms))) < atoms.get_distances(1, range(len(atoms)))
    axis = (atoms.positions[0] - atoms.positions[1]) / atoms.get_distance(0, 1)
    for stretch in (0.0, 0.15, 0.3, 0.45, 0.6, 0.9, 1.5, 3.0):
        moved = atoms.copy()
        moved.positions[near] += stretch * axis
        found.append(grades(model, fitted, moved).max())
    assert all(b > a for a, b in zip(found[:5], found[1:5], strict=False)), found
    assert found[0] < 1 and min(found[4:]) > 1.5, found


@pytest.mark.parametrize("name", ["C6H6", "H2O2", "CH3CONH2"])
def test_other_molecules_are_outside(model: Potential, fitted: Extrapolation, name: str) -> None:
    assert grades(model, fitted, molecule(name)).max() > 2


def test_unknown_elements_and_nan_are_infinitely_far(
    model: Potential, fitted: Extrapolation
) -> None:
    found = grades(model, fitted, molecule("CH3NO2"))  # N is covered, but was in no frame
    assert np.isinf(found[molecule("CH3NO2").numbers == 7]).all()
    hidden = torch.full((2, fitted.info.width), torch.nan)
    graph = build_graph([1, 6], [[0.0, 0, 0], [1.1, 0, 0]], model.cutoff)
    assert torch.isinf(fitted(hidden, graph, edge_vectors(graph))).all()


def test_the_distance_is_that_of_mahalanobis(model: Potential) -> None:
    """Against numpy, with the covariance of all elements mixed into that of each."""
    batches = labelled(model, thermal(ethanol(), 300, seed=1))
    fitted = fit(model, batches, batches)
    with last_hidden(model) as caught:
        for graph, _ in batches:
            model(graph)
    hidden, numbers = torch.cat(caught), torch.cat([g.numbers for g, _ in batches])
    x, z, kinds = hidden.double().numpy(), numbers.numpy(), (1, 6, 8)
    apart = np.concatenate([x[z == k] - x[z == k].mean(0) for k in kinds])
    shared = apart.T @ apart / (len(apart) - len(kinds))
    for row, k in enumerate(kinds):
        found = fitted.distance(hidden[numbers == k], torch.full((int((z == k).sum()),), row))
        y = x[z == k] - x[z == k].mean(0)
        inverse = np.linalg.inv(0.95 * np.cov(x[z == k].T) + 0.05 * shared)
        expected = np.sqrt(np.einsum("ni,ij,nj->n", y, inverse, y) / y.shape[1])
        assert found.numpy() == pytest.approx(expected, rel=0.02)


def test_means_over_neighbours_are_smooth_and_weighted() -> None:
    """By hand for three atoms in a row, and without a step where one leaves."""
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])  # sender, receiver
    values, lengths = torch.tensor([[1.0], [10.0], [4.0]]), torch.tensor([1.0, 1.0, 1.5, 1.5])
    near, far = (1 - 0.25) ** 2, (1 - 0.5625) ** 2
    found = surroundings(values, edges, lengths, 2.0, own=0.5)
    expected = [(0.5 + 10 * near) / (0.5 + near), 0.0, (2.0 + 10 * far) / (0.5 + far)]
    expected[1] = (5.0 + near + 4 * far) / (0.5 + near + far)
    assert found[:, 0].tolist() == pytest.approx(expected)
    leaving = [surroundings(values, edges, lengths.clamp(min=x), 2.0)[0] for x in (1.999, 2.0)]
    assert leaving[1] == 0 and leaving[0] < 0.01


def test_grades_do_not_change_the_model(model: Potential, fitted: Extrapolation) -> None:
    graph = build_graph(ethanol().numbers, ethanol().positions, model.cutoff)
    before = model(graph)
    grade(model, fitted, graph)
    after = model(graph)
    assert torch.equal(before.forces, after.forces)
    assert not model.head.result._forward_pre_hooks  # type: ignore[union-attr, operator]
    assert "extrapolation" not in "".join(model.state_dict())


def test_too_little_to_learn_from(model: Potential) -> None:
    one = labelled(model, thermal(molecule("H2O"), 1, seed=0))
    with pytest.raises(InputError, match="no training frames"):
        fit(model, [], one)
    with pytest.raises(InputError, match="no frame was held back"):
        fit(model, labelled(model, thermal(ethanol(), 5, seed=0)), [])
    hydrogen = labelled(model, [Atoms("H", [[0, 0, 0]])])
    with pytest.raises(InputError, match="fit the statistics of the guard to more frames"):
        fit(model, hydrogen, one)


# --- on disk -------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model file with statistics."""
    path = save_random_model(tmp_path / "m.safetensors", seed=3)
    model, info = load(path)
    assert isinstance(model, Potential)
    training = labelled(model, thermal(ethanol(), 40, seed=1))
    save(model, info, path, fit(model, training, labelled(model, thermal(ethanol(), 20, seed=2))))
    return path


def test_statistics_survive_a_file(saved: Path, tmp_path: Path) -> None:
    model, info = load(saved)
    assert isinstance(model, Potential) and info.extrapolation is not None
    assert info.extrapolation.elements == [1, 6, 8] and info.extrapolation.unit > 0
    read = load_extrapolation(saved)
    assert read.info == info.extrapolation
    other = tmp_path / "other.safetensors"
    assert save(model, info, other, read) == info
    assert other.read_bytes() == saved.read_bytes()
    again = load_extrapolation(other)
    expected = grades(model, read, ethanol())
    assert np.array_equal(grades(model, again, ethanol()), expected) and (expected > 0).all()


def test_statistics_take_a_few_kilobytes(saved: Path) -> None:
    """Beside them, the header of any file tells their names, sizes and description, 1.1 kB."""
    assert size_of(saved) < 1000 + 400 * 3
    assert size_of(resolve("pretrained-visnet")) < 7500  # ten elements
    assert size_of(resolve("pretrained-visnet-small")) < 7500


def size_of(path: Path) -> int:
    return sum(t.nbytes for k, t in load_file(path).items() if k.startswith("extrapolation."))


def test_tables_of_lengths_lose_nothing(saved: Path) -> None:
    statistics = load_extrapolation(saved)
    assert statistics.pairs is not None
    statistics.pairs.gaps.random_(0, 256)
    tensors = extrapolation_file.to_tensors(statistics)
    read = extrapolation_file.from_tensors(statistics.info, tensors)
    assert all(torch.equal(x, read.state_dict()[k]) for k, x in statistics.state_dict().items())


@pytest.mark.parametrize("name", ["pairs.gaps", "whitening.steps"])
def test_squeezed_tables_that_are_too_short_too_long_or_none(saved: Path, name: str) -> None:
    statistics = load_extrapolation(saved)
    tensors = extrapolation_file.to_tensors(statistics)
    size = statistics.state_dict()[name].numel()
    bytes_of = [zlib.compress(bytes(4 * n)) for n in (size - 1, size + 1, 10**6)]
    whole = tensors[name].numpy().tobytes()
    for content in [*bytes_of, b"no zlib", whole[:20], whole[:-4], whole + b"more", b""]:
        wrong = torch.tensor(list(content), dtype=torch.uint8)
        with pytest.raises(ValueError, match="squeezed"):
            extrapolation_file.from_tensors(statistics.info, {**tensors, name: wrong})


def test_no_more_is_unpacked_than_a_table_has_room_for() -> None:
    bomb = torch.tensor(list(zlib.compress(bytes(50_000_000))), dtype=torch.uint8)
    tracemalloc.start()
    with pytest.raises(ValueError, match="not 10 squeezed"):
        extrapolation_file._values(bomb, torch.Size([2, 5]))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_tensors_that_a_description_does_not_ask_for(saved: Path) -> None:
    """Told before room is made for what it asks for."""
    statistics = load_extrapolation(saved)
    info, tensors = statistics.info, extrapolation_file.to_tensors(statistics)
    entries = tensors["whitening.basis"].shape[0]
    old = {k: v for k, v in tensors.items() if not k.startswith("whitening.")}
    wrong: list[tuple[dict[str, Tensor], str]] = [
        ({}, "no tensor mean"),
        ({k: v for k, v in tensors.items() if k != "whitening.steps"}, "no tensor whitening.steps"),
        ({k: v for k, v in tensors.items() if k != "pairs.gaps"}, "no tensor pairs.gaps"),
        (old, "no tensor whitening.scale"),
        ({**tensors, "mean": tensors["mean"][:2]}, "mean is"),
        ({**tensors, "whitening.basis": tensors["whitening.basis"][1:]}, "whitening.basis is"),
        *(({**old, "whiten": torch.ones(n, entries)}, "whiten is") for n in (1, 2, 4)),
        ({**old, "whiten": torch.ones(3, 1)}, "whiten is"),
        ({**tensors, "far": torch.full((3,), torch.nan)}, "far is not finite"),
        ({**tensors, "whitening.scale": tensors["whitening.scale"] * torch.inf}, "not finite"),
        ({**tensors, "whitening.scale": -tensors["whitening.scale"]}, "not positive"),
    ]
    for given, said in wrong:
        with pytest.raises(ValueError, match=said):
            extrapolation_file.from_tensors(info, given)
    with pytest.raises(ValueError, match="mean is"):  # and at once
        extrapolation_file.from_tensors(info.model_copy(update={"width": 10**6}), tensors)
    assert statistics.pairs is not None
    steep = extrapolation_file._squeezed(np.full(statistics.pairs.gaps.shape, 2, np.int32))
    with pytest.raises(ValueError, match="no bytes"):
        extrapolation_file.from_tensors(info, {**tensors, "pairs.gaps": steep})


def test_statistics_of_format_4_are_rounded_once(saved: Path, tmp_path: Path) -> None:
    """Matrices in float32, tables as they were."""
    model, info = load(saved)
    assert isinstance(model, Potential)
    statistics = load_extrapolation(saved)
    old = as_in_format_4(saved, statistics)
    read = load_extrapolation(saved)
    assert load(saved)[1].format == 4 and size_of(saved) > 3 * 500
    assert read.pairs is not None and statistics.pairs is not None
    assert torch.equal(read.pairs.gaps, statistics.pairs.gaps)
    for atoms in thermal(ethanol(), 5, seed=4):  # 3 %: rounded once more, and squared
        assert grades(model, read, atoms) == pytest.approx(
            grades(model, statistics, atoms), rel=0.03
        )
    save(model, old, tmp_path / "new.safetensors", read)
    again = load_extrapolation(tmp_path / "new.safetensors")
    assert all(torch.equal(x, again.state_dict()[k]) for k, x in read.state_dict().items())


def as_in_format_4(path: Path, statistics: Extrapolation) -> ModelInfo:
    """The same model, as it was written then."""
    kept = {k: v for k, v in load_file(path).items() if not k.startswith("extrapolation.")}
    below = torch.tril_indices(statistics.info.width, statistics.info.width)
    state = {k: v for k, v in statistics.state_dict().items() if not k.startswith("whitening.")}
    state["whiten"] = statistics.whitening.lower[:, below[0], below[1]].contiguous()
    tensors = kept | {f"extrapolation.{k}": v for k, v in state.items()}
    description = json.loads(load(path)[1].model_dump_json())
    description["format"] = 4
    del description["extrapolation"]["added_to"]
    description["sha256"] = checkpoint._hash(tensors, description)
    save_file(tensors, path, metadata={"mlpot": json.dumps(description)})
    return load(path)[1]


def test_a_model_saved_without_statistics_says_so(saved: Path) -> None:
    model, info = load(saved)
    stored = save(model, info, saved)  # as a fine-tuned model, which must not keep those of another
    assert stored.extrapolation is None
    assert not [k for k in load_file(saved) if k.startswith("extrapolation.")]
    with pytest.raises(ModelFileError, match="no statistics of its training set.*mlpot guard"):
        load_extrapolation(saved)


def test_files_of_format_1_still_load(saved: Path) -> None:
    """Before there were statistics, and with a hash over what was there then."""
    tensors = {k: v for k, v in load_file(saved).items() if not k.startswith("extrapolation.")}
    description = json.loads(load(saved)[1].model_dump_json())
    for later in ("extrapolation", "prior", "floors"):
        description.pop(later)
    description["format"] = 1
    description["sha256"] = checkpoint._hash(tensors, description)
    save_file(tensors, saved, metadata={"mlpot": json.dumps(description)})
    model, info = load(saved)
    assert isinstance(model, Potential) and info.format == 1 and info.extrapolation is None
    with pytest.raises(ModelFileError, match="mlpot guard"):
        load_extrapolation(saved)


def test_statistics_of_format_2_still_grade(saved: Path) -> None:
    """Before lengths of pairs were noted."""
    model, whole = load(saved)[0], load_extrapolation(saved)
    as_in_format_4(saved, whole)
    tensors = {k: v for k, v in load_file(saved).items() if ".pairs." not in k}
    assert len(tensors) == len(load_file(saved)) - 1
    description = json.loads(load(saved)[1].model_dump_json())
    description["format"] = 2
    for later in ("apart", "reaches"):
        del description["extrapolation"][later]
    width = description["extrapolation"]["width"]
    tensors["extrapolation.slope"] = tensors["extrapolation.slope"][:width].clone()
    description["sha256"] = checkpoint._hash(tensors, description)
    save_file(tensors, saved, metadata={"mlpot": json.dumps(description)})
    old = load_extrapolation(saved)
    assert isinstance(model, Potential) and old.pairs is None
    known, torn = ethanol(), ethanol()
    torn.set_distance(0, 6, torn.get_distance(0, 6) + 0.4, fix=0)  # C-H
    assert np.isfinite(grades(model, old, known)).all() and (grades(model, old, known) > 0).all()
    graph = build_graph(torn.numbers, torn.positions, 5.0)
    assert old.torn(graph, 6) is None and whole.torn(graph, 6) is not None


def test_statistics_that_were_altered_or_do_not_fit(saved: Path) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelFileError, match="damaged"):
        load_extrapolation(saved)
    saved.write_bytes(content)
    tensors = load_file(saved)
    description = json.loads(load(saved)[1].model_dump_json())
    description["extrapolation"]["elements"] = [1, 6]
    description["sha256"] = checkpoint._hash(tensors, description)
    save_file(tensors, saved, metadata={"mlpot": json.dumps(description)})
    load(saved)  # the model itself is whole
    with pytest.raises(ModelFileError, match="does not fit its own description"):
        load_extrapolation(saved)


def test_results_of_weights_outlive_their_statistics(saved: Path, tmp_path: Path) -> None:
    """`mlpot guard` changes a file and its hash, and neither energies nor forces."""
    first, other = load(saved)[1], tmp_path / "other.safetensors"
    assert first.weights_sha256 == first.sha256
    model = load(saved)[0]
    assert isinstance(model, Potential)
    records = [
        Record(a.numbers, a.positions, energy=0.0, forces=np.zeros_like(a.positions))
        for a in thermal(ethanol(), 30, seed=6)
    ]
    second = add_guard(saved, records, other)[0]
    third = add_guard(other, records, other, frames=10)[0]
    assert len({first.sha256, second.sha256, third.sha256}) == 3
    assert {i.weights_sha256 for i in (first, second, third, load(other)[1])} == {first.sha256}
    again = save(model, third, other, load_extrapolation(other))  # which may be other weights
    assert again.weights_sha256 == again.sha256
    bare = save(model, third, other)
    assert bare.weights_sha256 == bare.sha256
