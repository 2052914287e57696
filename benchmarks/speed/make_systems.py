"""Make the geometries of the speed benchmark; the files are stored, so this runs once.

    python -m benchmarks.speed.make_systems

Molecules: RDKit's ETKDG embedding (seed 7), minimised with MMFF94. Water: one box of 100 TIP3P
molecules equilibrated in OpenMM; the larger boxes repeat it, so that every atom has the same number
of neighbours in all of them, and the time of a box says how an engine scales and nothing else.
"""

from io import StringIO

from ase import Atoms
from ase.io import read, write

from benchmarks.speed.geometries import SYSTEMS, WATER, path_of

SEED = 7


def molecule(smiles: str, sequence: str) -> Atoms:
    """A relaxed conformer of a SMILES, or of a peptide sequence with neutral ends."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    mol = Chem.MolFromSmiles(smiles) if smiles else Chem.MolFromSequence(sequence)
    mol = Chem.AddHs(mol)
    if rdDistGeom.EmbedMolecule(mol, randomSeed=SEED) != 0:
        raise RuntimeError(f"RDKit found no geometry for {smiles or sequence}")
    rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=5000)
    atoms = read(StringIO(Chem.MolToXYZBlock(mol)), index=0, format="xyz")
    assert isinstance(atoms, Atoms)
    return atoms


def water() -> Atoms:
    """A cubic box of 100 TIP3P molecules after 100 ps at 300 K and 1 bar."""
    from openmm import LangevinMiddleIntegrator, MonteCarloBarostat, Platform, unit
    from openmm.app import PME, ForceField, Modeller, Simulation, Topology

    modeller, field = Modeller(Topology(), [] * unit.nanometer), ForceField("tip3p.xml")
    modeller.addSolvent(field, model="tip3p", numAdded=100)
    system = field.createSystem(
        modeller.topology, nonbondedMethod=PME, nonbondedCutoff=0.6 * unit.nanometer
    )
    system.addForce(MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin))
    integrator = LangevinMiddleIntegrator(
        300 * unit.kelvin, 1 / unit.picosecond, 2 * unit.femtosecond
    )
    platform = Platform.getPlatformByName("CPU")
    simulation = Simulation(modeller.topology, system, integrator, platform, {"Threads": "1"})
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy()
    simulation.step(50_000)
    state = simulation.context.getState(getPositions=True, enforcePeriodicBox=True)
    numbers = [a.element.atomic_number for a in modeller.topology.atoms()]
    return Atoms(
        numbers,
        state.getPositions(asNumpy=True).value_in_unit(unit.angstrom),
        cell=state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom),
        pbc=True,
    )


def main() -> None:
    made = {WATER: water()}
    for name, system in SYSTEMS.items():
        if not system.repeat:
            made[name] = molecule(system.smiles, system.sequence)
    for name, atoms in made.items():
        assert len(atoms) == SYSTEMS[name].atoms, f"{name} has {len(atoms)} atoms"
        atoms.positions = atoms.positions.round(3)
        write(path_of(name), atoms, format="extxyz")
        print(f"{name}: {len(atoms)} atoms, {atoms.get_chemical_formula()}")


if __name__ == "__main__":
    main()
