"""Extrapolation grades through ASE's calculator: only when asked, and never stale."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.io.trajectory import Trajectory
from ase.md.verlet import VelocityVerlet

from mlpot import MLPotCalculator
from mlpot.data.record import Record
from mlpot.deploy.export import export
from mlpot.deploy.grader import FeatureGrader
from mlpot.deploy.load import load
from mlpot.errors import ModelFileError
from mlpot.md.guard import Guard
from mlpot.train.guard import add_guard
from tests.helpers import ethanol, save_random_model

GRADE = "extrapolation_grade"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_random_model(
        tmp_path_factory.mktemp("m") / "m.safetensors", layers=1, scale=0.05, floors={}
    )
    rng, atoms, records = np.random.default_rng(0), ethanol(), []
    for _ in range(60):
        moved = atoms.positions + 0.05 * rng.standard_normal((9, 3))
        forces = 0.1 * rng.standard_normal((9, 3))
        records.append(
            Record(numbers=atoms.numbers.astype(np.int64), positions=moved, forces=forces)
        )
    add_guard(path, records)
    return path


def test_grades_are_there_when_asked_and_not_otherwise(guarded: Path) -> None:
    atoms = ethanol()
    atoms.calc = MLPotCalculator(guarded)
    atoms.get_forces()
    assert GRADE not in atoms.calc.results
    found = atoms.calc.get_property(GRADE, atoms)
    expected = FeatureGrader(guarded).bind(atoms.numbers)(atoms.positions)
    assert found == pytest.approx(expected, rel=1e-5)
    assert "forces" in atoms.calc.results  # asking has not thrown them away
    atoms.positions[0, 0] += 0.1
    atoms.get_forces()
    assert GRADE not in atoms.calc.results  # those were of another geometry
    assert not np.allclose(atoms.calc.get_property(GRADE, atoms), expected)


def test_asking_for_grades_alone_evaluates_no_forces(guarded: Path) -> None:
    atoms = ethanol()
    atoms.calc = MLPotCalculator(guarded)
    assert atoms.calc.get_property(GRADE, atoms).shape == (9,)
    assert "energy" not in atoms.calc.results
    assert np.isfinite(atoms.get_potential_energy())
    assert GRADE in atoms.calc.results


def test_other_atoms_get_grades_of_their_own(guarded: Path) -> None:
    calculator = MLPotCalculator(guarded)
    atoms = ethanol()
    calculator.get_property(GRADE, atoms)
    fewer = atoms[:6]
    assert calculator.get_property(GRADE, fewer).shape == (6,)


def test_a_periodic_system(guarded: Path) -> None:
    atoms = ethanol()
    atoms.set_cell([30, 30, 30])
    atoms.pbc = True
    apart = ethanol()
    atoms.calc, apart.calc = MLPotCalculator(guarded), MLPotCalculator(guarded)
    found = atoms.calc.get_property(GRADE, atoms)
    assert found == pytest.approx(apart.calc.get_property(GRADE, apart), rel=1e-3)


def test_the_guard_leaves_grades_in_the_results(guarded: Path, tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = MLPotCalculator(guarded)
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    Guard(guarded, interval=5, report=lambda line: None).attach(dynamics)
    dynamics.run(5)
    assert atoms.calc.results[GRADE] == pytest.approx(
        MLPotCalculator(guarded).get_property(GRADE, atoms), rel=1e-4
    )
    ase.io.write(tmp_path / "a.xyz", atoms)  # a property that ASE does not know is in no one's way
    with Trajectory(tmp_path / "a.traj", "w", atoms) as trajectory:
        trajectory.write()
    assert ase.io.read(tmp_path / "a.traj").get_forces().shape == (9, 3)
    dynamics.run(1)
    assert GRADE not in atoms.calc.results


def test_models_without_statistics_and_exported_ones(guarded: Path, tmp_path: Path) -> None:
    atoms = ethanol()
    plain = MLPotCalculator(save_random_model(tmp_path / "plain.safetensors"))
    plain.get_potential_energy(atoms)  # energies are not concerned
    with pytest.raises(ModelFileError, match="mlpot guard"):
        plain.get_property(GRADE, atoms)
    export(guarded, tmp_path / "m.pt")
    with pytest.raises(ModelFileError, match="guard_model="):
        MLPotCalculator(tmp_path / "m.pt").get_property(GRADE, atoms)
    told = MLPotCalculator(tmp_path / "m.pt", guard_model=guarded)
    loaded = MLPotCalculator(load(guarded))
    assert told.get_property(GRADE, atoms) == pytest.approx(loaded.get_property(GRADE, atoms))
