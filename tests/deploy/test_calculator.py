"""MLPotCalculator as ASE users would use it."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from mlpot import MLPotCalculator
from mlpot.deploy.load import load
from mlpot.errors import InputError, UnsupportedSystemError
from tests.helpers import ethanol, methanol_with_water, save_random_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model") / "random.safetensors")


def test_forces_and_stress_against_finite_differences(weights: Path) -> None:
    atoms = methanol_with_water()
    atoms.calc = MLPotCalculator(weights, dtype="float64")
    numeric = calculate_numerical_forces(atoms, eps=1e-5)  # lengths in the fade of the floor
    np.testing.assert_allclose(atoms.get_forces(), numeric, atol=1e-6)
    atoms.set_cell([7.0, 8.0, 6.5])
    atoms.pbc = True
    stress = atoms.get_stress()
    assert np.abs(stress).max() > 1e-4
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms), atol=1e-7)


def test_no_stress_without_a_cell(weights: Path) -> None:
    atoms = ethanol()
    atoms.calc = MLPotCalculator(weights)
    with pytest.raises(NotImplementedError):
        atoms.get_stress()


def test_wrapping_and_supercells(weights: Path) -> None:
    atoms = methanol_with_water()
    atoms.set_cell([7.0, 8.0, 6.5])
    atoms.pbc = True
    atoms.calc = MLPotCalculator(weights, dtype="float64")
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.wrap()
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-9)
    double = atoms.repeat((2, 1, 1))
    double.calc = MLPotCalculator(weights, dtype="float64")
    assert double.get_potential_energy() == pytest.approx(2 * energy, abs=1e-8)
    np.testing.assert_allclose(double.get_forces()[: len(atoms)], forces, atol=1e-9)


def test_one_calculator_follows_a_change_of_atoms(weights: Path) -> None:
    calculator = MLPotCalculator(weights)
    first, second = ethanol(), methanol_with_water()
    want = [load(weights)(a.numbers, a.positions).energy for a in (first, second)]
    for _ in range(2):
        for atoms, energy in zip((first, second), want, strict=True):
            atoms.calc = calculator
            assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-4)


def test_energy_is_conserved_and_skin_is_harmless(tmp_path: Path) -> None:
    """NVE in float64: the neighbour list with its skin must leave no step in the energy."""
    weak = save_random_model(tmp_path / "weak.safetensors", scale=0.3)
    atoms = methanol_with_water()
    atoms.calc = MLPotCalculator(weak, dtype="float64")
    thermalize_momenta(atoms, temperature_K=100, rng=np.random.default_rng(0))
    total, potential = [], []
    md = VelocityVerlet(atoms, 0.25 * units.fs)
    md.attach(lambda: total.append(atoms.get_total_energy()))
    md.attach(lambda: potential.append(atoms.get_potential_energy()))
    md.run(200)
    moved = np.linalg.norm(atoms.positions - methanol_with_water().positions, axis=1).max()
    assert moved > 0.5  # beyond half the skin, so the list was made anew on the way
    assert np.ptp(potential) > 1e-2
    assert np.ptp(total) < 1e-2 * np.ptp(potential)


def test_langevin_runs(weights: Path) -> None:
    atoms = ethanol()
    atoms.calc = MLPotCalculator(weights)
    Langevin(
        atoms, 0.5 * units.fs, temperature_K=300, friction=0.01, rng=np.random.default_rng(0)
    ).run(20)
    assert np.isfinite(atoms.positions).all()


def test_what_the_model_does_not_cover_is_refused(weights: Path) -> None:
    atoms = ethanol()
    atoms.calc = MLPotCalculator(weights)
    atoms.get_potential_energy()  # ASE's cache must not answer for the charged system
    atoms.info["charge"] = 1
    with pytest.raises(UnsupportedSystemError, match="neutral"):
        atoms.get_potential_energy()
    atoms.info["charge"] = 0
    atoms.info["multiplicity"] = 3
    with pytest.raises(UnsupportedSystemError, match="closed-shell"):
        atoms.get_potential_energy()
    del atoms.info["multiplicity"]
    atoms.info["spin"] = 3
    with pytest.raises(UnsupportedSystemError, match="multiplicity is 3"):
        atoms.get_potential_energy()
    del atoms.info["spin"]
    atoms.set_initial_magnetic_moments([2.0] + [0.0] * 8)
    with pytest.raises(UnsupportedSystemError, match="multiplicity is 3"):
        atoms.get_potential_energy()
    atoms.set_initial_magnetic_moments(None)
    with pytest.raises(TypeError, match="dtpye"):
        MLPotCalculator(weights, dtpye="float64")  # type: ignore[call-arg]
    atoms.numbers[2] = 14
    with pytest.raises(UnsupportedSystemError, match=r"does not cover Si \(first at atom 2\)"):
        atoms.get_potential_energy()
    atoms.numbers[2] = 8
    atoms.calc = MLPotCalculator(weights)
    atoms.positions[1] = atoms.positions[0] + 0.01
    with pytest.raises(InputError, match="atoms 0 and 1 overlap"):
        atoms.get_potential_energy()
    atoms.positions[1] = np.nan
    with pytest.raises(InputError, match="atom 1 has a NaN"):
        atoms.get_potential_energy()
    fresh = ethanol()
    fresh.pbc = True
    fresh.calc = MLPotCalculator(weights)
    with pytest.raises(UnsupportedSystemError, match="no lattice vector"):
        fresh.get_potential_energy()


def test_a_pair_closer_than_any_in_training_is_told_once(tmp_path: Path) -> None:
    """Not below the last hundredths of the floor; and not by files that know no lengths."""
    atoms = molecule("CH3Cl")
    atoms.numbers[atoms.numbers == 17] = 8  # a C-O bond of 1.8 Å
    lengths = {"C-O": 1.85, "H-C": 1.0}
    path = save_random_model(tmp_path / "m.safetensors", floors=lengths)
    atoms.calc = MLPotCalculator(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.get_forces()
    lengths["C-O"] = 2.2
    path = save_random_model(tmp_path / "m.safetensors", floors=lengths)
    atoms.calc = MLPotCalculator(path)
    with pytest.warns(
        UserWarning, match=r"[CO] 0 and [CO] 1 are 1.78 Å apart.*below 2.20 Å.*fine-tune"
    ):
        atoms.get_forces()
    atoms.positions += 0.01 * np.arange(15).reshape(5, 3) ** 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.get_forces()
        atoms.calc = MLPotCalculator(save_random_model(tmp_path / "o.safetensors", floors={}))
        atoms.get_forces()
