"""The wall: against the formula, against nature, and together with a network."""

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.data import chemical_symbols, covalent_radii

from mlpot.graph import Graph, edge_vectors
from mlpot.models.checkpoint import ModelInfo, build
from mlpot.models.potential import Potential
from mlpot.models.priors import REACH, ZBL

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
