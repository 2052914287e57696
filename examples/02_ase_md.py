"""Alanine dipeptide in ASE: 1 ps at 300 K.  Run: python examples/02_ase_md.py [--fast]"""

import sys
from pathlib import Path

from ase import units
from ase.constraints import FixCom
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import LBFGS

from mlpot import MLPotCalculator

here = Path(__file__).parent
steps = 20 if "--fast" in sys.argv else 2000

atoms = read(here / "alanine-dipeptide.pdb")
atoms.calc = MLPotCalculator("pretrained-visnet")
LBFGS(atoms, logfile=None).run(fmax=0.05, steps=10 if "--fast" in sys.argv else 200)
print(f"minimised: {atoms.get_potential_energy():.3f} eV")

out = Path("runs/02_ase_md")
out.mkdir(parents=True, exist_ok=True)
atoms.set_constraint(FixCom())  # the centre of mass stays put
MaxwellBoltzmannDistribution(atoms, temperature_K=300)
dynamics = Langevin(
    atoms,
    0.5 * units.fs,
    temperature_K=300,
    friction=0.01 / units.fs,
    fixcm=False,
    trajectory=str(out / "trajectory.traj"),
    logfile="-",
    loginterval=steps // 10,
)
dynamics.run(steps)
print(f"wrote {out / 'trajectory.traj'}")
