"""Splits: complete, disjoint, whole groups, the same everywhere; files that do not fit refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpot.data.record import Record
from mlpot.data.splits import fingerprint, load_split, make_split, save_split, split_held_out
from mlpot.errors import DataError, InputError


def frames(*sizes: int) -> list[Record]:
    """One group of each size, interleaved as little as a file would."""
    return [
        Record(np.array([6, 1 + g % 8]), np.zeros((2, 3)), float(g) + i / 100, group=f"m{g}")
        for g, size in enumerate(sizes)
        for i in range(size)
    ]


@given(
    st.lists(st.integers(1, 6), min_size=3, max_size=30),
    st.floats(0.01, 0.4),
    st.floats(0.01, 0.4),
    st.integers(0, 2**31),
    st.sampled_from(["group", "frame"]),
)
def test_parts_are_disjoint_complete_and_about_as_large_as_asked(
    sizes: list[int], validation: float, test: float, seed: int, by: str
) -> None:
    records = frames(*sizes)
    split = make_split(records, validation, test, seed=seed, by=by)
    parts = [split.train, split.validation, split.test]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(records)))
    assert all(len(p) and (np.diff(p) > 0).all() for p in parts)
    slack = max(sizes) if by == "group" else 0.5 + 1e-9
    for part, fraction in ((split.validation, validation), (split.test, test)):
        assert len(part) <= max(fraction * len(records) + slack, 1 if by == "frame" else slack)
    if by == "group":
        groups = [{records[i].group for i in p} for p in parts]
        assert sum(map(len, groups)) == len(sizes)  # none in two parts


def test_counts_are_exact_by_frame() -> None:
    split = make_split(frames(*[5] * 20), train=50, validation=7, test=13, by="frame")
    assert [len(p) for p in (split.train, split.validation, split.test)] == [50, 7, 13]
    assert len(set(split.train) | set(split.validation) | set(split.test)) == 70


def test_a_part_ends_where_it_is_closest_to_its_size() -> None:
    split = make_split(frames(*[10] * 10), validation=14, test=16)
    assert (len(split.validation), len(split.test)) == (10, 20)


def test_a_greedy_part_leaves_groups_for_the_others() -> None:
    for seed in range(20):
        split = make_split(frames(1, 1, 10), validation=11, test=1, seed=seed)
        assert all(len(p) for p in (split.train, split.validation, split.test))


def test_one_group_is_split_by_frame_and_says_so() -> None:
    split = make_split(frames(100), validation=0.1, test=0)
    assert (split.by, len(split.train), len(split.validation), len(split.test)) == (
        "frame",
        90,
        10,
        0,
    )


def test_the_split_is_the_same_on_every_platform() -> None:
    # Written down once. Raw PCG64 output never changes, so neither may these.
    split = make_split(frames(*[1] * 12), validation=3, test=2, seed=7)
    assert split.validation.tolist() == [3, 6, 11]
    assert split.test.tolist() == [4, 10]
    assert split.sha256 == ("88f519f390c535f641913396c493d80e1f8761c4f0abe94f2e7f9744dcc59bb0")


def test_the_seed_matters_and_repeats() -> None:
    records = frames(*[2] * 40)
    first, again, other = (make_split(records, seed=s) for s in (1, 1, 2))
    assert first.validation.tolist() == again.validation.tolist()
    assert first.validation.tolist() != other.validation.tolist()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"validation": 1.5}, InputError, "validation must be a fraction below 1"),
        ({"test": -1}, InputError, "test must not be negative"),
        ({"test": True}, InputError, "test must be a fraction"),
        ({"by": "molecule"}, InputError, "'group' or 'frame'"),
        ({"validation": 5, "test": 5, "train": 5}, DataError, "15 frames are asked for"),
        ({"validation": 0.6, "test": 0.6}, DataError, "12 frames are asked for"),
    ],
)
def test_impossible_requests(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make_split(frames(2, 2, 2, 2, 2), **options)


def test_too_few_groups_name_the_way_out() -> None:
    with pytest.raises(DataError, match="2 groups cannot be split .* by='frame'"):
        make_split(frames(50, 50))
    assert make_split(frames(50, 50), by="frame").by == "frame"
    with pytest.raises(DataError, match="2 frames cannot be split"):
        make_split(frames(2))
    with pytest.raises(DataError, match="no frames to split"):
        make_split([])


def test_a_file_of_molecules_decides(tmp_path: Path) -> None:
    listed = {"validation": ["m1"], "test": ["m0", "m9"], "left_out": ["m3"]}
    (tmp_path / "held_out.json").write_text(json.dumps(listed))
    split = split_held_out(frames(2, 1, 2, 3), tmp_path / "held_out.json")
    assert split.test.tolist() == [0, 1] and split.validation.tolist() == [2]
    assert split.train.tolist() == [3, 4]  # m3 is in no part


def test_round_trip(tmp_path: Path) -> None:
    records = frames(3, 4, 5, 6)
    split = make_split(records, seed=3)
    save_split(split, tmp_path / "split.json")
    loaded = load_split(tmp_path / "split.json", records)
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(loaded, part), getattr(split, part))
    assert (loaded.seed, loaded.by, loaded.sha256) == (3, "group", fingerprint(records))
    assert [p.name for p in tmp_path.iterdir()] == ["split.json"]


@pytest.mark.parametrize(
    "other",
    [
        frames(3, 4, 5),  # fewer frames
        frames(3, 4, 6, 5),  # same number, other energies
        list(reversed(frames(3, 4, 5, 6))),  # other order
        [*frames(3, 4, 5, 6)[:-1], Record(np.array([6, 5]), np.zeros((2, 3)), 3.05)],  # one element
    ],
)
def test_another_data_set_is_refused(tmp_path: Path, other: list[Record]) -> None:
    save_split(make_split(frames(3, 4, 5, 6)), tmp_path / "split.json")
    with pytest.raises(DataError, match="split.json: made from another data set"):
        load_split(tmp_path / "split.json", other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["train"].append(99) or s["counts"].update(train=99), "The file was altered"),
        (lambda s: s["train"].__setitem__(0, 18), r"outside 0\.\.17"),
        (lambda s: s["train"].__setitem__(0, -1), r"outside 0\.\.17"),
        (lambda s: s["train"].__setitem__(0, s["train"][1]), "some twice"),
        (lambda s: s["train"].__setitem__(0, s["test"][0]), "train and test share frames"),
        (lambda s: s["train"].__setitem__(0, 1.5), "not a whole number"),
        (lambda s: s.pop("dataset"), "not a split file"),
        (lambda s: s.update(format=2), "split format 2"),
    ],
)
def test_altered_files_are_refused(tmp_path: Path, change, message: str) -> None:
    records, path = frames(3, 4, 5, 6), tmp_path / "split.json"
    save_split(make_split(records), path)
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))
    with pytest.raises(DataError, match=message):
        load_split(path, records)


def test_absent_and_truncated_files(tmp_path: Path) -> None:
    records, path = frames(3, 4, 5, 6), tmp_path / "split.json"
    with pytest.raises(DataError, match="split.json"):
        load_split(path, records)
    save_split(make_split(records), path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match="not a split file, or a damaged one"):
        load_split(path, records)
