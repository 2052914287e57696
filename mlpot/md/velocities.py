"""Starting velocities, the same for one system and for each of many replicas."""

import numpy as np
from numpy.typing import NDArray

from mlpot.units import ACCELERATION, BOLTZMANN


def maxwell_boltzmann(
    masses: NDArray[np.float64], temperature: float, seed: int
) -> NDArray[np.float64]:
    """Velocities [N, 3] Å/fs of masses [N] amu at a temperature (K), centre of mass at rest."""
    rng = np.random.default_rng(seed)
    spread = np.sqrt(BOLTZMANN * temperature / masses * ACCELERATION)
    velocities = rng.standard_normal((len(masses), 3)) * spread[:, None]
    return velocities - (masses @ velocities) / masses.sum()
