"""What bonds are compared with: means, and bonds that a reference itself opens."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.stability.content import REFERENCES
from mlpot.analysis.criteria import bond_lengths, find_bonds, first_broken
from mlpot.analysis.lengths import ENOUGH, of_own, of_reference
from mlpot.data.formats import read

ENOL, BONDS = np.array([8, 1, 8]), np.array([[0, 1]])


def enol(lengths: list[float]) -> NDArray[np.float64]:
    """[F, 3, 3] Å: a proton so far from one oxygen, on its way to another at 2.6 Å."""
    frames = np.zeros((len(lengths), 3, 3))
    frames[:, 1, 0], frames[:, 2, 0] = lengths, 2.6
    return frames


def test_a_reference_brings_its_own_means() -> None:
    found = of_reference(ENOL, BONDS, enol([1.4, 1.0, 1.0, 1.0]))  # the first is hot
    assert found.mean == pytest.approx([1.1]) and found.final
    assert found.bonds.tolist() == [[0, 1]] and found.mobile == []


def test_a_bond_that_opens_in_the_reference_is_not_judged() -> None:
    both = np.array([[0, 1], [0, 2]])
    found = of_reference(ENOL, both, enol([1.0, 1.0, 1.6, 1.7]))
    assert found.mobile == [] and len(found.bonds) == 2  # 0.38 Å off its mean at most
    found = of_reference(ENOL, both, enol([1.0, 1.0, 1.0, 1.7]))  # 0.525 Å
    assert found.mobile == ["O0-H1"]
    assert found.bonds.tolist() == [[0, 2]] and found.mean == pytest.approx([2.6])


def test_bonds_of_a_reference_all_hold_in_it() -> None:
    """Whatever is left, no frame of the reference would be called broken."""
    frames = enol([1.0, 1.0, 1.0, 1.7])
    found = of_reference(ENOL, np.array([[0, 1], [0, 2]]), frames)
    assert first_broken(bond_lengths(frames, found.bonds), found.mean) is None


def test_means_of_own_runs_need_frames() -> None:
    given = np.array([1.0])
    few, many = (enol([1.1] * n) for n in (ENOUGH - 1, ENOUGH))
    found = of_own(BONDS, [few], given)
    assert not found.final and found.mean == pytest.approx(given)
    assert not of_own(BONDS, [], given).final
    found = of_own(BONDS, [many], given)
    assert found.final and found.mean == pytest.approx([1.1])


def test_frames_after_a_break_do_not_count() -> None:
    broken = enol([1.1] * ENOUGH + [1.8] * 50)
    found = of_own(BONDS, [broken, broken[ENOUGH:]], np.array([1.0]))
    assert found.final and found.mean == pytest.approx([1.1])


@pytest.mark.parametrize("name", REFERENCES)
def test_frames_by_pbe_are_not_called_broken(shared: Path, name: str) -> None:
    """Against the first frame, whose proton had not moved yet, every other one at 600 K was."""
    file = shared / "data" / REFERENCES[name][0]
    if not file.is_file():
        pytest.skip(f"needs ../shared/data/{REFERENCES[name][0]}")
    records = read(file)
    frames, numbers = np.array([r.positions for r in records]), records[0].numbers
    bonds = find_bonds(numbers, frames[0])
    found = of_reference(numbers, bonds, frames)
    mobile = {"acac-300K": ["O3-H11"], "acac-600K": ["O5-H11"], "aspirin-500K": []}
    assert found.mobile == mobile[name]
    assert len(found.bonds) == len(bonds) - len(found.mobile)
    assert first_broken(bond_lengths(frames, found.bonds), found.mean) is None
    lengths = bond_lengths(frames, bonds)
    broken = np.mean(
        [first_broken(lengths[[i]], lengths[0]) is not None for i in range(len(frames))]
    )
    assert (broken > 0.2) == bool(found.mobile)
