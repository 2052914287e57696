"""The contract of a potential as assertions that anyone's model can be put through.

``model(graph) -> Prediction`` may be a `Potential`, a scripted one, or any callable that
returns ``energy`` [B] eV, ``forces`` [N, 3] eV/Å and ``virial`` [B, 3, 3] eV. It is given
graphs in float64 on the CPU; in float32 the finite differences would drown in rounding.
Every function raises AssertionError with the numbers, and returns nothing otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mlpot.graph import Graph, batch
from mlpot.neighbors import build_graph

Model = Callable[[Graph], Any]

#: relative to the largest force (or virial): analytic against finite differences
GRADIENT_RTOL = 1e-6
#: eV/Å or eV; rounding of the energy, which a finite difference divides by STEP, is added to it
GRADIENT_ATOL = 1e-7
#: eV, eV/Å: two ways to the same number
SAME = 1e-8
#: eV, eV/Å: the largest jump when a pair crosses the cutoff
JUMP = 1e-6

#: Å; one-sided limits at the cutoff are extrapolated linearly from one and two of these away,
#: so that the genuine slope does not count as a jump
CROSSING = 1e-7
#: Å; step of the five-point finite differences. Their error goes with its fourth power.
STEP = 1e-4
#: Å; the shortest pair in `random_molecule`
CLOSEST = 0.9
#: Å; how far apart molecules have nothing to do with each other
APART = 20.0

_STENCIL = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
_CHUNK = 24  # structures in one call


class System(NamedTuple):
    """One structure to be tested with."""

    numbers: NDArray[np.int64]  # [N]
    positions: NDArray[np.float64]  # [N, 3] Å
    cell: NDArray[np.float64] | None = None  # [3, 3] Å
    pbc: tuple[bool, bool, bool] = (False, False, False)

    def graph(self, cutoff: float) -> Graph:
        return build_graph(
            self.numbers, self.positions, cutoff, self.cell, self.pbc, dtype=torch.float64
        )

    def moved(self, positions: NDArray) -> "System":
        return self._replace(positions=positions)


def random_molecule(
    elements: Sequence[int],
    atoms: int,
    rng: np.random.Generator,
    closest: float = CLOSEST,
    volume: float = 8.0,
) -> System:
    """Atoms at random in a cube, none closer to another than ``closest`` Å.

    Args:
        volume: Å³ per atom; 8 is about as dense as an organic liquid.
    """
    side = max((volume * atoms) ** (1 / 3), closest)
    positions = np.zeros((0, 3))
    for _ in range(10_000):
        if len(positions) == atoms:
            break
        trial = rng.uniform(-side / 2, side / 2, (1, 3))
        if not len(positions) or np.linalg.norm(positions - trial, axis=1).min() > closest:
            positions = np.concatenate([positions, trial])
    else:
        raise ValueError(f"cannot place {atoms} atoms {closest} Å apart in {volume} Å³ each")
    return System(rng.choice(np.asarray(elements, dtype=np.int64), atoms), positions)


def assert_forces_are_gradients(model: Model, cutoff: float, system: System) -> None:
    """forces = -dE/dx, every component, by five-point differences."""
    energy, forces, _ = _evaluate(model, cutoff, system)

    def displaced(step: float) -> Iterator[System]:
        for unit in np.eye(forces.size).reshape(-1, *forces.shape):
            yield system.moved(system.positions + step * unit)

    numeric = -_derivative(model, cutoff, displaced).reshape(forces.shape)
    _assert_gradient("forces are not -dE/dx", forces, numeric, energy)


def assert_virial_is_strain_derivative(model: Model, cutoff: float, system: System) -> None:
    """virial = -dE/d(strain), every component, atoms and cell strained together."""
    energy, _, virial = _evaluate(model, cutoff, system)

    def strained(step: float) -> Iterator[System]:
        for unit in np.eye(9).reshape(9, 3, 3):
            yield _transformed(system, np.eye(3) + step * unit)

    numeric = -_derivative(model, cutoff, strained).reshape(3, 3)
    _assert_gradient("virial is not -dE/d(strain)", virial, numeric, energy)


def assert_forces_sum_to_zero(model: Model, cutoff: float, system: System) -> None:
    """No net force, and no net torque on what is not periodic."""
    forces = _evaluate(model, cutoff, system)[1]
    _assert_same("net force [eV/Å] is not zero", forces.sum(axis=0), np.zeros(3))
    if not any(system.pbc):
        torque = np.cross(system.positions - system.positions.mean(axis=0), forces).sum(axis=0)
        _assert_same("net torque [eV] is not zero", torque, np.zeros(3))


def assert_rotation_translation_permutation(
    model: Model, cutoff: float, system: System, rng: np.random.Generator
) -> None:
    """Energy does not change, forces and virial turn along; reflections included."""
    energy, forces, virial = _evaluate(model, cutoff, system)

    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    for name, matrix in (("rotation", rotation), ("reflection", -rotation)):
        e, f, v = _evaluate(model, cutoff, _transformed(system, matrix))
        _assert_same(f"{name} changes the energy [eV]", e, energy)
        _assert_same(f"forces [eV/Å] do not follow a {name}", f, forces @ matrix.T)
        _assert_same(f"virial [eV] does not follow a {name}", v, matrix @ virial @ matrix.T)

    shifted = system.moved(system.positions + rng.uniform(-5, 5, 3))
    order = rng.permutation(len(forces))
    permuted = system._replace(numbers=system.numbers[order], positions=system.positions[order])
    for name, other, expected in (
        ("translation", shifted, forces),
        ("permutation", permuted, forces[order]),
    ):
        e, f, v = _evaluate(model, cutoff, other)
        _assert_same(f"{name} changes the energy [eV]", e, energy)
        _assert_same(f"forces [eV/Å] do not follow a {name}", f, expected)
        _assert_same(f"{name} changes the virial [eV]", v, virial)


def assert_batch_equals_singles(model: Model, cutoff: float, systems: Sequence[System]) -> None:
    """Structures do not see each other in a batch."""
    singles = [_evaluate(model, cutoff, system) for system in systems]
    together = model(batch([system.graph(cutoff) for system in systems]))
    _assert_same(
        "energies [eV] in a batch differ from singles",
        together.energy.detach().numpy(),
        np.array([energy for energy, _, _ in singles]),
    )
    _assert_same(
        "forces [eV/Å] in a batch differ from singles",
        together.forces.detach().numpy(),
        np.concatenate([forces for _, forces, _ in singles]),
    )
    _assert_same(
        "virials [eV] in a batch differ from singles",
        together.virial.detach().numpy(),
        np.stack([virial for _, _, virial in singles]),
    )


def assert_size_consistent(model: Model, cutoff: float, first: System, second: System) -> None:
    """Two molecules 20 Å apart have the sum of their energies, and each its own forces."""
    if any(first.pbc) or any(second.pbc):
        raise ValueError("size consistency is tested on molecules, not on periodic systems")
    gap = APART + first.positions[:, 0].max() - second.positions[:, 0].min()
    both = System(
        np.concatenate([first.numbers, second.numbers]),
        np.concatenate([first.positions, second.positions + [gap, 0.0, 0.0]]),
    )
    e1, f1, _ = _evaluate(model, cutoff, first)
    e2, f2, _ = _evaluate(model, cutoff, second)
    energy, forces, _ = _evaluate(model, cutoff, both)
    _assert_same(f"energies [eV] of molecules {APART} Å apart do not add up", energy, e1 + e2)
    _assert_same(
        f"forces [eV/Å] change with a molecule {APART} Å away", forces, np.concatenate([f1, f2])
    )


def assert_smooth_at_cutoff(
    model: Model,
    cutoff: float,
    rng: np.random.Generator,
    elements: Sequence[int] = (1, 6, 7, 8),
    others: int = 6,
) -> None:
    """Energy and forces do not jump when a pair crosses the cutoff.

    Every pair of elements is tried, first alone and then with ``others`` more atoms around,
    as in a molecule: a model can be smooth for two atoms and not for three.
    """
    for i, a in enumerate(elements):
        for b in elements[i:]:
            for count in sorted({0, others}):
                pair = _crossing_pair(a, b, count, cutoff, elements, rng)
                e0, f0 = _one_sided_limit(model, cutoff, pair, -CROSSING)
                e1, f1 = _one_sided_limit(model, cutoff, pair, CROSSING)
                where = f"when {a}-{b} crosses {cutoff} Å with {count} other atoms"
                _assert_same(f"energy [eV] jumps {where}", e1, e0, JUMP)
                _assert_same(f"forces [eV/Å] jump {where}", f1, f0, JUMP)


def _crossing_pair(
    a: int, b: int, others: int, cutoff: float, elements: Sequence[int], rng: np.random.Generator
) -> System:
    """Two atoms exactly the cutoff apart, and others near the middle between them."""
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    middle = 0.5 * cutoff * direction
    for _ in range(1000):
        cloud = random_molecule(elements, others, rng)
        positions = np.concatenate([np.zeros((2, 3)), cloud.positions + middle])
        positions[1] = cutoff * direction
        close = [np.linalg.norm(positions[2:] - end, axis=1) for end in positions[:2]]
        if not others or min(d.min() for d in close) > CLOSEST:
            break
    else:
        raise ValueError(f"cannot place {others} atoms around a pair {cutoff} Å apart")
    return System(np.concatenate([[a, b], cloud.numbers]).astype(np.int64), positions)


def _one_sided_limit(
    model: Model, cutoff: float, pair: System, step: float
) -> tuple[float, NDArray]:
    """Energy and forces as the second atom comes to the cutoff from the side of ``step``."""
    unit = np.zeros_like(pair.positions)
    unit[1] = pair.positions[1] / cutoff
    near, far = (pair.moved(pair.positions + k * step * unit) for k in (1, 2))
    sender, receiver = near.graph(cutoff).edge_index
    inside = bool(((sender == 0) & (receiver == 1)).any())
    assert inside == (step < 0), "the neighbour list has the pair on the wrong side"
    e1, f1, _ = _evaluate(model, cutoff, near)
    e2, f2, _ = _evaluate(model, cutoff, far)
    return 2 * e1 - e2, 2 * f1 - f2


def _transformed(system: System, matrix: NDArray) -> System:
    """Atoms and cell under a linear map of space."""
    cell = None if system.cell is None else system.cell @ matrix.T
    return system._replace(positions=system.positions @ matrix.T, cell=cell)


def _evaluate(model: Model, cutoff: float, system: System) -> tuple[float, NDArray, NDArray]:
    """Energy, forces [N, 3], virial [3, 3] of one structure; all finite."""
    prediction = model(system.graph(cutoff))
    n = len(system.numbers)
    values = []
    for name, shape in (("energy", (1,)), ("forces", (n, 3)), ("virial", (1, 3, 3))):
        value = getattr(prediction, name).detach().numpy()
        assert value.shape == shape, f"{name} must have shape {shape}, got {value.shape}"
        assert np.isfinite(value).all(), f"{name} is not finite: {value}"
        values.append(value)
    return float(values[0][0]), values[1], values[2][0]


def _derivative(
    model: Model, cutoff: float, perturbed: Callable[[float], Iterator[System]]
) -> NDArray:
    """dE/d(step) of every series of perturbed systems."""
    total: NDArray = np.zeros(())
    for multiple, weight in _STENCIL.items():
        graphs = [system.graph(cutoff) for system in perturbed(multiple * STEP)]
        chunks = [graphs[i : i + _CHUNK] for i in range(0, len(graphs), _CHUNK)]
        energies = [model(batch(chunk)).energy.detach().numpy() for chunk in chunks]
        total = total + weight / STEP * np.concatenate(energies)
    return total


def _assert_gradient(message: str, analytic: NDArray, numeric: NDArray, energy: float) -> None:
    rounding = 2 * np.finfo(np.float64).eps * abs(energy) / STEP
    largest = float(np.abs(analytic).max(initial=0.0))
    tolerance = GRADIENT_ATOL + rounding + GRADIENT_RTOL * largest
    _assert_same(message, analytic, numeric, tolerance)


def _assert_same(
    message: str, got: NDArray | float, expected: NDArray | float, tolerance: float = SAME
) -> None:
    difference = np.abs(np.asarray(got) - np.asarray(expected))
    worst = float(difference.max(initial=0.0))
    if not worst <= tolerance:
        where = [int(i) for i in np.unravel_index(int(difference.argmax()), difference.shape)]
        raise AssertionError(
            f"{message}: off by {worst:.3e} (allowed {tolerance:.1e}) at {where}, "
            f"{np.asarray(got)[tuple(where)]!r} against {np.asarray(expected)[tuple(where)]!r}"
        )
