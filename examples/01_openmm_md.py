"""Alanine dipeptide in OpenMM: 1 ps at 300 K.  Run: python examples/01_openmm_md.py [--fast]"""

import sys
from pathlib import Path

from openmm import LangevinMiddleIntegrator, app, unit
from openmmml import MLPotential

here = Path(__file__).parent
steps = 20 if "--fast" in sys.argv else 2000

pdb = app.PDBFile(str(here / "alanine-dipeptide.pdb"))
potential = MLPotential("pretrained-visnet")
system = potential.createSystem(pdb.topology)
integrator = LangevinMiddleIntegrator(
    300 * unit.kelvin, 10 / unit.picosecond, 0.5 * unit.femtosecond
)

simulation = app.Simulation(pdb.topology, system, integrator)
simulation.context.setPositions(pdb.positions)
simulation.minimizeEnergy(maxIterations=10 if "--fast" in sys.argv else 200)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)

out = Path("runs/01_openmm_md")
out.mkdir(parents=True, exist_ok=True)
simulation.reporters += [
    app.DCDReporter(str(out / "trajectory.dcd"), max(1, steps // 100)),
    app.StateDataReporter(
        sys.stdout, steps // 10, step=True, potentialEnergy=True, temperature=True, speed=True
    ),
]
simulation.step(steps)
print(f"wrote {out / 'trajectory.dcd'}")
