"""Energy conservation: drift of the total energy, and its confidence interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read as read_atoms
from experiment import ROOT  # this folder is where the script runs
from scipy.stats import t as student

from mlpot.deploy.engines import DeployedModel
from mlpot.md.replicas import Replicas


def nve_drift(
    model: DeployedModel, picoseconds: float, seeds: int, warm_ps: float, timestep: float = 0.5
) -> dict[str, Any]:
    """Slopes of the total energy, meV/atom/ps: alanine dipeptide at about 300 K.

    Args:
        picoseconds: at constant energy.
        seeds: as many replicas, side by side.
        warm_ps: with a thermostat before.
    """
    atoms = read_atoms(ROOT / "examples" / "alanine-dipeptide.pdb", index=0)
    assert isinstance(atoms, Atoms)
    numbers = [atoms.numbers] * seeds
    warm = Replicas(model, numbers, [atoms.positions] * seeds, timestep=timestep, seeds=0)
    warm.minimize()
    warm.step(round(1000 * warm_ps / timestep))
    free = Replicas(
        model,
        numbers,
        warm.positions,
        velocities=warm.velocities,
        timestep=timestep,
        friction=None,
    )
    total, heat = [], []
    for _ in range(round(200 * picoseconds / timestep)):
        free.step(5)
        total.append(free.potential + free.kinetic)
        heat.append(free.temperature)
    time_ps = np.arange(len(total)) * 5e-3 * timestep
    energy = 1e3 * np.array(total) / len(atoms)
    slopes, intercepts = np.polyfit(time_ps, energy, 1)
    rest = energy - np.outer(time_ps, slopes) - intercepts
    return {
        "slopes": slopes.tolist(),
        "fluctuation": float(rest.std()),  # meV/atom about the lines
        "temperature": float(np.mean(heat)),
        "picoseconds": picoseconds,
        "timestep": timestep,
        "lost": len(free.lost),
    }


def interval_of(slopes: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval (Student's t)."""
    count = len(slopes)
    spread = float(np.std(slopes, ddof=1)) / np.sqrt(count)
    return float(np.mean(slopes)), float(student.ppf(0.975, count - 1)) * spread
