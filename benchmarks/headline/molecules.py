"""The molecules: frames to learn from at 300 K, and labelled frames at several temperatures.

Acetylacetone comes with published labels that are not part of a clone; frames of the others are
made by `make.py` and committed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlpot.analysis.criteria import BOND_DEPARTURE, bond_lengths, bond_name, find_bonds
from mlpot.analysis.molecules import Molecule
from mlpot.data.formats import read
from mlpot.data.record import Record
from mlpot.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
MADE = Path(__file__).parent / "data"

#: K, of the frames to learn from
ROOM = 300.0

ACAC = "acetylacetone"
ACAC_LEVEL = "PBE-D3/def2-SVP"
ACAC_LEARN = "acac/train_300K.xyz.gz"
ACAC_TESTS = {300.0: "acac/test_MD_300K.xyz.gz", 600.0: "acac/test_MD_600K.xyz.gz"}

#: the same molecule elsewhere: what -> frames
ACAC_BESIDE = {
    "H transfer": "acac/test_H_transfer.xyz.gz",
    "dihedral scan": "acac/test_dihedral.xyz.gz",
}

#: what the molecule is -> the column of tables; none of them was seen in training of the zoo's
#: models: two are held out (`mlpot/zoo/recipes/held_out.json`), two are not in its data at all
MOLECULES = {
    ACAC: "enol of a diketone, whose proton moves",
    "bicyclopentylamine": "strained cage, of a kind no training molecule has",
    "rufinamide": "drug: triazole, amide, fluorinated ring",
    "ac-met-nme": "capped methionine",
}


@dataclass(frozen=True, eq=False)
class Problem:
    """One molecule, what is known of it, and what a simulation of it is judged by.

    Attributes:
        molecule: at the geometry that simulations start from (before they relax it).
        level: level of theory of all labels.
        learn: frames at 300 K to choose the few from.
        tests: K -> labelled frames.
        beside: what -> labelled frames of no temperature.
        bonds: [B, 2] atoms (i < j), of the bonds that are judged.
        lengths: [B] Å, their means over ``learn``: the same for every model.
        mobile: names of bonds that are not judged, because they open in the labelled frames
            themselves.
    """

    molecule: Molecule
    level: str
    learn: list[Record]
    tests: dict[float, list[Record]]
    bonds: NDArray[np.int64]
    lengths: NDArray[np.float64]
    mobile: list[str]
    beside: Mapping[str, list[Record]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.molecule.name


def problem(
    name: str, learn: list[Record], tests: dict[float, list[Record]], smiles: str = ""
) -> Problem:
    """What the frames say: start geometry, bonds, which of them are judged.

    A proton that is handed over in the reference's own simulations has to move in a good model's
    too. The 0.5 Å of MDsim would call that broken; so a bond that departs further than that in
    any labelled frame is left out.
    """
    numbers, start = learn[0].numbers, np.asarray(learn[0].positions, dtype=np.float64)
    bonds = find_bonds(numbers, start)
    lengths = bond_lengths(_positions(learn), bonds).mean(axis=0)
    every = [*learn, *(record for frames in tests.values() for record in frames)]
    departure = np.abs(bond_lengths(_positions(every), bonds) - lengths).max(axis=0)
    still = departure <= BOND_DEPARTURE
    return Problem(
        Molecule(name, "own", numbers, start, smiles),
        learn[0].level,
        learn,
        tests,
        bonds[still],
        lengths[still],
        [bond_name(numbers, bond) for bond in bonds[~still]],
    )


def available(
    names: Sequence[str] = tuple(MOLECULES), shared: Path = SHARED, made: Path = MADE
) -> tuple[list[Problem], dict[str, str]]:
    """Molecules whose frames are here, and for the others, what is missing."""
    found, absent = [], {}
    for name in names:
        files = (
            [shared / f for f in (ACAC_LEARN, *ACAC_TESTS.values(), *ACAC_BESIDE.values())]
            if name == ACAC
            else [made_file(name, made)]
        )
        if missing := [file for file in files if not file.is_file()]:
            advice = "it is not part of a clone" if name == ACAC else "run `make`"
            absent[name] = f"{missing[0].name} is absent: {advice}"
        else:
            found.append(_acetylacetone(shared) if name == ACAC else _own(name, made))
    return found, absent


def made_file(name: str, made: Path = MADE) -> Path:
    return made / f"{name}.extxyz.gz"


def part(kind: str, temperature: float) -> str:
    """The `subset` of frames in a file of ours: 'learn 300 K'."""
    return f"{kind} {temperature:g} K"


def _acetylacetone(shared: Path) -> Problem:
    learn = read(shared / ACAC_LEARN, level=ACAC_LEVEL)
    tests = {t: read(shared / file, level=ACAC_LEVEL) for t, file in ACAC_TESTS.items()}
    beside = {what: read(shared / f, level=ACAC_LEVEL) for what, f in ACAC_BESIDE.items()}
    return replace(problem(ACAC, learn, tests, "CC(=O)C=C(C)O"), beside=beside)


def _own(name: str, made: Path) -> Problem:
    by_part: dict[str, list[Record]] = {}
    for record in read(made_file(name, made)):
        by_part.setdefault(record.subset, []).append(record)
    learn = by_part.pop(part("learn", ROOM))
    tests = {float(key.split()[1]): frames for key, frames in by_part.items()}
    return problem(name, learn, dict(sorted(tests.items())), learn[0].group)


def _positions(records: Sequence[Record]) -> NDArray[np.float64]:
    return np.array([r.positions for r in records], dtype=np.float64)


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """So many of them at most, evenly over all."""
    at = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[i] for i in at]


def chosen(learn: Sequence[Record], frames: int, seed: int) -> list[Record]:
    """The few frames; those of a smaller number are among those of a larger one.

    Raises:
        DataError: there are not so many.
    """
    if frames > len(learn):
        raise DataError(
            f"{frames} frames are asked for and there are {len(learn)}; ask for fewer, or make more"
        )
    order = np.random.default_rng(seed).permutation(len(learn))
    return [learn[i] for i in order[:frames]]


def tested(tests: Mapping[float, Sequence[Record]], count: int) -> dict[float, list[Record]]:
    return {t: spread(frames, count) for t, frames in tests.items()}
