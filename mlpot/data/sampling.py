"""One molecule: SMILES -> embedding -> minimum -> Langevin dynamics, by (seed, SMILES) alone."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from ase.optimize import FIRE
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mlpot.data.calculators import MMFF
from mlpot.data.jobs import one_line
from mlpot.data.labellers import Labeller, calculator, forget_calculator, without_memory
from mlpot.errors import InputError, require

# In sums of covalent radii: a bond that is longer is broken, and two atoms without a bond that
# are closer have made one. At 1000 K bonds reach 1.25.
_BROKEN, _MADE = 1.5, 1.1

_BETWEEN = 2.5  # Å, between the molecules of a SMILES with several, surface to surface
_FORCE = 0.05  # eV/Å, where the minimisation ends
_MINIMISER_STEPS = 300


@dataclass(frozen=True)
class Sampling:
    """How one molecule is sampled: Langevin dynamics from each minimum at each temperature.

    Attributes:
        temperatures: K; 0 keeps the minimum itself, as one frame.
        conformers: embeddings a molecule.
        frames: a conformer and temperature.
        interval: fs between frames.
        warmup: fs before the first interval.
        timestep: fs.
        friction: 1/fs.
        seed: every frame follows from it, the SMILES and these numbers alone.
        keep_broken: keep frames in which bonds have been broken or made.
    """

    temperatures: tuple[float, ...] = (300.0, 500.0, 700.0, 1000.0)
    conformers: int = 2
    frames: int = 5
    interval: float = 50.0
    warmup: float = 100.0
    timestep: float = 1.0
    friction: float = 0.02
    seed: int = 0
    keep_broken: bool = False

    def __post_init__(self) -> None:
        if not self.temperatures or not all(0 <= t < math.inf for t in self.temperatures):
            raise InputError(f"temperatures must be 0 K or more, got {list(self.temperatures)}")
        for name in ("conformers", "frames", "interval", "timestep", "friction"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        if self.seed < 0 or not 0 <= self.warmup < math.inf:
            raise InputError(
                f"seed and warmup must not be negative, got {self.seed} and {self.warmup}"
            )
        if self.interval < self.timestep:
            raise InputError(
                f"frames cannot be {self.interval:g} fs apart with a time step of "
                f"{self.timestep:g} fs. Give a longer interval or a shorter time step"
            )


def sample(smiles: str, labeller: Labeller | None, sampling: Sampling) -> dict[str, Any]:
    """Frames of one molecule.

    Args:
        smiles: canonical.
        labeller: gives the forces, by the calculator of this thread; None is MMFF94.
        sampling: what to run.

    Returns:
        `numbers` [N], `charge`, `positions` [frames, N, 3] Å as lists, `temperatures` [frames] K,
        `dropped`: why trajectories ended early, one reason for each that did.

    Raises:
        InputError: RDKit finds no 3D coordinates, or no frame survives.
        Exception: what the calculator raises at the first geometry.
    """
    frames: list[NDArray] = []
    temperatures: list[float] = []
    dropped: list[str] = []
    for c in range(sampling.conformers):
        molecule = _embed(smiles, _random(smiles, sampling.seed, c))
        bonds = _bonds(molecule)
        minimum = _minimise(molecule, None if labeller is None else calculator(labeller))
        for temperature in sampling.temperatures:
            random = _random(smiles, sampling.seed, c, 1 + round(temperature * 1000))
            if labeller is not None:  # another one if the last trajectory ended in an exception
                minimum.calc = calculator(labeller)
            found, end = _trajectory(minimum, bonds, temperature, sampling, random)
            frames += found
            temperatures += [temperature] * len(found)
            dropped += [end] if end else []
    if not frames:
        raise InputError(f"no frame is left: {dropped[-1]}")
    return {
        "numbers": minimum.numbers.tolist(),
        "charge": round(float(minimum.info["charge"])),
        "positions": [x.tolist() for x in frames],
        "temperatures": temperatures,
        "dropped": dropped,
    }


def _random(smiles: str, *key: int) -> Generator:
    """Random numbers that depend on nothing but the molecule and the key."""
    digest = hashlib.sha256(smiles.encode()).digest()
    return default_rng(SeedSequence([int.from_bytes(digest[:8], "little"), *key]))


def _embed(smiles: str, random: Generator) -> Any:
    """RDKit molecule with hydrogens and one conformer: ETKDG, then MMFF94 where it applies."""
    chem = require("rdkit.Chem", "mlpot[chem]", "embedding molecules")
    embed = require("rdkit.Chem.AllChem", "mlpot[chem]", "embedding molecules")
    with require("rdkit.rdBase", "mlpot[chem]", "embedding molecules").BlockLogs():
        molecule = chem.AddHs(chem.MolFromSmiles(smiles))
        seed = int(random.integers(1, 2**31 - 1))
        if embed.EmbedMolecule(molecule, randomSeed=seed) != 0 and (
            embed.EmbedMolecule(molecule, randomSeed=seed, useRandomCoords=True) != 0
        ):
            raise InputError("RDKit finds no 3D coordinates. Check the stereochemistry")
        positions = molecule.GetConformer().GetPositions()
        parts = [list(p) for p in chem.GetMolFrags(molecule)]
        if len(parts) > 1:
            positions = _side_by_side(positions, parts, random)
            molecule.GetConformer().SetPositions(positions)
        if embed.MMFFHasAllMoleculeParams(molecule):
            embed.MMFFOptimizeMolecule(molecule, maxIters=1000)
    return molecule


def _side_by_side(positions: NDArray, parts: list[list[int]], random: Generator) -> NDArray:
    """Molecules turned at random and put next to each other: RDKit may put one into another."""
    placed, reach = positions.copy(), 0.0
    for part in parts:
        turned = positions[part] @ Rotation.random(random_state=random).as_matrix().T
        turned -= [turned[:, 0].min() - reach, *turned[:, 1:].mean(axis=0)]
        placed[part] = turned
        reach = turned[:, 0].max() + _BETWEEN
    return placed


def _minimise(molecule: Any, calc: Any) -> Atoms:
    """ASE atoms at the calculator's minimum next to the conformer."""
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    charge = sum(atom.GetFormalCharge() for atom in molecule.GetAtoms())
    atoms = Atoms(numbers, molecule.GetConformer().GetPositions(), info={"charge": charge})
    atoms.set_initial_charges(np.full(len(atoms), charge / len(atoms)))
    atoms.calc = MMFF(molecule) if calc is None else calc
    without_memory(atoms.calc)
    FIRE(atoms, logfile=None).run(fmax=_FORCE, steps=_MINIMISER_STEPS)
    return atoms


def _trajectory(
    minimum: Atoms, bonds: NDArray, temperature: float, sampling: Sampling, random: Generator
) -> tuple[list[NDArray], str]:
    """Frames [N, 3] Å, and why there are fewer than asked for. 0 K is the minimum itself.

    A calculator that raises is forgotten: the exception may have left it in any state.
    """
    at = f" (at {temperature:g} K)"
    atoms = minimum.copy()
    atoms.calc = minimum.calc
    without_memory(atoms.calc)
    frames: list[NDArray] = []
    if temperature == 0:
        end = _changed(atoms, bonds, sampling.keep_broken)
        return ([], end + at) if end else ([_centred(atoms)], "")
    widths = np.sqrt(units.kB * temperature * atoms.get_masses())
    atoms.set_momenta(random.standard_normal((len(atoms), 3)) * widths[:, None])
    dynamics = Langevin(
        atoms,
        sampling.timestep * units.fs,
        temperature_K=temperature,
        friction=sampling.friction / units.fs,
        fixcm=False,
        rng=random,
    )
    try:
        _run(dynamics, sampling.warmup / sampling.timestep)
        for _ in range(sampling.frames):
            _run(dynamics, sampling.interval / sampling.timestep)
            if end := _changed(atoms, bonds, sampling.keep_broken):
                return frames, end + at
            frames.append(_centred(atoms))
    except Exception as error:  # far from the minimum calculators raise whatever they like
        forget_calculator()
        return frames, one_line(error) + at
    return frames, ""


def _run(dynamics: Langevin, steps: float) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # a blow-up is noticed after it
        dynamics.run(round(steps))


def _centred(atoms: Atoms) -> NDArray[np.float64]:
    return atoms.positions - atoms.positions.mean(axis=0)


def _bonds(molecule: Any) -> NDArray[np.bool_]:
    """[N, N], which atoms are bonded."""
    n = molecule.GetNumAtoms()
    bonds = np.zeros((n, n), dtype=bool)
    for bond in molecule.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        bonds[i, j] = bonds[j, i] = True
    return bonds


def _changed(atoms: Atoms, bonds: NDArray[np.bool_], anyway: bool) -> str:
    """What kind of bond is no longer what the SMILES says, or nothing.

    Without the atoms' numbers: reasons are counted over molecules.
    """
    if not np.isfinite(atoms.positions).all():
        return "the dynamics has blown up"
    radii = covalent_radii[atoms.numbers]
    relative = atoms.get_all_distances() / (radii[:, None] + radii)
    broken = np.triu(bonds & (relative > _BROKEN))
    made = np.triu(~bonds & (relative < _MADE), 1)
    if anyway or not (broken.any() or made.any()):
        return ""
    changed, verb = (broken, "broken") if broken.any() else (made, "made")
    one, other = sorted(atoms.symbols[i] for i in np.argwhere(changed)[0])
    return f"a bond {one}-{other} is {verb}"
