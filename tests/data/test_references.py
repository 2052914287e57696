"""Reference energies: recovered exactly where determined, harmless where not; wrong units found."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpot import units
from mlpot.data.formats import read
from mlpot.data.record import Record
from mlpot.data.references import (
    check_units,
    reference_energies,
    reference_sum,
    split_isolated,
)
from mlpot.errors import DataError

FILES = Path(__file__).parent / "files"
TRUE = {1: -13.6, 6: -1027.0, 7: -1484.0, 8: -2037.0}


def frame(numbers: list[int], energy: float | None = None, **fields) -> Record:
    positions = 1.5 * np.arange(len(numbers))[:, None] * np.ones(3)
    return Record(np.array(numbers, dtype=np.int64), positions, energy, **fields)


def total(numbers: list[int]) -> float:
    return sum(TRUE[z] for z in numbers)


@given(st.integers(0, 2**32 - 1), st.integers(20, 60))
def test_references_are_recovered_from_diverse_molecules(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    molecules = [rng.choice(list(TRUE), size=rng.integers(2, 12)).tolist() for _ in range(n)]
    molecules += [[1, 1], [6, 6], [7, 7], [8, 8]]  # determined, whatever was drawn
    found = reference_energies([frame(m, total(m)) for m in molecules])
    assert found == pytest.approx(TRUE, abs=1e-6)


@given(st.lists(st.floats(-30.0, 30.0), min_size=1, max_size=9))
def test_one_molecule_gives_finite_references_that_keep_its_mean(spread: list[float]) -> None:
    water = [8, 1, 1]
    records = [frame(water, total(water) + e) for e in spread]
    found = reference_energies(records)
    mean = np.mean([r.energy for r in records])
    assert reference_sum(records[:1], found)[0] == pytest.approx(mean, abs=1e-6)
    # Minimum norm: the solution along the composition vector (2, 1), no part across it.
    assert found[1] == pytest.approx(2 * found[8], rel=1e-9)


def test_isolated_atoms_give_a_chemical_atomisation_energy() -> None:
    records = read(FILES / "acac_3.xyz.gz")
    isolated = read(FILES / "acac_isolated_atoms.xyz")
    for found in (reference_energies(records, isolated), reference_energies(records + isolated)):
        want = {1: -13.568422178, 6: -1026.853899612, 8: -2037.796869413}
        assert found == pytest.approx(want)
        bound = reference_sum(records, found) - [r.energy for r in records]
        # Experiment, from heats of formation: 64 eV. PBE overbinds by about 10 %.
        assert ((bound > 60) & (bound < 80)).all()


def test_elements_without_an_isolated_atom_are_fitted_around_the_known() -> None:
    molecules = [[6, 1, 1, 1, 1], [6, 6, 1, 1], [8, 1, 1], [6, 8]]
    records = [frame(m, total(m)) for m in molecules] + [frame([1], TRUE[1] + 0.5)]
    found = reference_energies(records)
    assert found[1] == TRUE[1] + 0.5  # the atom, not the fit
    assert list(found) == [1, 6, 8]
    rest = [total(m) - m.count(1) * found[1] for m in molecules]
    heavy = [[m.count(6), m.count(8)] for m in molecules]
    want = np.linalg.pinv(np.array(heavy)) @ rest
    assert [found[6], found[8]] == pytest.approx(want.tolist())


def test_frames_without_energy_and_ions_are_left_out() -> None:
    records = [frame([8, 1, 1], total([8, 1, 1])), frame([7, 7]), frame([1], 0.0, charge=1)]
    found = reference_energies(records)
    assert set(found) == {1, 8} and found[1] < -100


def test_split_isolated_keeps_order() -> None:
    records = [frame([8, 1, 1]), frame([1]), frame([6, 8]), frame([6])]
    isolated, rest = split_isolated(records)
    assert isolated == [records[1], records[3]] and rest == [records[0], records[2]]


@pytest.mark.parametrize(
    ("records", "isolated", "message"),
    [
        ([], [], "no frame has an energy"),
        ([frame([8, 1, 1])], [], "no frame has an energy"),
        ([frame([1], -13.0), frame([1], -13.6)], [], "two energies for an isolated H atom"),
        ([frame([8, 1], -1.0)], [frame([8, 1], -1.0)], "has 2 atoms"),
        (
            [frame([8, 1], -1.0, level="PBE"), frame([8, 1], -1.0, level="B3LYP")],
            [],
            r"several levels of theory: \['B3LYP', 'PBE'\]",
        ),
    ],
)
def test_what_gives_no_references(records: list, isolated: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        reference_energies(records, isolated)


def test_reference_sum_names_the_missing_element() -> None:
    with pytest.raises(DataError, match="no reference energy for N, Br"):
        reference_sum([frame([8, 1]), frame([7, 35])], {1: -13.6, 8: -2037.0})


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (1 / units.HARTREE_TO_EV, r"in hartree: multiply by 27\.2113862"),
        (1 / units.KCAL_PER_MOL_TO_EV, r"in kcal/mol: multiply by 0\.0433641"),
        (1 / units.KJ_PER_MOL_TO_EV, r"in kJ/mol: multiply by 0\.0103642"),
        (units.KCAL_PER_MOL_TO_EV, "eV already, but were converted from kcal/mol"),
    ],
)
def test_wrong_units_are_suspected_and_named(factor: float, message: str) -> None:
    records = read(FILES / "rmd17_aspirin_3.xyz")
    references = reference_energies([], read(FILES / "acac_isolated_atoms.xyz"))
    check_units(records, references)
    wrong = [replace(r, energy=(r.energy or 0.0) * factor) for r in records]
    with pytest.raises(DataError, match=f"wrong units suspected.*{message}"):
        check_units(wrong, references)


def test_energies_of_another_kind_are_no_suspicion() -> None:
    """Valence-only energies (GFN2-xTB, pseudopotentials) are an order of magnitude smaller."""
    records = read(FILES / "rmd17_aspirin_3.xyz")
    references = reference_energies([], read(FILES / "acac_isolated_atoms.xyz"))
    check_units([replace(r, energy=(r.energy or 0.0) * 0.095) for r in records], references)


def drifting(factor: float, shift: float) -> tuple[list[Record], dict[int, float], list[float]]:
    """Frames of one molecule, {atomic number: eV}, and what a model says of them; labels are that,
    ``shift`` eV off and then ``factor`` times as large."""
    rng = np.random.default_rng(0)
    references = {1: -16.0, 6: -1036.0, 16: -10832.0}
    numbers = [16, 6, 1, 1, 1, 1]
    predicted = sum(references[z] for z in numbers) + rng.normal(0.0, 0.2, 30)
    told = (predicted + rng.normal(0.0, 0.05, 30) + shift) * factor
    return [replace(frame(numbers), energy=float(e)) for e in told], references, list(predicted)


def test_energies_that_only_look_like_a_unit_are_told_by_their_differences() -> None:
    """GFN2-xTB's energy of a thiol is by chance its all-electron energy over 23.06."""
    whole = 10832.0 + 1036.0 + 4 * 16.0
    records, references, predicted = drifting(1.0, whole - whole / 23.1)
    check_units(records, references, predicted)
    with pytest.raises(DataError, match="converted from kcal/mol"):  # nothing else to go by
        check_units(records, references)
    with pytest.raises(DataError, match="converted from kcal/mol"):  # nor has one frame
        check_units(records[:1], references, predicted[:1])
    some = [replace(records[0], energy=None), *records[1:]]
    check_units(some, references, predicted)


def test_units_that_are_wrong_stay_so_whatever_a_model_predicts() -> None:
    records, references, predicted = drifting(1 / 23.0605, 0.0)
    with pytest.raises(DataError, match="converted from kcal/mol"):
        check_units(records, references, predicted)
    noise = np.random.default_rng(1).normal(0.0, 0.2, 30).tolist()  # which tells nothing
    with pytest.raises(DataError, match="converted from kcal/mol"):
        check_units(records, references, noise)


def test_one_odd_frame_is_no_suspicion() -> None:
    records = read(FILES / "rmd17_aspirin_3.xyz")
    references = reference_energies([], read(FILES / "acac_isolated_atoms.xyz"))
    check_units([replace(records[0], energy=0.0), *records[1:]], references)
    check_units([replace(records[0], energy=None)], references)


def test_published_levels_agree_on_the_unit() -> None:
    # PBE atoms against CCSD(T), B3LYP and PBE molecules: levels differ far less than units do.
    references = reference_energies([], read(FILES / "acac_isolated_atoms.xyz"))
    for name in ("sgdml_ethanol_ccsd_t_3.npz", "md17_ethanol_3.npz"):
        check_units(read(FILES / name), references)
        with pytest.raises(DataError, match="in kcal/mol"):
            check_units(read(FILES / name, units="eV"), references)
