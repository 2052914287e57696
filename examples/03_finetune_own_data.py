"""Fit the shipped model to your own data, export it, use it.
Run: python examples/03_finetune_own_data.py [--fast]"""

import sys
from pathlib import Path

from ase.io import read as read_atoms

from mlpot import MLPotCalculator, export
from mlpot.data.formats import read
from mlpot.train.finetune import FinetuneConfig, FinetuneLoop, finetune
from mlpot.zoo import resolve

here = Path(__file__).parent
fast = "--fast" in sys.argv
data = here / "aspirin_60_frames.xyz"  # yours: extended XYZ with energy (eV) and forces (eV/Å)
out = Path("runs/03_finetune_fast" if fast else "runs/03_finetune")

steps = 4 if fast else 500
config = FinetuneConfig(
    name="aspirin",
    level="PBE/def2-SVP",
    validation=10,
    test=10,
    loop=FinetuneLoop(steps=steps, validate_every=steps // 2),
)
info, errors = finetune(read(data), config, out, start=resolve("pretrained-visnet"))
print(f"error of the forces on 10 frames it has not seen: {1000 * errors.force_mae:.0f} meV/Å")

export(out / "model.safetensors", out / "aspirin.pt")
atoms = read_atoms(data, index=0)
reference = atoms.get_potential_energy()
atoms.calc = MLPotCalculator(out / "aspirin.pt")
print(f"energy of the first frame: {atoms.get_potential_energy():.3f} eV ({reference:.3f} by DFT)")
