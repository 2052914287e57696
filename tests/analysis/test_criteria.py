"""The rules, on trajectories whose ends are known."""

from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from numpy.typing import NDArray

from mlpot.analysis.criteria import (
    Verdict,
    bond_lengths,
    find_bonds,
    first_broken,
    first_explosion,
    first_lost_hydrogen,
    judge,
)

WATER = np.array([8, 1, 1])


def water(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """[F, 3, 3] Å: one O-H as long as given [F], the other of 0.96 Å."""
    frames = np.zeros((len(lengths), 3, 3))
    frames[:, 1, 0] = lengths
    frames[:, 2, 1] = 0.96
    return frames


def verdict(
    lengths: NDArray[np.float64],
    heat: NDArray[np.float64] | None = None,
    lost: bool = False,
    end: float | None = None,
    **more: Any,
) -> Verdict:
    """Of water, a frame every 0.1 ps."""
    times = np.arange(len(lengths)) * 0.1
    bonds = np.array([[0, 1], [0, 2]])
    heat = np.full(len(lengths), 300.0) if heat is None else heat
    end = times[-1] if end is None else end
    reference = np.array([0.96, 0.96])
    return judge(WATER, bonds, reference, water(lengths), heat, 300.0, times, end, lost, **more)


# --- bonds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bonds"),
    [("CH3CH2OH", 8), ("C6H6", 12), ("H2O", 2), ("CH3Cl", 4), ("C2H2", 3), ("P2", 1), ("SiH4", 4)],
)
def test_bonds_are_those_of_chemistry(name: str, bonds: int) -> None:
    atoms = molecule(name)
    assert len(find_bonds(atoms.numbers, atoms.positions)) == bonds


def test_neighbouring_molecules_are_not_bonded() -> None:
    pair = molecule("H2O") + molecule("H2O")
    pair.positions[3:] += [0.0, 0.0, 2.9]  # O...O of a hydrogen bond
    assert len(find_bonds(pair.numbers, pair.positions)) == 4


def test_a_bond_breaks_at_the_first_frame_beyond_half_an_angstrom() -> None:
    stretching = 0.96 + 0.05 * np.arange(20)  # 0.5 Å off at frame 10, more at 11
    found = verdict(stretching)
    assert found.broke and found.cause == "bond O0-H1"
    assert found.stable_ps == pytest.approx(1.1)
    assert found.bond_ps == pytest.approx(1.1)
    assert found.hydrogen_ps is None and found.explosion_ps is None
    assert found.worst_frame == 11 and found.worst_bond == "O0-H1"
    assert found.worst_departure == pytest.approx(0.55)


def test_a_bond_that_is_crushed_has_broken() -> None:
    lengths = np.full(10, 0.96)
    lengths[4] = 0.4
    assert verdict(lengths).stable_ps == pytest.approx(0.4)


def test_a_bond_is_compared_with_its_reference_and_not_with_its_first_frame() -> None:
    lengths = np.array([[1.5], [1.9], [2.05]])
    assert first_broken(lengths, np.array([1.5])) == 2
    assert first_broken(lengths, np.array([1.6])) is None


def test_a_whole_run_is_censored_at_its_end() -> None:
    found = verdict(np.full(31, 0.97))
    assert not found.broke and found.cause == ""
    assert found.stable_ps == pytest.approx(3.0)
    assert found.worst_departure == pytest.approx(0.01)


def test_nan_counts_as_broken() -> None:
    lengths = np.array([0.96, np.nan, 0.96])
    assert first_broken(bond_lengths(water(lengths), np.array([[0, 1]])), np.array([0.96])) == 1


# --- hydrogens -----------------------------------------------------------------------------------


def test_a_hydrogen_that_returns_is_not_lost_but_its_bond_has_broken() -> None:
    lengths = np.full(20, 0.96)
    lengths[5:12] = 3.0
    found = verdict(lengths)
    assert found.hydrogen_ps is None
    assert found.bond_ps == pytest.approx(0.5)


def test_a_hydrogen_that_leaves_for_good_is_lost_from_when_it_left() -> None:
    lengths = np.full(20, 0.96)
    lengths[3:6] = 3.0  # once, and back
    lengths[15:] = 3.0
    found = verdict(lengths)
    assert found.hydrogen_ps == pytest.approx(1.5)
    assert found.bond_ps == pytest.approx(0.3) and found.cause == "bond O0-H1"


def on_a_line(*x: list[float]) -> NDArray[np.float64]:
    """[F, N, 3] Å of atoms whose places [F] on a line are given."""
    frames = np.zeros((len(x[0]), len(x), 3))
    frames[:, :, 0] = np.transpose(x)
    return frames


def test_the_last_frame_alone_is_enough_and_other_atoms_are_no_hydrogens() -> None:
    bond, frames = np.array([[0, 1]]), on_a_line([0.0] * 3, [1.1, 1.1, 2.6])
    assert first_lost_hydrogen(np.array([6, 1]), bond, frames) == (2, 1)
    assert first_lost_hydrogen(np.array([6, 6]), bond, frames) is None
    assert first_lost_hydrogen(np.array([6, 1]), bond, frames[:2]) is None


def test_a_proton_that_another_atom_takes_is_not_lost() -> None:
    """3 Å from the oxygen that it came with. Mlipaudit asks for all heavy atoms."""
    enol, bond = np.array([8, 1, 8]), np.array([[0, 1]])
    donor, acceptor = [0.0] * 4, [4.0] * 4
    given = on_a_line(donor, [1.0, 3.0, 3.0, 3.0], acceptor)
    assert first_lost_hydrogen(enol, bond, given) is None
    passed_on = on_a_line(donor, [1.0, 3.0, 7.0, 7.0], acceptor)
    assert first_lost_hydrogen(enol, bond, passed_on) == (2, 1)
    # whose bond is not judged is lost all the same
    assert first_lost_hydrogen(enol, bond[:0], passed_on) == (2, 1)


def test_hydrogens_without_a_heavy_atom_cannot_be_lost() -> None:
    apart = on_a_line([0.0, 0.0], [5.0, 5.0], [5.7, 5.7])
    assert first_lost_hydrogen(np.array([8, 1, 1]), np.array([[1, 2]]), apart) is None
    assert first_lost_hydrogen(np.array([1, 1, 1]), np.array([[1, 2]]), apart) is None


# --- explosions ----------------------------------------------------------------------------------


def test_ten_thousand_kelvin_above_the_thermostat_is_an_explosion() -> None:
    heat = np.array([300.0, 5_000.0, 10_300.0, 10_301.0])
    assert first_explosion(heat, 300.0) == 3
    assert first_explosion(heat, 1000.0) is None


def test_the_thermostat_of_a_ramp_counts() -> None:
    heat = np.array([300.0, 10_700.0])
    assert first_explosion(heat, np.array([300.0, 1_000.0])) is None
    assert first_explosion(heat, np.array([300.0, 400.0])) == 1


def test_a_jump_by_a_hundred_is_an_explosion() -> None:
    assert first_explosion(np.array([30.0, 2_999.0]), 300.0) is None
    assert first_explosion(np.array([30.0, 3_001.0]), 300.0) == 1
    assert first_explosion(np.array([0.0, 99.0, 300.0]), 300.0) is None  # a start at rest


def test_an_explosion_before_a_bond_breaks_is_the_cause() -> None:
    heat = np.full(20, 300.0)
    heat[4:] = 50_000.0
    lengths = np.full(20, 0.96)
    lengths[6:] = 9.0
    found = verdict(lengths, heat)
    assert found.cause == "temperature"
    assert found.stable_ps == found.explosion_ps == pytest.approx(0.4)


def test_what_the_integrator_takes_out_has_broken_at_its_last_sound_step() -> None:
    found = verdict(np.full(5, 0.96), lost=True, end=0.437)
    assert found.broke and found.cause == "integrator"
    assert found.stable_ps == found.explosion_ps == pytest.approx(0.437)


@pytest.mark.parametrize(("ending", "explosion"), [("integrator", 0.4), ("pieces", None)])
def test_what_is_in_pieces_has_broken_but_not_exploded(
    ending: str, explosion: float | None
) -> None:
    """A molecule that comes apart slowly is none of mlipaudit's explosions."""
    found = verdict(np.full(5, 0.96), lost=True, ending=ending)
    assert (found.broke, found.cause) == (True, ending)
    assert found.explosion_ps == (explosion and pytest.approx(explosion))


def test_a_calculator_that_fails_breaks_nothing() -> None:
    sound = water(np.full(1, 0.96))[0]
    found = verdict(np.full(5, 0.96), lost=True, end=0.437, ending="calculator", last=sound)
    assert (found.broke, found.cause) == (False, "calculator")
    assert found.stable_ps == found.end_ps == pytest.approx(0.437)
    assert found.explosion_ps is None and found.bond_ps is None


def test_a_calculator_that_fails_after_a_bond_broke_is_no_excuse() -> None:
    lengths = np.full(5, 0.96)
    lengths[3:] = 1.6
    before = verdict(lengths, lost=True, end=0.45, ending="calculator")
    assert before.cause == "bond O0-H1" and before.stable_ps == pytest.approx(0.3)
    torn = water(np.full(1, 1.6))[0]  # after the last frame
    found = verdict(np.full(5, 0.96), lost=True, end=0.437, ending="calculator", last=torn)
    assert found.broke and found.cause == "bond O0-H1"
    assert found.stable_ps == found.bond_ps == pytest.approx(0.437)


def test_a_distorted_start_may_repair_its_bonds_but_not_explode() -> None:
    lengths = np.full(20, 0.96)
    lengths[:3] = 1.9  # until 0.2 ps
    times, bonds = np.arange(20) * 0.1, np.array([[0, 1], [0, 2]])
    cold, hot = np.full(20, 300.0), np.full(20, 300.0)
    hot[1:] = 50_000.0
    rest = (WATER, bonds, np.array([0.96, 0.96]), water(lengths))
    found = judge(*rest, cold, 300.0, times, times[-1], settled=0.25)
    assert not found.broke and found.worst_departure == pytest.approx(0.0)
    assert judge(*rest, cold, 300.0, times, times[-1], settled=0.15).stable_ps == pytest.approx(0.2)
    assert judge(*rest, hot, 300.0, times, times[-1], settled=0.25).stable_ps == pytest.approx(0.1)


def test_a_molecule_without_bonds_can_only_explode() -> None:
    none = np.empty((0, 2), dtype=np.int64)
    found = judge(
        np.array([2, 2]), none, np.empty(0), np.zeros((3, 2, 3)), np.full(3, 300.0), 300.0,
        np.arange(3.0), 2.0,
    )  # fmt: skip
    assert not found.broke and found.worst_bond == "" and found.stable_ps == 2.0
