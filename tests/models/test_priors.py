"""The wall: against the formula, against nature, and together with a network."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.data import chemical_symbols, covalent_radii

from mlpot.errors import InputError
from mlpot.graph import Graph, edge_vectors
from mlpot.models.checkpoint import ModelInfo, build, load, save
from mlpot.models.potential import Potential
from mlpot.models.priors import FADE, REACH, ZBL, Floor, floor_table

ELEMENTS = (1, 6, 7, 8, 9, 15, 16, 17, 35, 53)


def graph_of(atoms: Atoms) -> Graph:
    """All pairs; `build_graph` refuses atoms as near to each other as some of these."""
    n = len(atoms)
    edges = [(i, j) for i in range(n) for j in range(n) if i != j]
    return Graph(
        numbers=torch.tensor(atoms.numbers),
        positions=torch.tensor(atoms.positions),
        edge_index=torch.tensor(edges).T,
        shifts=torch.zeros(len(edges), 3, dtype=torch.float64),
        batch=torch.zeros(n, dtype=torch.int64),
        cell=torch.zeros(1, 3, 3, dtype=torch.float64),
    )


def energy(atoms: Atoms) -> float:
    graph = graph_of(atoms)
    return float(ZBL().double()(graph, edge_vectors(graph)).sum())


def pair(a: int, b: int, distance: float) -> Atoms:
    return Atoms([a, b], [[0, 0, 0], [0, 0, distance]])


@pytest.mark.parametrize(("a", "b"), [(6, 6), (1, 8), (17, 35)])
def test_close_in_it_is_the_published_formula(a: int, b: int) -> None:
    """With ASE's constants, where the envelope is 1 to 1e-6."""
    r = 0.08 * REACH * (covalent_radii[a] + covalent_radii[b])
    x = r * (a**0.23 + b**0.23) / (0.8854 * units.Bohr)
    phi = np.exp(-np.outer([3.19980, 0.94229, 0.40290, 0.20162], x))
    coulomb = units.Hartree * units.Bohr * a * b / r
    want = coulomb * np.array([0.18175, 0.50986, 0.28022, 0.02817]) @ phi
    assert energy(pair(a, b, r)) == pytest.approx(float(want[0]), rel=2e-5)


def test_a_wall_that_falls_all_the_way_and_ends() -> None:
    for a in ELEMENTS:
        for b in ELEMENTS:
            end = REACH * (covalent_radii[a] + covalent_radii[b])
            curve = [energy(pair(a, b, r)) for r in np.linspace(0.05, end, 40)]
            assert (np.diff(curve) < 0).all() and curve[-1] == pytest.approx(0, abs=1e-12)
            assert energy(pair(a, b, end + 1e-6)) == 0
            assert curve[10] > 5, (chemical_symbols[a], chemical_symbols[b])


@pytest.mark.parametrize("name", ["N2", "CO", "C2H2", "HCN", "H2CO", "H2O", "CH3SH", "HF", "C6H6"])
def test_bonds_do_not_feel_it(name: str) -> None:
    """Geometries of the G2 set (MP2), as ASE has them."""
    atoms = molecule(name)
    assert energy(atoms) < 0.02
    closer = atoms.copy()
    closer.positions *= 0.6
    assert energy(closer) > 3


def test_a_potential_with_it_is_smooth_and_conservative() -> None:
    torch.manual_seed(0)
    info = ModelInfo(
        config={"layers": 2, "channels": 16, "heads": 4}, reference_energies={6: -1.0}, prior="zbl"
    )
    model = build(info).double().eval()
    assert isinstance(model, Potential)

    def at(r: float) -> Graph:
        return graph_of(pair(6, 6, r))

    bare = Potential(model.backbone, model.head, {6: -1.0})
    for r in (0.3, 0.9, 1.21, 1.3):
        force = float(model(at(r)).forces[1, 2].detach())
        h = 1e-5
        slope = float(model(at(r + h)).interaction - model(at(r - h)).interaction) / (2 * h)
        assert force == pytest.approx(-slope, rel=1e-6, abs=1e-8)
        wall = float(model(at(r)).interaction - bare(at(r)).interaction)
        assert wall == pytest.approx(energy(pair(6, 6, r)), rel=1e-9)


def test_its_table_is_code_and_not_weights() -> None:
    with_prior = build(ModelInfo(reference_energies={1: 0.0}, prior="zbl"))
    without = build(ModelInfo(reference_energies={1: 0.0}))
    assert with_prior.state_dict().keys() == without.state_dict().keys()


# --- the floor ---------------------------------------------------------------------------------

FLOORS = {"C-C": 1.3, "H-C": 0.9, "Cl-I": 3.4}


def seen(a: int, b: int, r: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Lengths as features see them; all pairs in one graph, along a slanted line."""
    edges = torch.arange(2 * len(r)).view(-1, 2).T
    none = torch.zeros(0)
    graph = Graph(torch.tensor([a, b] * len(r)), none, edges, none, none, none)
    line = torch.tensor([2.0, -1.0, 2.0], dtype=dtype) / 3
    vectors = torch.tensor(r, dtype=dtype)[:, None] * line
    out = Floor(FLOORS).to(dtype)(graph, vectors)
    assert torch.allclose(out / out.norm(dim=1, keepdim=True), line.expand(len(r), 3), atol=1e-6)
    beyond = torch.tensor(r >= floor_table(FLOORS, 100)[a, b].item() + 1e-6)
    assert torch.equal(out[beyond], vectors[beyond])  # to the last bit
    return out.norm(dim=1)


@pytest.mark.parametrize(
    ("a", "b", "floor"),
    [(6, 6, 1.3), (6, 1, 0.9), (1, 6, 0.9), (53, 17, 3.4), (7, 6, covalent_radii[[6, 7]].sum())],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_see_no_pair_closer_than_known(
    a: int, b: int, floor: float, dtype: torch.dtype
) -> None:
    """Whichever atom comes first; a pair that was never seen has the length of a bond."""
    r = np.linspace(0.1, floor + 0.5, 200)
    lengths = seen(a, b, r, dtype).double().numpy()
    assert (np.diff(lengths) > -1e-6).all()
    np.testing.assert_allclose(lengths[r < floor - FADE], floor - FADE / 2, atol=1e-6)
    np.testing.assert_allclose(lengths[r > floor], r[r > floor], atol=1e-6)


def test_the_floor_is_twice_differentiable() -> None:
    """Slope and curvature of the length that is seen have no step."""
    for edge in (1.3 - FADE, 1.3):
        h = 1e-4
        r = edge + h * np.arange(-4, 5)
        lengths = seen(6, 6, r).numpy()
        slopes, curvatures = np.diff(lengths) / h, np.diff(lengths, 2) / h**2
        assert np.ptp(slopes) < 1e-5 and np.ptp(curvatures) < 0.5 * 60 / FADE**2 * 8 * h
    at_the_floor = torch.tensor([[1.3, 0.0, 0.0]], requires_grad=True)  # as the shortest frame
    none = torch.zeros(0)
    graph = Graph(torch.tensor([6, 6]), none, torch.tensor([[0], [1]]), none, none, none)
    Floor(FLOORS)(graph, at_the_floor).norm().backward()
    assert at_the_floor.grad is not None
    np.testing.assert_allclose(at_the_floor.grad, [[1.0, 0.0, 0.0]], atol=1e-5)


def test_only_the_wall_rules_below_the_floor() -> None:
    """Whatever a network says of two atoms, and forces stay the gradient."""
    torch.manual_seed(0)
    info = ModelInfo(
        config={"layers": 2, "channels": 16, "heads": 4},
        reference_energies={6: -1.0},
        prior="zbl",
        floors=FLOORS,
        scale=1000.0,
    )
    model = build(info).double().eval()
    assert isinstance(model, Potential)
    wall = ZBL(floors=FLOORS).double()

    def at(r: float) -> Graph:
        return graph_of(pair(6, 6, r))

    def along(graph: Graph) -> tuple[float, float]:
        vectors = edge_vectors(graph).requires_grad_(True)
        slope = torch.autograd.grad(wall(graph, vectors).sum(), vectors)[0].norm(dim=1).sum()
        return float(model(graph).forces[1, 2]), float(slope)

    for r in (0.4, 0.8, 1.19):
        learned, expected = along(at(r))
        assert learned == pytest.approx(expected, rel=1e-9)
    assert abs(np.subtract(*along(at(1.28)))) > 1
    for r in (1.19, 1.21, 1.25, 1.299, 1.301):
        h = 1e-5
        slope = float(model(at(r + h)).interaction - model(at(r - h)).interaction) / (2 * h)
        assert float(model(at(r)).forces[1, 2]) == pytest.approx(-slope, rel=1e-6, abs=1e-5)


def test_the_wall_reaches_to_the_floor() -> None:
    """So that no gap is left where nothing repels; bonds that are known do not feel it."""
    graph = graph_of(pair(17, 53, 3.3))
    assert float(ZBL(floors=FLOORS).double()(graph, edge_vectors(graph)).sum()) > 0
    assert energy(pair(17, 53, 3.3)) == 0


def test_of_a_pair_below_its_floor_the_length_does_not_count() -> None:
    """In a molecule too: what is left along that edge is the wall. Its direction still counts."""
    torch.manual_seed(0)
    info = ModelInfo(
        config={"layers": 2, "channels": 16, "heads": 4},
        reference_energies={1: 0.0, 6: -1.0, 8: -2.0},
        prior="zbl",
        floors=FLOORS,
        scale=1000.0,
    )
    model = build(info).double().eval()
    assert isinstance(model, Potential)
    atoms = molecule("CH3CH2OH")
    atoms.positions[0] += 0.3 * (atoms.positions[1] - atoms.positions[0])  # C-C at 1.06 Å
    graph, wall = graph_of(atoms), ZBL(floors=FLOORS).double()
    edge = ((graph.edge_index[0] == 0) & (graph.edge_index[1] == 1)).nonzero().item()

    def along(energy: Callable[[torch.Tensor], torch.Tensor]) -> float:
        vectors = edge_vectors(graph).requires_grad_(True)
        slope = torch.autograd.grad(energy(vectors).sum(), vectors)[0][edge]
        return float(slope @ vectors[edge].detach() / vectors[edge].detach().norm())

    everything = along(lambda v: model._per_atom(model.latent(graph, v), graph, v))
    assert everything == pytest.approx(along(lambda v: wall(graph, v)), rel=1e-9)
    assert everything < -1


def test_the_description_holds_the_floor(tmp_path: Path) -> None:
    """Files of before have none, and are other architectures."""
    bare = ModelInfo(reference_energies={1: 0.0, 6: 0.0}, prior="zbl")
    with_floor = bare.model_copy(update={"floors": {"H-C": 0.9}})
    assert build(bare).floor is None and build(with_floor).floor is not None
    assert build(bare).state_dict().keys() == build(with_floor).state_dict().keys()
    assert bare.architecture() != with_floor.architecture()
    save(build(with_floor), with_floor, tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors")[1].floors == with_floor.floors
    for other in (bare, with_floor.model_copy(update={"floors": {"H-C": 0.8}})):
        with pytest.raises(InputError, match="floors"):
            save(build(with_floor), other, tmp_path / "m.safetensors")


def test_without_a_wall_there_is_no_floor() -> None:
    with pytest.raises(ValueError, match="nothing else would repel"):
        ModelInfo(reference_energies={1: 0.0}, floors={"H-H": 1.0})
