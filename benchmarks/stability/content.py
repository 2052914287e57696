"""What the benchmark runs: committed molecules, and data beside the clone where there are any."""

from pathlib import Path

import numpy as np

from mlpot.analysis.molecules import Molecule, read_molecules
from mlpot.analysis.scenarios import MODES
from mlpot.analysis.stability import Content, Reference
from mlpot.data.formats import read
from mlpot.data.record import Record

MOLECULES = Path(__file__).parent / "molecules"
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

#: name -> file, K, source: frames of simulations by other methods
REFERENCES = {
    "aspirin-500K": ("rmd17_aspirin_train.xyz.gz", 500.0, "rMD17 (MD17's ab initio MD at 500 K)"),
    "acac-300K": ("acac/test_MD_300K.xyz.gz", 300.0, "acac, MD at 300 K"),
    "acac-600K": ("acac/test_MD_600K.xyz.gz", 600.0, "acac, MD at 600 K"),
}

#: PBE-D3/def2-SVP of one molecule; far from where a model that was fine-tuned at 300 K has been
ACCURACY = {
    "acac 300 K": "acac/test_MD_300K.xyz.gz",
    "acac 600 K": "acac/test_MD_600K.xyz.gz",
    "acac H transfer": "acac/test_H_transfer.xyz.gz",
    "acac dihedral scan": "acac/test_dihedral.xyz.gz",
}

#: labelled frames of each set, evenly spaced
FRAMES = {"dev": 50, "fast": 200, "standard": 10**9}


def content(mode: str, data: Path = DATA) -> Content:
    """Everything of a mode; what has no data here is told in ``skipped``."""
    molecules: list[Molecule] = read_molecules(MOLECULES)
    references: dict[str, Reference] = {}
    accuracy: dict[str, list[Record]] = {}
    skipped = {}
    for name, (file, kelvin, source) in REFERENCES.items():
        if records := _read(data / file):
            frames = np.array([r.positions for r in records], dtype=np.float64)
            numbers = records[0].numbers
            molecules.append(Molecule(name, "reference", numbers, frames[0], source=source))
            references[name] = Reference(frames, kelvin, source)
        else:
            skipped[f"structure of {name}"] = _absent(file)
    for name, file in ACCURACY.items():
        if records := _read(data / file):
            accuracy[name] = records[:: max(1, -(-len(records) // FRAMES[mode]))]
        else:
            skipped[f"errors on {name}"] = _absent(file)
    return Content(MODES[mode], molecules, mode, references, accuracy, skipped)


def _read(path: Path) -> list[Record]:
    return read(path) if path.is_file() else []


def _absent(file: str) -> str:
    return f"needs ../shared/data/{file}, which is not part of a clone"
