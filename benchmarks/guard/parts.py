"""What `runs.py` simulates: parts, how much of each in a mode, and the molecules."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.headline.molecules import MOLECULES as LABELLED
from benchmarks.headline.molecules import ROOT, available
from mlpot.analysis.molecules import Molecule, read_molecules
from mlpot.errors import InputError
from mlpot.md.structure import read_structure

GEOMETRIES = ROOT / "benchmarks" / "stability" / "molecules"

#: name -> SMILES. The constants of guard and coverage were chosen on the first three and
#: acetylacetone; the last two were put aside
EARLIER = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "ethanol": "CCO",
    "acetophenone-oxime": r"C/C(=N\O)c1ccccc1",
    "piperidine-sulfonamide": "NS(=O)(=O)N1CCCCC1",
    "aryl-aminopyrazole": "Cc1c(N)c(-c2cc(Br)ccc2F)nn1C",
    "alanine-dipeptide": "CC(=O)N[C@@H](C)C(=O)NC",
}


@dataclass(frozen=True)
class Part:
    """Runs of one kind.

    Attributes:
        molecules: names, as `expanded` and `find` take them.
        temperatures: K.
        ps: length of a run.
        runs: of each molecule and temperature.
        large: names of molecules larger than any single one of training.
        large_runs: of each of these.
        timestep: fs.
        friction: 1/ps.
    """

    molecules: tuple[str, ...]
    temperatures: tuple[float, ...]
    ps: float
    runs: int
    large: tuple[str, ...] = ()
    large_runs: int = 0
    timestep: float = 0.5
    friction: float = 10.0

    @property
    def steps(self) -> int:
        return round(1000 * self.ps / self.timestep)

    def jobs(self) -> list[tuple[str, float, int]]:
        """(molecule, K, runs), the small molecules first."""
        counts = dict.fromkeys(self.molecules, self.runs) | dict.fromkeys(
            self.large, self.large_runs
        )
        return [(name, t, count) for t in self.temperatures for name, count in counts.items()]

    def seconds(self, atoms: dict[str, int], per_atom_step: float = 200e-6) -> float:
        """On one core, if no run ends early."""
        return sum(atoms[n] * count * self.steps * per_atom_step for n, _, count in self.jobs())


#: in a list of molecules: the 20 of benchmarks/stability that are in no frame of training
STANDARD = "standard"

MODES: dict[str, dict[str, Part]] = {
    "dev": {
        "calm": Part(("ethanol",), (300.0,), 0.05, 2),
        "warm": Part(("ethanol",), (1000.0,), 0.05, 2),
        "breaks": Part((), (600.0, 1200.0), 0.05, 2),
        "melting": Part(("ethanol",), (3000.0,), 0.05, 2),
    },
    # At 1 fs where nothing should happen: more of it for the same time, and the harder test. Of
    # 404 runs without a false stop, Wilson's interval ends at 0.94 %. What breaks is looked at
    # with the step that `mlpot md` has; its molecule is given with --molecules
    "standard": {
        "calm": Part((STANDARD,), (300.0,), 5.0, 20, ("ac-ala10-nme",), 4, timestep=1.0),
        "warm": Part((STANDARD,), (1000.0,), 5.0, 4, timestep=1.0),
        "breaks": Part((), (600.0, 800.0, 1000.0, 1200.0), 5.0, 24),
        "melting": Part((*EARLIER, "acetylacetone"), (2000.0, 3000.0), 1.0, 8),
    },
}


def expanded(molecules: Sequence[str]) -> tuple[str, ...]:
    """Names, with `STANDARD` as the molecules it stands for.

    Raises:
        InputError: none.
    """
    found: list[str] = []
    for name in molecules:
        found += _of(STANDARD) if name == STANDARD else [name]
    if not found:
        raise InputError(
            "give the molecule that the model was fine-tuned on with --molecules; there are "
            f"{', '.join(names())}"
        )
    return tuple(dict.fromkeys(found))


def _of(kind: str) -> list[str]:
    return [m.name for m in read_molecules(GEOMETRIES) if m.set == kind]


@dataclass(frozen=True, eq=False)
class Known:
    """A molecule, and lengths of bonds that are usual, where labelled frames tell them."""

    molecule: Molecule
    bonds: NDArray[np.int64] | None = None  # [B, 2]
    lengths: NDArray[np.float64] | None = None  # [B] Å


def find(name: str) -> Known:
    """A molecule of benchmarks/headline, benchmarks/stability or `EARLIER`.

    Raises:
        InputError: there is none of this name, or its frames are absent.
    """
    if name in LABELLED:
        problems, absent = available([name])
        if not problems:
            raise InputError(f"{name}: {absent[name]}")
        one = problems[0]
        return Known(one.molecule, one.bonds, one.lengths)
    if name in EARLIER:
        structure = read_structure(EARLIER[name])
        smiles = EARLIER[name]
        return Known(Molecule(name, "own", structure.numbers, structure.positions, smiles))
    stored = {m.name: m for m in read_molecules(GEOMETRIES)}
    if name not in stored:
        raise InputError(f"no molecule {name!r}; there are {', '.join(names())}")
    return Known(stored[name])


def names() -> Sequence[str]:
    """All that `find` knows."""
    return list(dict.fromkeys([*LABELLED, *EARLIER, *(m.name for m in read_molecules(GEOMETRIES))]))
