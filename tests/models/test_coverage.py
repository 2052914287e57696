"""Coverage of pair distances: holes where nature has them, and none from few frames."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor

from mlpot.graph import edge_vectors
from mlpot.models.coverage import REACH, Coverage, PairCounts
from mlpot.models.coverage import gaps as gaps_of
from mlpot.models.extrapolation import Extrapolation, grade
from mlpot.models.extrapolation_fit import fit
from mlpot.models.potential import Potential
from mlpot.neighbors import build_graph
from tests.helpers import ethanol, random_potential
from tests.models.test_extrapolation import labelled, thermal

NODES = np.arange(151) * 0.02


def gaps(counts: Tensor, share: float = 1 / 5000, swing: float = 0.0) -> Tensor:
    told = (torch.full(counts.shape[:1], x, dtype=torch.float64) for x in (share, swing))
    return gaps_of(counts, *told)


def counted(lengths: np.ndarray) -> Tensor:
    """[1, bins], as `PairCounts` has them."""
    return torch.tensor(np.histogram(lengths, np.arange(351) * 0.01)[0], dtype=torch.float64)[None]


def bond_and_angle(n: int, seed: int = 0) -> np.ndarray:
    """C-H as in molecules: bonds at 1.09 Å, the next neighbours at 2.15 Å, others further out."""
    rng = np.random.default_rng(seed)
    parts = rng.normal(1.09, 0.035, n), rng.normal(2.15, 0.08, n), rng.uniform(2.5, 4.0, n)
    return np.concatenate(parts)


def test_the_gap_of_many_samples_is_the_distance_to_what_is_common() -> None:
    lengths = bond_and_angle(100_000)
    near = lengths[lengths < 3.5]
    found = gaps(counted(near))[0].numpy()
    expected = [np.sort(np.abs(near - x))[len(near) // 5000] for x in NODES[:120]]
    assert found[:120] == pytest.approx(expected, abs=0.021)
    few = np.concatenate([near, np.linspace(1.3, 1.8, 20)])  # one in 13,000 changes nothing much
    assert gaps(counted(few))[0].numpy() == pytest.approx(found, abs=0.06)


def test_along_a_stretch_it_grows_to_the_middle_of_the_hole() -> None:
    found = gaps(counted(bond_and_angle(20_000)))[0].numpy()
    assert found[np.abs(NODES - 1.09) < 0.1].max() == 0
    top = int(found[:100].argmax())  # of the repulsive wall
    assert top == 0
    hole = (NODES > 1.2) & (NODES < 1.5)
    assert (np.diff(found[hole]) >= -1e-9).all() and found[hole][-1] > 0.1
    wall = NODES < 0.95
    assert (np.diff(found[wall]) <= 1e-9).all()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("few", [60, 450, 3000])
def test_few_samples_make_no_holes(few: int, seed: int) -> None:
    """A run of many more frames from the same distribution stays within; a hole is still one."""
    found = gaps(counted(bond_and_angle(few, seed)))[0].numpy()
    run = np.interp(bond_and_angle(50_000, seed + 100), NODES, found)
    assert (run > 0.025).mean() < 1e-3
    assert np.interp(1.5, NODES, found) > 0.075  # a bond of 1.09 Å stretched by less than 0.5


@pytest.mark.parametrize("few", [60, 450, 3000, 200_000])
def test_bonds_of_hydrogen_that_swing_are_whole(few: int) -> None:
    """A larger share of them is taken for stretched; that must not reach those of 300 K."""
    lengths = np.random.default_rng(few).normal(1.09, 0.035, few + 500_000)
    found = gaps(counted(lengths[:few]), 1 / 150, 3.0)[0].numpy()
    assert (np.interp(lengths[few:], NODES, found) > 0.065).mean() < 2e-5
    assert np.interp(1.45, NODES, found) > 0.08


def test_elements_never_seen_near_each_other() -> None:
    """Far away is where the nearest one may be; and no step where the table ends."""
    found = gaps(torch.zeros(1, 350, dtype=torch.float64))[0].numpy()
    assert found == pytest.approx(np.minimum(3.5 - NODES, REACH - NODES), abs=0.011)
    assert found[-1] == 0


def test_lengths_beyond_the_table_are_not_asked_about() -> None:
    made = Coverage([6, 8])
    made.gaps.fill_(200)
    edges = torch.tensor([[0, 1, 0, 2, 0, 3], [1, 0, 2, 0, 3, 0]])
    lengths = torch.tensor([1.0, 1.0, 3.2, 3.2, 0.0, 0.0])
    row = torch.tensor([0, 1, 1, -1])  # -1: an element that is not in the table
    assert made(row, edges, lengths).tolist() == pytest.approx([1.0, 1.0, 0.0, 0.0])
    assert made(row[:1], edges[:, :0], lengths[:0]).tolist() == [0.0]


def test_counts_are_those_of_pairs_in_any_order() -> None:
    counts = PairCounts([1, 6, 8])
    atoms = molecule("CH3OH")
    graph = build_graph(atoms.numbers, atoms.positions, 4.0)
    counts.add(graph.numbers, graph.edge_index, edge_vectors(graph).norm(dim=1))
    assert counts.table.sum() == 15  # pairs of six atoms
    # H-H, H-C, H-O, C-C, C-O, O-O, and the bonds of hydrogen to each
    assert counts.table.sum(1).tolist() == [6, 1, 3, 0, 1, 0, 0, 3, 1]
    part = counts.coverage([6, 8])
    assert part.gaps.shape == (5, 151) and part.gaps.dtype == torch.uint8
    assert torch.equal(part.gaps[:3], counts.coverage([1, 6, 8]).gaps[3:6])


def random_coverage(elements: list[int], seed: int) -> Coverage:
    made, random = Coverage(elements), torch.Generator().manual_seed(seed)
    made.gaps.random_(1, 256, generator=random)
    return made


@pytest.mark.parametrize("others", [[1, 6, 7, 8], [6, 8], [1, 8], [7]])
def test_what_the_start_knows_is_known(others: list[int]) -> None:
    """The smaller of two gaps where both tables have the pair, and else its own."""
    elements = [1, 6, 8]
    mine, start = random_coverage(elements, 1), random_coverage(others, 2)
    both = Coverage(elements)
    both.gaps = mine.gaps.clone()
    both.know(start, torch.tensor([others.index(z) if z in others else -1 for z in elements]))
    # of a C-O-H with a second H, so that both rows of hydrogen are asked for
    numbers = torch.tensor([6, 8, 1, 1])
    i, j = torch.triu_indices(4, 4, 1)
    edges = torch.stack([torch.cat([i, j]), torch.cat([j, i])])
    shared = torch.tensor([all(int(numbers[k]) in others for k in pair) for pair in edges.T])

    def gaps_in(table: Coverage, of: list[int], lengths: Tensor) -> Tensor:
        row = torch.tensor([of.index(z) if z in of else -1 for z in numbers.tolist()])
        return table.edges(row, edges, lengths)[1]

    random, changed = torch.Generator().manual_seed(0), 0
    for _ in range(20):
        # at nodes of the tables: between them a minimum of lines is no line of minima
        lengths = 0.02 * torch.randint(40, 149, (6,), generator=random).double().repeat(2)
        own, known = gaps_in(mine, elements, lengths), gaps_in(start, others, lengths)
        expected = torch.where(shared, own.minimum(known), own)
        found = gaps_in(both, elements, lengths)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        changed += int((found < own).sum())
    assert (changed > 0) == bool(shared.any())


def test_a_bond_that_tears_is_not_taken_for_a_hydroxyl_group() -> None:
    """C and H of C-O-H are as far apart as those of a bond that has torn."""
    rng, counts = np.random.default_rng(0), PairCounts([1, 6, 8])
    numbers = torch.tensor([6, 8, 1, 1])  # C-O-H, and a hydrogen of the carbon
    i, j = torch.triu_indices(4, 4, 1)
    edges = torch.stack([torch.cat([i, j]), torch.cat([j, i])])

    def found(row: Tensor, hydroxyl: float, bond: float) -> Tensor:
        pairs = [1.4, hydroxyl, bond, 0.97, 2.1, 2.5]  # C-O, C-H, C-H, O-H, O-H, H-H
        return made(row, edges, torch.tensor(pairs * 2, dtype=torch.float64))

    for _ in range(2000):
        pairs = np.array([1.4, 1.85, 1.09, 0.97, 2.1, 2.5]) + 0.04 * rng.standard_normal(6)
        counts.add(numbers, edges, torch.tensor(np.tile(pairs, 2)))
    made = counts.coverage([1, 6, 8])
    row = torch.tensor([1, 2, 0, 0])
    assert found(row, 1.85, 1.09).max() == 0
    for torn in (1.5, 1.7, 1.85):
        gap = found(row, 1.85, torn)
        assert gap[0] == gap[3] > 0.15 and gap[1] == gap[2] == 0


# --- as a part of the grade ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Potential:
    return random_potential(seed=3)


@pytest.fixture(scope="module")
def fitted(model: Potential) -> Extrapolation:
    training = labelled(model, thermal(ethanol(), 200, seed=1))
    return fit(model, training, labelled(model, thermal(ethanol(), 100, seed=2)))


def length_grades(fitted: Extrapolation, atoms: Atoms) -> np.ndarray:
    graph = build_graph(atoms.numbers, atoms.positions, 5.0)
    found = fitted.length_grades(graph, edge_vectors(graph))
    assert found is not None
    return found.numpy()


def stretched(atoms: Atoms, i: int, j: int, by: float) -> Atoms:
    """Atom j further from atom i."""
    moved = atoms.copy()
    moved.set_distance(i, j, atoms.get_distance(i, j) + by, fix=0)
    return moved


def test_a_bond_that_tears_is_outside_before_it_is_half_an_angstrom_off(
    model: Potential, fitted: Extrapolation
) -> None:
    atoms = molecule("CH3CH2OH")
    carbon = 0
    hydrogen = next(
        i for i in range(9) if atoms.numbers[i] == 1 and atoms.get_distance(carbon, i) < 1.2
    )
    assert length_grades(fitted, atoms).max() == 0
    found = []
    for by in np.arange(0.0, 0.46, 0.03):
        moved = stretched(atoms, carbon, hydrogen, float(by))
        grades = length_grades(fitted, moved)
        found.append(grades[hydrogen])
        graph = build_graph(moved.numbers, moved.positions, 5.0)
        assert (grade(model, fitted, graph).numpy() >= grades - 1e-5).all()
    assert all(b >= a - 1e-5 for a, b in zip(found, found[1:], strict=False)), found
    assert found[-1] > 3, found
    graph = build_graph(moved.numbers, moved.positions, 5.0)
    pair = fitted.torn(graph, hydrogen)
    assert pair is not None and pair.atom == hydrogen
    assert pair.length == pytest.approx(moved.get_distance(pair.other, hydrogen), rel=1e-5)
    still = build_graph(atoms.numbers, atoms.positions, 5.0)
    assert fitted.torn(still, hydrogen) is None


def test_bonds_that_tear_in_the_data_do_not_move_the_line(model: Potential) -> None:
    """Frames of hot molecules hold some."""
    whole = thermal(ethanol(), 97, seed=2)
    torn = [stretched(atoms, 0, 6, 0.45) for atoms in thermal(ethanol(), 3, seed=4)]
    training = thermal(ethanol(), 200, seed=1)
    known = fit(model, labelled(model, training), labelled(model, whole + torn))
    still = fit(model, labelled(model, training), labelled(model, whole))
    assert known.info.apart == still.info.apart
    assert min(length_grades(known, atoms).max() for atoms in torn) > 2


def water_dimer(apart: float) -> Atoms:
    """A hydrogen of the first molecule points at the oxygen of the second, Å between oxygens."""
    first = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    second = Atoms("OHH", [[apart, 0, 0], [apart + 0.59, 0, 0.76], [apart + 0.59, 0, -0.76]])
    return first + second


def test_water_dimers_between_those_of_training_are_inside(model: Potential) -> None:
    rng, frames = np.random.default_rng(0), []
    for apart in rng.uniform(2.6, 4.5, 400):
        frames += thermal(water_dimer(apart), 1, seed=int(1e6 * apart), width=0.03)
    known = fit(model, labelled(model, frames[:300]), labelled(model, frames[300:]))
    assert [length_grades(known, water_dimer(x)).max() for x in (2.7, 2.9, 3.3, 4.0)] == [0.0] * 4
    assert length_grades(known, water_dimer(2.2)).max() > 3  # H...O at 1.24 Å
    assert length_grades(known, water_dimer(12.0)).max() == 0  # alone is another question


def test_few_frames_after_many(model: Potential) -> None:
    """What is usual among the many is so for a model that was fine-tuned on the few; what tears is
    in neither, and the network is another."""
    many = thermal(ethanol(), 200, seed=1, width=0.06)
    few = thermal(ethanol(), 12, seed=2, width=0.01)
    start = fit(model, labelled(model, many), labelled(model, many[:50]))
    alone = fit(model, labelled(model, few[:8]), labelled(model, few[8:]))
    known = fit(model, labelled(model, few[:8]), labelled(model, few[8:]), start)
    assert known.info.lengths_of_start and not alone.info.lengths_of_start

    def worst(of: Extrapolation, frames: list[Atoms]) -> float:
        return float(np.median([length_grades(of, atoms).max() for atoms in frames]))

    usual = thermal(ethanol(), 20, seed=3, width=0.06)
    torn = [stretched(atoms, 0, 6, 0.45) for atoms in thermal(ethanol(), 5, seed=4, width=0.01)]
    assert worst(alone, usual) > 1 and worst(known, usual) < 1
    assert worst(known, torn) > 2
    assert torch.equal(known.mean, alone.mean) and torch.equal(known.far, alone.far)


def test_a_bond_through_the_wall_of_a_box(fitted: Extrapolation) -> None:
    atoms = molecule("CH3CH2OH")
    atoms.set_cell([9.0, 9.0, 9.0])
    torn = stretched(atoms, 0, 6, 0.45)
    expected = length_grades(fitted, torn)
    torn.positions += 4.4
    torn.pbc = True
    torn.wrap()
    graph = build_graph(torn.numbers, torn.positions, 5.0, torn.cell.array, (True,) * 3)
    found = fitted.length_grades(graph, edge_vectors(graph))
    assert found is not None and expected.max() > 3
    assert found.numpy() == pytest.approx(expected, abs=0.02)
