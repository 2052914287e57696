"""Many systems side by side: statistics, mechanics, and that no system notices the others."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.md.verlet import VelocityVerlet

from mlpot.calculator import MLPotCalculator
from mlpot.deploy.engines import DeployedModel
from mlpot.deploy.load import load
from mlpot.errors import InputError, UnsupportedSystemError
from mlpot.graph import Graph
from mlpot.md.pairs import ALL_PAIRS, PairList
from mlpot.md.replicas import Replicas
from mlpot.neighbors import NeighborFinder
from mlpot.units import ACCELERATION, BOLTZMANN
from tests.helpers import ethanol

METHANOL, WATER = molecule("CH3OH"), molecule("H2O")


class Springs:
    """Atoms on springs to the mean position of their system: exact answers, no cost."""

    dtype, device, cutoff = torch.float64, torch.device("cpu"), 5.0
    info = SimpleNamespace(name="springs", elements=[1, 6, 8])

    def __init__(self, stiffness: float = 0.05):
        self.stiffness = stiffness  # eV/Å^2
        self.calls = 0

    def predict(self, graph: Graph) -> SimpleNamespace:
        self.calls += 1
        zero = graph.positions.new_zeros(len(graph.cell), 3)
        counts = torch.bincount(graph.batch, minlength=len(graph.cell))[:, None]
        middle = zero.index_add(0, graph.batch, graph.positions) / counts
        arms = graph.positions - middle[graph.batch]
        energy = zero[:, 0].index_add(0, graph.batch, 0.5 * self.stiffness * arms.square().sum(1))
        return SimpleNamespace(energy=energy, forces=-self.stiffness * arms)


class Exploding(Springs):
    """Springs that push apart what holds an oxygen, or answer NaN."""

    def __init__(self, answer: float):
        super().__init__()
        self.answer = answer

    def predict(self, graph: Graph) -> SimpleNamespace:
        fine = super().predict(graph)
        bad = (graph.numbers == 8)[:, None]
        return SimpleNamespace(
            energy=fine.energy, forces=torch.where(bad, self.answer * fine.forces, fine.forces)
        )


def replicas(model: object, atoms: list[Atoms], **options: object) -> Replicas:
    return Replicas(model, [a.numbers for a in atoms], [a.positions for a in atoms], **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shipped() -> DeployedModel:
    return load("pretrained-visnet", "eager", "float64", "cpu")


# --- statistics --------------------------------------------------------------------------------


def test_equipartition_of_motion_and_of_springs() -> None:
    """Both halves of the energy of 3 N - 3 oscillators are kT / 2 each, for each temperature.

    The middle scheme has no time-step error for oscillators, in positions or in velocities, so
    a coarse step must give the same: omega dt is 0.44 for H here.
    """
    count, degrees = 100, 3 * 9 - 3
    kelvin = np.repeat([200.0, 400.0], count // 2)
    options = {"temperatures": kelvin, "timestep": 10.0, "friction": 20.0, "seeds": 1}
    ensemble = replicas(Springs(0.2), [ethanol()] * count, **options)
    ensemble.step(100)
    heat, stretch = [], []
    for _ in range(100):
        ensemble.step(10)
        heat.append(ensemble.temperature)
        stretch.append(2 * ensemble.potential / (degrees * BOLTZMANN))
    for name, values in (("motion", np.array(heat)), ("springs", np.array(stretch))):
        for target in (200.0, 400.0):
            means = values[:, kelvin == target].mean(axis=0)  # independent: one a replica
            error = means.std(ddof=1) / np.sqrt(len(means))
            assert error < 0.01 * target, name
            assert abs(means.mean() - target) < 4 * error, name


def test_the_thermostat_leaves_the_centre_of_mass_alone_and_follows_a_ramp() -> None:
    ensemble = replicas(Springs(), [METHANOL] * 20, temperatures=100.0, friction=100.0)
    ensemble.step(200)
    before = ensemble.temperature.mean()
    ensemble.temperatures = 1000.0
    ensemble.step(400)
    assert before < 200 and 700 < ensemble.temperature.mean() < 1300
    assert ensemble.temperatures == pytest.approx(np.full(20, 1000.0))
    for start, end, m in zip(
        [METHANOL.positions] * 20, ensemble.positions, ensemble.systems.masses, strict=True
    ):
        assert m @ end == pytest.approx(m @ start, abs=1e-9)


def test_a_free_atom_has_the_maxwell_distribution_of_its_mass() -> None:
    """Zero force constant: only the kicks act, and heavy and light atoms differ in nothing else."""
    ensemble = replicas(Springs(0.0), [METHANOL] * 300, friction=1000.0, seeds=5)
    ensemble.step(30)
    v = np.array(ensemble.velocities)
    m = ensemble.systems.masses[0]
    # a resting centre of mass takes the share m / M from each atom
    expected = BOLTZMANN * 300 * ACCELERATION / m * (1 - m / m.sum())
    assert v.var(axis=(0, 2)) == pytest.approx(expected, rel=0.15)


# --- mechanics ---------------------------------------------------------------------------------


def test_constant_energy_with_the_shipped_model(shipped: DeployedModel) -> None:
    """Velocity Verlet's energy error is second order: half the step, a quarter of the error."""
    errors = []
    for timestep in (0.5, 0.25):
        ensemble = replicas(
            shipped, [METHANOL, WATER], friction=None, timestep=timestep, temperatures=300.0
        )
        total = []
        for _ in range(round(50 / timestep)):
            ensemble.step()
            total.append(ensemble.potential + ensemble.kinetic)
        errors.append(np.std(total, axis=0))
    assert (errors[0] < 2e-3).all()
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)


def test_engines_agree(shipped: DeployedModel) -> None:
    scripted = load("pretrained-visnet", "torchscript", "float64", "cpu")
    ends = []
    for model in (shipped, scripted):
        ensemble = replicas(model, [METHANOL, WATER])
        ensemble.step(10)
        ends.append(np.concatenate(ensemble.positions))
    assert ends[0] == pytest.approx(ends[1], abs=1e-9)


def test_agrees_with_ase(shipped: DeployedModel) -> None:
    ensemble = replicas(shipped, [METHANOL, ethanol()], friction=None, seeds=3)
    atoms = ethanol()
    atoms.calc = MLPotCalculator(shipped)
    from ase import units

    atoms.set_velocities(ensemble.velocities[1] / units.fs)
    # ASE's fs follows from its own constants, of another CODATA year: so does its time step
    VelocityVerlet(atoms, 0.5 * units.fs).run(50)
    ensemble.step(50)
    assert np.abs(ensemble.positions[1] - ethanol().positions).max() > 0.05
    assert ensemble.positions[1] == pytest.approx(atoms.positions, abs=1e-6)
    assert ensemble.potential[1] == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    assert ensemble.kinetic[1] == pytest.approx(atoms.get_kinetic_energy(), abs=1e-6)


def test_velocity_verlet_runs_backwards(shipped: DeployedModel) -> None:
    there = replicas(shipped, [METHANOL], friction=None)
    there.step(20)
    back = replicas(
        shipped,
        [METHANOL],
        friction=None,
        velocities=[-there.velocities[0]],
    )
    back.load_state_dict(there.state_dict() | {"velocities": -there.velocities[0], "steps": 0})
    back.step(20)
    assert back.positions[0] == pytest.approx(METHANOL.positions, abs=1e-10)


def test_minimize(shipped: DeployedModel) -> None:
    pressed = WATER.copy()
    pressed.set_distance(0, 1, 0.75)
    ensemble = replicas(shipped, [ethanol(), pressed, METHANOL])
    before, centre = ensemble.potential, ensemble.systems.masses[1] @ ensemble.positions[1]
    ensemble.minimize(300, fmax=0.05)
    assert (ensemble.potential < before).all() and before[1] - ensemble.potential[1] > 0.5
    for f in ensemble.forces:
        assert np.linalg.norm(f, axis=1).max() <= 0.05
    lowest = ensemble.potential
    ensemble.minimize(300, fmax=0.05)  # nothing left to do
    assert ensemble.potential == pytest.approx(lowest, abs=1e-12)
    assert np.isfinite(centre).all()


# --- one among others --------------------------------------------------------------------------


@pytest.mark.parametrize("friction", [10.0, None])
def test_a_trajectory_depends_on_its_own_seed_only(
    shipped: DeployedModel, friction: float | None
) -> None:
    options = {"friction": friction, "temperatures": 300.0}
    together = replicas(shipped, [METHANOL, ethanol(), WATER], seeds=[7, 8, 9], **options)
    alone = replicas(shipped, [ethanol()], seeds=8, **options)
    other = replicas(shipped, [ethanol()], seeds=9, **options)
    for part in (7, 23, 10):  # across a block of random numbers, in unequal parts
        together.step(part)
        alone.step(20 if part == 7 else 10)
    other.step(40)
    assert together.positions[1] == pytest.approx(alone.positions[0], abs=1e-9)
    assert together.velocities[1] == pytest.approx(alone.velocities[0], abs=1e-9)
    assert together.potential[1] == pytest.approx(alone.potential[0], abs=1e-8)
    assert np.abs(other.positions[0] - alone.positions[0]).max() > 0.02


def test_one_call_of_the_model_a_step() -> None:
    model = Springs()
    ensemble = replicas(model, [METHANOL, WATER] * 10)
    model.calls = 0
    ensemble.step(5)
    assert model.calls == 5


@pytest.mark.parametrize("answer", [-500.0, float("nan"), float("inf")])
def test_one_that_breaks_leaves_the_others_alone(answer: float) -> None:
    methane = molecule("CH4")
    options = {"seeds": [1, 2, 3], "temperatures": [300.0, 300.0, 500.0]}
    ensemble = replicas(Exploding(answer), [methane, METHANOL, methane], **options)
    ensemble.step(100)
    assert ensemble.alive.tolist() == [True, False, True]
    assert ensemble.lost.keys() == {1} and ensemble.lost[1] < 100
    assert all(np.isfinite(x).all() for x in (*ensemble.positions, *ensemble.velocities))
    assert ensemble.temperature[1] < 10300 and np.isfinite(ensemble.potential).all()
    for at in (0, 2):
        alone = replicas(
            Springs(),
            [methane],
            seeds=options["seeds"][at],
            temperatures=options["temperatures"][at],
        )
        alone.step(100)
        assert ensemble.positions[at] == pytest.approx(alone.positions[0], abs=1e-9)
    frozen = ensemble.positions[1]
    ensemble.step(5)
    assert (ensemble.positions[1] == frozen).all()


def test_all_lost() -> None:
    ensemble = replicas(Exploding(float("nan")), [WATER, WATER])
    ensemble.step(10)
    assert not ensemble.alive.any() and ensemble.steps < 10
    ensemble.minimize(5)
    assert len(ensemble.positions) == 2 and ensemble.temperature.shape == (2,)


def test_remove() -> None:
    ensemble = replicas(Springs(), [METHANOL, WATER, METHANOL])
    whole = replicas(Springs(), [METHANOL, WATER, METHANOL])
    ensemble.step(10)
    kept = ensemble.positions[1]
    ensemble.remove([1])
    ensemble.step(30)
    whole.step(40)
    assert ensemble.lost == {1: 10} and (ensemble.positions[1] == kept).all()
    assert ensemble.positions[2] == pytest.approx(whole.positions[2], abs=1e-9)
    with pytest.raises(InputError, match="no system 3"):
        ensemble.remove([3])


# --- resuming ----------------------------------------------------------------------------------


def test_resuming_is_exact(shipped: DeployedModel) -> None:
    single = load("pretrained-visnet", "eager", "float32", "cpu")
    for model in (single, shipped):
        first = replicas(model, [METHANOL, WATER, ethanol()], temperatures=[100, 200, 300])
        first.remove([1])
        first.step(37)
        stored = first.state_dict()
        second = replicas(model, [METHANOL, WATER, ethanol()])
        second.load_state_dict(stored)
        first.step(12)
        second.step(12)
        for a, b in zip(first.positions, second.positions, strict=True):
            assert (a == b).all()
        assert (first.potential == second.potential).all() and second.lost == {1: 0}
        assert second.steps == 49 and second.temperatures.tolist() == [100, 200, 300]


def test_a_state_of_something_else_is_refused() -> None:
    state = replicas(Springs(), [METHANOL, WATER]).state_dict()
    for options in ({"timestep": 1.0}, {"friction": None}, {"seeds": 4}):
        with pytest.raises(InputError, match=next(iter(options))):
            replicas(Springs(), [METHANOL, WATER], **options).load_state_dict(state)
    with pytest.raises(InputError, match="sizes"):
        replicas(Springs(), [WATER]).load_state_dict(state)
    with pytest.raises(InputError, match="has no"):
        replicas(Springs(), [WATER]).load_state_dict({})


# --- neighbours --------------------------------------------------------------------------------


def test_pairs_of_small_and_large_systems_in_motion() -> None:
    """The same pairs, in the same order, as a fresh list at every step."""
    rng = np.random.default_rng(2)
    sizes, cutoff = [ALL_PAIRS + 30, 7, ALL_PAIRS + 70, 1], 4.0
    owner = np.repeat(np.arange(4), sizes)
    first = np.cumsum([0, *sizes])
    x = rng.uniform(0, 9, (sum(sizes), 3))
    pairs = PairList(sizes, cutoff)
    for _ in range(30):
        x += 0.08 * rng.standard_normal(x.shape) * (owner != 2)[:, None]
        x[owner == 0] += 0.1  # one system drifts as a whole
        found = pairs(torch.as_tensor(x)).numpy()
        wanted = []
        for r, size in enumerate(sizes):
            find = NeighborFinder(cutoff)
            find.overlap = 0.0
            near = find(x[first[r] : first[r] + size])[0] + first[r]
            wanted.append(near[:, np.lexsort(near)])
        assert (found == np.concatenate(wanted, axis=1)).all()


def test_large_systems_give_the_energy_of_the_model(shipped: DeployedModel) -> None:
    many = Atoms()
    for shift in range(0, 66, 3):
        water = WATER.copy()
        water.positions += [shift, 0.1 * shift, 0]
        many += water
    assert len(many) > ALL_PAIRS
    ensemble = replicas(shipped, [METHANOL, many], temperatures=800.0, timestep=1.0)
    for _ in range(3):
        ensemble.step(15)
        energy = shipped(many.numbers, ensemble.positions[1]).energy
        assert ensemble.potential[1] == pytest.approx(energy, abs=1e-6)


# --- at the door -------------------------------------------------------------------------------


def test_refused(shipped: DeployedModel) -> None:
    close, broken = WATER.copy(), WATER.copy()
    close.positions[1] = close.positions[0] + 0.1
    broken.positions[0, 0] = np.nan
    for atoms, says in ((close, "system 1: .*overlap"), (broken, "system 1: .*NaN")):
        with pytest.raises(InputError, match=says):
            replicas(shipped, [WATER, atoms])
    with pytest.raises(UnsupportedSystemError, match="does not cover U"):
        replicas(shipped, [WATER, Atoms("U")])
    for options, says in (
        ({"timestep": 0.0}, "timestep"),
        ({"timestep": float("nan")}, "timestep"),
        ({"friction": -1.0}, "friction"),
        ({"temperatures": [300.0]}, "temperatures must be"),
        ({"temperatures": -1.0}, "temperatures must be"),
        ({"temperatures": float("nan")}, "temperatures must be"),
        ({"seeds": [1]}, "seeds"),
        ({"seeds": -1}, "seeds"),
        ({"seeds": [0.5, 1]}, "seeds"),
        ({"masses": [np.ones(3)]}, "masses must be 2 arrays"),
        ({"masses": [np.ones(3), np.zeros(3)]}, "positive"),
        ({"velocities": [np.ones((3, 3)), np.ones((2, 3))]}, "velocities of system 1"),
    ):
        with pytest.raises(InputError, match=says):
            replicas(Springs(), [WATER, WATER], **options)
    with pytest.raises(InputError, match="no systems"):
        Replicas(shipped, [], [])
