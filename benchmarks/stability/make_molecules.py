"""Make the lists of molecules. Needs RDKit, and the data set of the shipped model for the first.

    python -m benchmarks.stability.make_molecules

Standard molecules are frames of the model's own data set, of molecules that
mlpot/zoo/recipes/held_out.json keeps for the final test, and that training does not have as a
partner in a dimer either: the frame of lowest energy. The others are built by RDKit (ETKDG, MMFF94
or UFF). Unseen functional groups and sizes are checked against every SMILES that the model was
trained on.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import Atoms
from ase.io import write

from benchmarks.accuracy.relations import parts

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
HERE = Path(__file__).parent / "molecules"
HELD_OUT = ROOT / "mlpot" / "zoo" / "recipes" / "held_out.json"

# name -> SMILES as the data set has it: 12 drug-like, 5 capped peptides, 3 fragments
STANDARD = {
    "rufinamide": "NC(=O)c1cn(Cc2c(F)cccc2F)nn1",
    "osilodrostat": "N#Cc1ccc([C@H]2CCc3cncn32)c(F)c1",
    "tenoxicam": "CN1C(C(=O)Nc2ccccn2)=C(O)c2sccc2S1(=O)=O",
    "brivaracetam": "CCC[C@@H]1CC(=O)N([C@@H](CC)C(N)=O)C1",
    "tapinarof": "CC(C)c1c(O)cc(/C=C/c2ccccc2)cc1O",
    "isoxsuprine": "CC(COc1ccccc1)NC(C)C(O)c1ccc(O)cc1",
    "bromothiophene-amide": "O=C(NCc1ccccc1F)c1cc(Br)cs1",
    "sulfonamide-alcohol": "COc1ccc(S(=O)(=O)NCCCCO)cc1C",
    "thiadiazole-diamide": "CCc1nnc(NC(=O)CNC(=O)C(C)(C)C)s1",
    "chlorobenzamide": "CN(C)C(=O)c1ccc(Cl)cc1NCc1ccsc1",
    "benzimidazole-amide": "Cn1cnc2cc(C(=O)NCCc3cc(F)c(F)c(F)c3)cnc21",
    "boc-piperidine-nitrile": "CC(C)(C)OC(=O)N1CCC(C(=O)NC(C#N)c2ccccc2F)C1",
    "ac-met-nme": "CC(=O)N[C@@H](CCSC)C(=O)NC",
    "ac-ser-val-nme": "CC(=O)N[C@@H](CO)C(=O)N[C@@H](C(C)C)C(=O)NC",
    "ac-gly-trp-nme": "CC(=O)NCC(=O)N[C@@H](Cc1c[nH]c2ccccc12)C(=O)NC",
    "ac-asn-phe-nme": "CC(=O)N[C@@H](CC(N)=O)C(=O)N[C@@H](Cc1ccccc1)C(=O)NC",
    "ac-tyr-gly-gly-nme": "CC(=O)N[C@@H](Cc1ccc(O)cc1)C(=O)NCC(=O)NCC(=O)NC",
    "hydroxyphthalide": "Cc1ccc(O)c2c1COC2=O",
    "pyrimido-oxazepinone": "Nc1ncnc2c1C(=O)NCCO2",
    "norcaranamine": "N[C@H]1CCC2C[C@@H]2C1",
}

# larger than any single molecule of the training data; clusters with water have more atoms
LARGEST = 69
LARGE = {
    "ac-ala10-nme": "CC(=O)" + "N[C@@H](C)C(=O)" * 10 + "NC",
    "paclitaxel": "CC1=C2[C@H](C(=O)[C@@]3([C@H](C[C@@H]4[C@]([C@H]3[C@@H]([C@@](C2(C)C)(C[C@@H]1OC"
    "(=O)[C@@H]([C@H](C5=CC=CC=C5)NC(=O)C6=CC=CC=C6)O)O)OC(=O)C7=CC=CC=C7)(CO4)OC(=O)C)O)C)OC(=O)C",
    "cyclosporin-a": "CC[C@H]1C(=O)N(CC(=O)N([C@H](C(=O)N[C@H](C(=O)N([C@H](C(=O)N[C@H](C(=O)"
    "N[C@@H](C(=O)N([C@H](C(=O)N([C@H](C(=O)N([C@H](C(=O)N([C@H](C(=O)N1)[C@@H]([C@H](C)C/C=C/C)"
    "O)C)C(C)C)C)CC(C)C)C)CC(C)C)C)C)C)CC(C)C)C)C(C)C)CC(C)C)C)C",
}

# name -> (SMILES, SMARTS of a group that no molecule of the training data has)
GROUPS = {
    "acetic-anhydride": ("CC(=O)OC(C)=O", "C(=O)OC(=O)"),
    "benzoyl-chloride": ("O=C(Cl)c1ccccc1", "C(=O)Cl"),
    "phenyl-isocyanate": ("O=C=Nc1ccccc1", "N=C=O"),
    "ethyl-diazoacetate": ("CCOC(=O)C=[N+]=[N-]", "[#6]=[N+]=[N-]"),
    "tosyl-chloride": ("Cc1ccc(S(=O)(=O)Cl)cc1", "S(=O)(=O)Cl"),
    "bicyclopentylamine": ("NC12CC(C1)C2", "C1C2CC1C2"),
    "dimethylallene": ("CC(C)=C=C", "C=C=C"),
    "trimethylphosphine": ("CP(C)C", "[PX3]"),
}

# for `mlpot stability` of an installed mlpot, where this folder is not
DEFAULT = (
    "rufinamide",
    "ac-ser-val-nme",
    "osilodrostat",
    "hydroxyphthalide",
    "ac-met-nme",
    "ac-ala10-nme",
    "acetic-anhydride",
    "phenyl-isocyanate",
    "ethyl-diazoacetate",
)


def main() -> None:
    """Write molecules/*.xyz and mlpot/analysis/molecules.xyz."""
    test = set(json.loads(HELD_OUT.read_text())["test"])
    if missing := [name for name, smiles in STANDARD.items() if smiles not in test]:
        raise SystemExit(f"not held out: {', '.join(missing)}; choose others from {HELD_OUT.name}")
    _check_unseen(test)
    found = {name: _from_data(name, smiles) for name, smiles in STANDARD.items()}
    found |= {name: _built(name, "large", smiles) for name, smiles in LARGE.items()}
    found |= {name: _built(name, "groups", smiles) for name, (smiles, _) in GROUPS.items()}
    HERE.mkdir(exist_ok=True)
    for number, (name, atoms) in enumerate(found.items()):
        _write(HERE / f"{number:02d}-{name}.xyz", [atoms])
    _write(ROOT / "mlpot" / "analysis" / "molecules.xyz", [found[name] for name in DEFAULT])


def _write(path: Path, molecules: list[Atoms]) -> None:
    for atoms in molecules:
        atoms.positions -= atoms.positions.mean(axis=0)
        atoms.positions = np.round(atoms.positions, 5)
    write(path, molecules, format="extxyz")


def _from_data(name: str, smiles: str) -> Atoms:
    with h5py.File(DATA / "druglike_aimnet2" / "frames.h5") as file:
        index = [s.decode() for s in file["smiles"][:]].index(smiles)
        frames = np.flatnonzero(file["molecule"][:] == index)
        best = frames[int(np.argmin(file["energy"][:][frames]))]
        atoms = slice(*file["offset"][best : best + 2].tolist())
        subset = file["subset"][index].decode()
        told = {"name": name, "set": "standard", "smiles": smiles, "source": f"held out, {subset}"}
        return Atoms(file["atomic_numbers"][atoms], file["positions"][atoms], info=told)


def _built(name: str, group: str, smiles: str) -> Atoms:
    from mlpot.md.structure import read_structure

    structure = read_structure(smiles)
    told = {"name": name, "set": group, "smiles": smiles, "source": "RDKit conformer"}
    return Atoms(structure.numbers, structure.positions, info=told)


def _check_unseen(test: set[str]) -> None:
    """No training molecule is a standard one, even in a dimer, has one of the groups, or is as
    large as one of the large ones."""
    from rdkit import Chem, RDLogger

    RDLogger.DisableLog("rdApp.*")
    smiles: set[str] = set()
    with h5py.File(DATA / "druglike_aimnet2" / "frames.h5") as file:
        smiles |= {s.decode() for s in file["smiles"][:]}
    for name in DATA.glob("spice_*_aimnet2.h5"):
        with h5py.File(name) as file:
            smiles |= {group.replace("|", "/") for group in file}
    known_parts = {part for group in smiles - test for part in parts(group)}
    if met := [n for n, s in STANDARD.items() if not known_parts.isdisjoint(parts(s))]:
        raise SystemExit(f"training molecules: {', '.join(met)}")
    parsed = [Chem.MolFromSmiles(s) for s in sorted(known_parts)]
    molecules: list[Any] = [m for m in parsed if m is not None]
    largest = max(Chem.AddHs(m).GetNumAtoms() for m in molecules)
    if largest > LARGEST:
        raise SystemExit(f"a training molecule has {largest} atoms, more than {LARGEST}")
    seen: dict[str, int] = defaultdict(int)
    for name, (_, smarts) in GROUPS.items():
        pattern = Chem.MolFromSmarts(smarts)
        seen[name] = sum(m.HasSubstructMatch(pattern) for m in molecules)
    if known := {name: count for name, count in seen.items() if count}:
        raise SystemExit(f"groups that training molecules have: {known}")


if __name__ == "__main__":
    main()
