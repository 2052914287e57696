"""The contract of mlpot.testing on ViSNet with random weights: what no training may break."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from numpy.typing import NDArray

from mlpot.errors import InputError
from mlpot.graph import batch, to
from mlpot.models.heads import EnergyHead, NoiseHead
from mlpot.models.layers import Envelope
from mlpot.models.potential import Denoiser, Potential
from mlpot.models.visnet import ViSNet, ViSNetConfig
from mlpot.testing import (
    System,
    assert_batch_equals_singles,
    assert_forces_are_gradients,
    assert_forces_sum_to_zero,
    assert_rotation_translation_permutation,
    assert_size_consistent,
    assert_smooth_at_cutoff,
    assert_virial_is_strain_derivative,
    random_molecule,
)

CUTOFF = 4.0
REFERENCES = {1: -13.587, 6: -1029.9, 7: -1484.9, 8: -2041.8}
ELEMENTS = sorted(REFERENCES)


def random_potential(lmax: int = 1, **options) -> Potential:
    """Every parameter random, biases and norms too: zero biases would hide published jumps."""
    torch.manual_seed(7)
    config = ViSNetConfig(
        layers=3, channels=24, heads=4, lmax=lmax, radial=12, cutoff=CUTOFF, max_number=20
    ).model_copy(update=options)
    model = Potential(ViSNet(config), EnergyHead(24), REFERENCES, scale=5.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


@pytest.fixture(scope="module", params=[1, 2], ids=["lmax1", "lmax2"])
def model(request) -> Potential:
    return random_potential(lmax=request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def aspirin() -> System:
    chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import AllChem

    mol = chem.AddHs(chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O"))
    assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    return System(numbers, mol.GetConformer().GetPositions())


def ethanol() -> System:
    atoms = molecule("CH3CH2OH")
    return System(atoms.numbers, atoms.positions)


def crystal(shape: int, pbc: tuple[bool, bool, bool]) -> System:
    """A skewed box of a few atoms, smaller than twice the cutoff."""
    rng = np.random.default_rng(shape)
    cell = np.array([[4.1, 0.0, 0.0], [0.7, 4.6, 0.0], [-0.5, 0.9, 5.2]])
    atoms = bulk("C", "fcc", a=3.4, cubic=True)
    positions = atoms.get_scaled_positions() @ cell + rng.normal(scale=0.3, size=(4, 3))
    return System(np.array([1, 6, 7, 8]), positions, cell, pbc)


SYSTEMS = {
    "1 atom": lambda: System(np.array([8]), np.array([[1.0, 2.0, 3.0]])),
    "2 atoms": lambda: random_molecule(ELEMENTS, 2, np.random.default_rng(0), volume=1.0),
    "7 atoms": lambda: random_molecule(ELEMENTS, 7, np.random.default_rng(1)),
    "12 atoms": lambda: random_molecule(ELEMENTS, 12, np.random.default_rng(2)),
    "isolated atom": lambda: System(
        np.array([8, 1, 1, 6]),
        np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0], [0.0, 0.0, 30.0]]),
    ),
    "three on a line": lambda: System(
        np.array([8, 6, 8]), np.array([[0.0, 0.0, -1.16], [0.0, 0.0, 0.0], [0.0, 0.0, 1.16]])
    ),
    "ethanol": ethanol,
    "crystal": lambda: crystal(0, (True, True, True)),
    "slab": lambda: crystal(1, (True, True, False)),
    "aspirin": aspirin,
}


@pytest.fixture(params=SYSTEMS)
def system(request) -> System:
    return SYSTEMS[request.param]()


@pytest.fixture(params=["7 atoms", "12 atoms"])
def small(request) -> System:
    return SYSTEMS[request.param]()


# --- the contract --------------------------------------------------------------------------


def test_forces_are_gradients(model: Potential, system: System) -> None:
    assert_forces_are_gradients(model, CUTOFF, system)


def test_virial_is_strain_derivative(model: Potential, system: System) -> None:
    assert_virial_is_strain_derivative(model, CUTOFF, system)


def test_forces_sum_to_zero(model: Potential, system: System) -> None:
    assert_forces_sum_to_zero(model, CUTOFF, system)


def test_symmetries(model: Potential, system: System, rng: np.random.Generator) -> None:
    assert_rotation_translation_permutation(model, CUTOFF, system, rng)


def test_batch_equals_singles(model: Potential) -> None:
    assert_batch_equals_singles(model, CUTOFF, [make() for make in SYSTEMS.values()])


@pytest.mark.parametrize("other", ["1 atom", "2 atoms", "ethanol", "aspirin"])
def test_size_consistent(model: Potential, small: System, other: str) -> None:
    assert_size_consistent(model, CUTOFF, small, SYSTEMS[other]())


def test_smooth_at_cutoff(model: Potential, rng: np.random.Generator) -> None:
    assert_smooth_at_cutoff(model, CUTOFF, rng, ELEMENTS)


def test_random_weights_give_forces_worth_testing(model: Potential) -> None:
    for name in SYSTEMS.keys() - {"1 atom"}:
        prediction = model(SYSTEMS[name]().graph(CUTOFF))
        assert prediction.forces.abs().max() > 0.2, name
        assert prediction.virial.abs().max() > 0.2, name


# --- the contract can be broken ------------------------------------------------------------


@pytest.mark.parametrize("lmax", [1, 2])
def test_published_config_jumps_at_cutoff(lmax: int, rng: np.random.Generator) -> None:
    published = random_potential(lmax, smooth=False, vector_norm="none", self_loops=True)
    with pytest.raises(AssertionError, match="energy .* jumps when"):
        assert_smooth_at_cutoff(published, CUTOFF, rng)


def test_each_assertion_refuses_a_wrong_model(small: System, rng: np.random.Generator) -> None:
    model = random_potential()

    def broken(change):
        return lambda graph: change(model(graph), graph)

    scaled = broken(lambda p, g: p._replace(forces=p.forces * (1 + 1e-5)))
    with pytest.raises(AssertionError, match="forces are not"):
        assert_forces_are_gradients(scaled, CUTOFF, small)
    strained = broken(lambda p, g: p._replace(virial=p.virial * (1 + 1e-4)))
    with pytest.raises(AssertionError, match="virial is not"):
        assert_virial_is_strain_derivative(strained, CUTOFF, small)
    pushed = broken(lambda p, g: p._replace(forces=p.forces + 1e-6))
    with pytest.raises(AssertionError, match="net force"):
        assert_forces_sum_to_zero(pushed, CUTOFF, small)
    field = broken(lambda p, g: p._replace(energy=p.energy + 1e-6 * g.positions[0, 0]))
    with pytest.raises(AssertionError, match="rotation changes the energy"):
        assert_rotation_translation_permutation(field, CUTOFF, small, rng)
    mixed = broken(lambda p, g: p._replace(energy=p.energy.mean() + 0 * p.energy))
    with pytest.raises(AssertionError, match="in a batch"):
        assert_batch_equals_singles(mixed, CUTOFF, [small, ethanol()])
    mean = broken(lambda p, g: p._replace(energy=p.energy / len(g.numbers)))
    with pytest.raises(AssertionError, match="do not add up"):
        assert_size_consistent(mean, CUTOFF, small, ethanol())
    broken_nan = broken(lambda p, g: p._replace(forces=p.forces * float("nan")))
    with pytest.raises(AssertionError, match="not finite"):
        assert_forces_sum_to_zero(broken_nan, CUTOFF, small)


@pytest.mark.parametrize(("kind", "smooth"), [("polynomial", True), ("cosine", False)])
def test_envelope_at_its_ends(kind: str, smooth: bool) -> None:
    """1 at 0; value and slope 0 at the cutoff, and curvature too where it is called C2."""
    r = torch.tensor([1e-9, CUTOFF - 1e-9], dtype=torch.float64, requires_grad=True)
    value = Envelope(CUTOFF, kind)(r)
    slope = torch.autograd.grad(value.sum(), r, create_graph=True)[0]
    curvature = torch.autograd.grad(slope.sum(), r)[0]
    assert value.tolist() == pytest.approx([1.0, 0.0], abs=1e-12)
    assert slope[1].item() == pytest.approx(0.0, abs=1e-7)
    assert (abs(curvature[1].item()) < 1e-6) == smooth
    assert Envelope(CUTOFF, kind)(torch.tensor([CUTOFF, 99.0])).tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match="polynomial"):
        Envelope(CUTOFF, "square")


# --- periodic systems ----------------------------------------------------------------------


def test_supercell_is_a_multiple(model: Potential) -> None:
    small = crystal(0, (True, True, True))
    cell, positions = small.cell, small.positions
    assert cell is not None
    repeats = np.array([(i, j, 0) for i in range(3) for j in range(2)])
    big = System(
        np.tile(small.numbers, 6),
        np.concatenate([positions + n @ cell for n in repeats]),
        cell * np.array([[3], [2], [1]]),
        small.pbc,
    )
    one, six = (model(s.graph(CUTOFF)) for s in (small, big))
    assert six.interaction.item() == pytest.approx(6 * one.interaction.item(), abs=1e-8)
    np.testing.assert_allclose(six.forces, one.forces.repeat(6, 1), atol=1e-8)
    np.testing.assert_allclose(six.virial, 6 * one.virial, atol=1e-7)


def test_lattice_translations_of_single_atoms_change_nothing(model: Potential) -> None:
    wrapped = crystal(0, (True, True, True))
    cell = wrapped.cell
    assert cell is not None
    moved = wrapped.positions + np.array([[0, 0, 0], [5, -3, 2], [0, 1, 0], [-7, 0, 1]]) @ cell
    one, other = (model(s.graph(CUTOFF)) for s in (wrapped, wrapped.moved(moved)))
    np.testing.assert_allclose(other.energy, one.energy, atol=1e-8)
    np.testing.assert_allclose(other.forces, one.forces, atol=1e-8)
    np.testing.assert_allclose(other.virial, one.virial, atol=1e-8)


@pytest.mark.parametrize("name", ["aspirin", "crystal"])
def test_neighbours_beyond_the_cutoff_do_not_count(model: Potential, name: str) -> None:
    """A host with a Verlet skin hands over too many pairs."""
    graph, skin = (SYSTEMS[name]().graph(cutoff) for cutoff in (CUTOFF, CUTOFF + 2))
    assert skin.edge_index.shape[1] > graph.edge_index.shape[1]
    one, other = model(graph), model(skin)
    np.testing.assert_allclose(other.energy, one.energy, atol=1e-9)
    np.testing.assert_allclose(other.forces, one.forces, atol=1e-9)


# --- precision, other ways to the same forces ----------------------------------------------


def test_float32_is_close_to_float64(model: Potential) -> None:
    single = random_potential(model.backbone.lmax).float()
    for make in SYSTEMS.values():
        graph = make().graph(CUTOFF)
        exact, rounded = model(graph), single(to(graph, "cpu", torch.float32))
        largest = exact.forces.abs().max().item()
        assert rounded.forces.dtype == torch.float32
        assert rounded.energy.dtype == torch.float64
        np.testing.assert_allclose(rounded.energy, exact.energy, atol=2e-5 * len(graph.numbers))
        np.testing.assert_allclose(rounded.forces, exact.forces, atol=1e-5 + 2e-5 * largest)


def test_references_stay_exact_when_the_model_moves() -> None:
    model = random_potential()
    exact = torch.zeros(9, dtype=torch.float64)
    for number, energy in REFERENCES.items():
        exact[number] = energy
    for move in (
        lambda m: m.float(),
        lambda m: m.to(torch.float32),
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.to("cpu"),
    ):
        move(model)
        assert model.reference_energies.dtype == torch.float64
        assert torch.equal(model.reference_energies, exact)
    assert model.backbone.layers[0].qkv.weight.dtype == torch.float64


def test_energy_is_interaction_plus_references(model: Potential) -> None:
    graph = batch([ethanol().graph(CUTOFF), SYSTEMS["1 atom"]().graph(CUTOFF)])
    prediction = model(graph, features=True)
    expected = [2 * REFERENCES[6] + 6 * REFERENCES[1] + REFERENCES[8], REFERENCES[8]]
    np.testing.assert_allclose(prediction.energy - prediction.interaction, expected, atol=1e-9)
    assert prediction.features is not None and prediction.features.shape == (10, 24)
    assert model(graph).features is None


def test_energy_method_differentiates_to_the_same_forces(model: Potential, system: System) -> None:
    graph = system.graph(CUTOFF)
    positions = graph.positions.clone().requires_grad_(True)
    energy = model.energy(graph._replace(positions=positions))
    gradient = torch.autograd.grad(energy.sum(), positions, allow_unused=True)[0]
    prediction = model(graph)
    expected = torch.zeros_like(positions) if gradient is None else -gradient
    np.testing.assert_allclose(energy.detach(), prediction.energy, atol=1e-9)
    np.testing.assert_allclose(prediction.forces, expected, atol=1e-9)


def test_forces_when_positions_require_grad(model: Potential, small: System) -> None:
    graph = small.graph(CUTOFF)
    tracked = graph._replace(positions=graph.positions.clone().requires_grad_(True))
    np.testing.assert_allclose(model(tracked).forces, model(graph).forces, atol=1e-10)


def test_scripted_equals_eager(model: Potential) -> None:
    scripted = torch.jit.script(model)
    for make in SYSTEMS.values():  # odd and even counts, one atom, no edges
        graph = make().graph(CUTOFF)
        for _ in range(2):  # the profiling executor changes its mind after the first call
            got, expected = scripted(graph), model(graph)
            np.testing.assert_allclose(got.energy, expected.energy, atol=1e-9)
            np.testing.assert_allclose(got.forces, expected.forces, atol=1e-9)
            np.testing.assert_allclose(got.virial, expected.virial, atol=1e-9)


def test_denoiser_output_turns_with_the_molecule(rng: np.random.Generator) -> None:
    for lmax in (1, 2):
        backbone = random_potential(lmax).backbone
        denoiser = Denoiser(backbone, NoiseHead(24)).double().eval()
        turn: NDArray = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        one = ethanol()
        noise = denoiser(one.graph(CUTOFF)).detach().numpy()
        turned = denoiser(one.moved(one.positions @ turn.T).graph(CUTOFF)).detach().numpy()
        assert np.abs(noise).max() > 1e-2
        np.testing.assert_allclose(turned, noise @ turn.T, atol=1e-9)


# --- training ------------------------------------------------------------------------------


def loss_of(model: Potential, graph) -> torch.Tensor:
    prediction = model(graph)
    return prediction.interaction.square().sum() + prediction.forces.square().sum()


def test_every_parameter_learns_from_energy_and_forces() -> None:
    for lmax in (1, 2):
        model = random_potential(lmax).train()
        graph = batch([SYSTEMS[name]().graph(CUTOFF) for name in ("1 atom", "12 atoms")])
        loss_of(model, graph).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{name} does not matter"
            assert torch.isfinite(parameter.grad).all(), name
            if "embedding" in name:  # rows of elements that are not there stay
                assert parameter.grad[graph.numbers.unique()].abs().sum() > 0, name
            else:
                assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", ["backbone.layers.1.vector.weight", "head.hidden.bias"])
@pytest.mark.parametrize("lmax", [1, 2])
def test_double_backward_by_finite_differences(lmax: int, name: str) -> None:
    model = random_potential(lmax).train()
    graph = batch([SYSTEMS[n]().graph(CUTOFF) for n in ("7 atoms", "crystal")])
    parameter = dict(model.named_parameters())[name]
    gradient = torch.autograd.grad(loss_of(model, graph), parameter)[0].flatten()
    flat = parameter.data.view(-1)
    for index in gradient.abs().topk(3).indices.tolist():
        start, h, numeric = flat[index].item(), 1e-4, 0.0
        for k, weight in ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12)):
            flat[index] = start + k * h
            numeric += weight / h * loss_of(model, graph).item()
        flat[index] = start
        assert gradient[index].item() == pytest.approx(numeric, rel=1e-6)


def test_forces_under_no_grad(model: Potential, small: System) -> None:
    """Users wrap predictions in no_grad by habit; forces need gradients all the same."""
    graph = small.graph(CUTOFF)
    with torch.no_grad():
        forces = model(graph).forces
    assert torch.equal(forces, model(graph).forces)


def test_evaluation_keeps_no_graph(model: Potential, small: System) -> None:
    prediction = model(small.graph(CUTOFF))
    assert not prediction.energy.requires_grad
    assert not prediction.forces.requires_grad
    assert not prediction.virial.requires_grad


def test_heads_must_divide_channels() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        ViSNetConfig(channels=20, heads=8)
    with pytest.raises(ValueError, match="smoth"):
        ViSNetConfig(smoth=True)  # type: ignore[call-arg]
