"""Units against published numbers and against two hosts' own tables.

CODATA 2018, https://physics.nist.gov/cuu/Constants (values typed here on purpose: a second
source). 2022 values differ from them by less than the tolerance.
"""

import ase.units
import numpy as np
import pytest
from openmm import unit

from mlpot import units

PUBLISHED = {
    "HARTREE_TO_EV": 27.211386245988,
    "BOHR_TO_ANGSTROM": 0.529177210903,
    # 4184 J / (6.02214076e23 * 1.602176634e-19 J)
    "KCAL_PER_MOL_TO_EV": 0.043364104241800934,
    "KJ_PER_MOL_TO_EV": 0.010364269656262175,
    "EV_TO_KJ_PER_MOL": 96.48533212331002,  # the Faraday constant in kC/mol
    "BOLTZMANN": 8.617333262e-5,
    # 1 eV = 1.602176634e-19 J, 1 amu = 1.66053906660e-27 kg, 1 Å/fs = 1e5 m/s
    "ACCELERATION": 1.602176634e-19 / 1.66053906660e-27 / 1e10,
    # 8.9875517923e9 N m²/C² times the elementary charge
    "COULOMB": 8.9875517923e9 * 1.602176634e-19 * 1e10,
    "NM_TO_ANGSTROM": 10.0,
    "ANGSTROM_TO_NM": 0.1,
}


@pytest.mark.parametrize(("name", "value"), PUBLISHED.items())
def test_published_numbers(name: str, value: float) -> None:
    assert getattr(units, name) == pytest.approx(value, rel=2e-9)


def test_every_constant_is_tested() -> None:
    assert {name for name in vars(units) if name.isupper() and name[0] != "_"} == set(PUBLISHED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HARTREE_TO_EV", ase.units.Hartree / ase.units.eV),
        ("BOHR_TO_ANGSTROM", ase.units.Bohr / ase.units.Angstrom),
        ("KCAL_PER_MOL_TO_EV", ase.units.kcal / ase.units.mol / ase.units.eV),
        ("KJ_PER_MOL_TO_EV", ase.units.kJ / ase.units.mol / ase.units.eV),
        ("BOLTZMANN", ase.units.kB),
        ("NM_TO_ANGSTROM", ase.units.nm),
        ("COULOMB", ase.units.Hartree * ase.units.Bohr),
        ("ACCELERATION", ase.units.fs**2),  # ASE's time is the one with acceleration = force/mass
    ],
)
def test_consistent_with_ase(name: str, value: float) -> None:
    assert getattr(units, name) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "quantity", "target"),
    [
        ("NM_TO_ANGSTROM", unit.nanometer, unit.angstrom),
        ("ANGSTROM_TO_NM", unit.angstrom, unit.nanometer),
        ("BOHR_TO_ANGSTROM", unit.bohr, unit.angstrom),
    ],
)
def test_consistent_with_openmm_lengths(name: str, quantity, target) -> None:
    assert getattr(units, name) == pytest.approx((1.0 * quantity).value_in_unit(target), rel=1e-6)


def test_consistent_with_openmm_energies() -> None:
    kj = unit.kilojoule_per_mole
    volt = (1.0 * unit.elementary_charge * unit.volt * unit.AVOGADRO_CONSTANT_NA).value_in_unit(kj)
    assert pytest.approx(volt, rel=1e-6) == units.EV_TO_KJ_PER_MOL
    hartree = (1.0 * unit.hartree * unit.AVOGADRO_CONSTANT_NA).value_in_unit(kj)
    assert pytest.approx(hartree, rel=1e-6) == units.HARTREE_TO_EV * units.EV_TO_KJ_PER_MOL
    kcal = (1.0 * unit.kilocalorie_per_mole).value_in_unit(kj)
    ratio = units.KCAL_PER_MOL_TO_EV / units.KJ_PER_MOL_TO_EV
    assert ratio == pytest.approx(kcal, rel=1e-6)
    gas = (unit.MOLAR_GAS_CONSTANT_R).value_in_unit(kj / unit.kelvin)
    assert pytest.approx(gas, rel=1e-6) == units.BOLTZMANN * units.EV_TO_KJ_PER_MOL


def test_openmm_force_and_time_agree_with_ours() -> None:
    """1 kJ/mol/nm on 1 amu gives 1 nm/ps² in OpenMM; the same acceleration in our units."""
    force = units.KJ_PER_MOL_TO_EV / units.NM_TO_ANGSTROM  # eV/Å
    ours = units.ACCELERATION * force  # Å/fs²
    assert ours == pytest.approx(10.0 / 1000.0**2, rel=1e-6)


def test_factors_and_their_inverses() -> None:
    assert pytest.approx(1.0, rel=1e-15) == units.KJ_PER_MOL_TO_EV * units.EV_TO_KJ_PER_MOL
    assert pytest.approx(1.0, rel=1e-15) == units.NM_TO_ANGSTROM * units.ANGSTROM_TO_NM


def test_thermal_velocity_of_argon() -> None:
    """sqrt(kT/m) at 300 K in SI: sqrt(1.380649e-23 * 300 / (39.948 * 1.66053906660e-27))."""
    metres_per_second = 249.87925
    velocity = np.sqrt(units.BOLTZMANN * 300 / 39.948 * units.ACCELERATION)  # Å/fs
    assert velocity == pytest.approx(metres_per_second * 1e-5, rel=1e-5)
