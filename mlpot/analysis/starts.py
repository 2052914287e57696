"""Where simulations start: a little downhill from the geometry as given, distorted if asked."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from mlpot.analysis.criteria import bond_lengths, find_bonds
from mlpot.analysis.molecules import Molecule
from mlpot.analysis.subjects import CalculatorModel
from mlpot.deploy.engines import DeployedModel
from mlpot.errors import UnsupportedSystemError
from mlpot.md.replicas import Replicas
from mlpot.md.settings import MINIMIZE
from mlpot.neighbors import OVERLAP

#: Å, of distorted starts: the most a bond is off, and the closest two atoms come
STRAIN, CLOSEST = 0.3, 0.8


def relax(model: DeployedModel, molecules: Sequence[Molecule]) -> list[NDArray[np.float64]]:
    """Geometries [N, 3] Å a little downhill from those given; equal molecules once.

    Raises:
        UnsupportedSystemError: a calculator that cannot do the geometry as given. A model that
            falls into a hole on the way down is what the suite is there to see, and no error.
    """
    different = list({molecule.key: molecule for molecule in molecules}.values())
    if isinstance(model, CalculatorModel):
        for molecule in different:
            _check_runs(model, molecule)
    numbers = [molecule.numbers for molecule in different]
    given = [molecule.positions for molecule in different]
    replicas = Replicas(model, numbers, given, temperatures=0.0)
    replicas.minimize(MINIMIZE)
    found = dict(zip((m.key for m in different), replicas.positions, strict=True))
    return [found[molecule.key] for molecule in molecules]


def _check_runs(model: CalculatorModel, molecule: Molecule) -> None:
    try:
        model.evaluate(molecule.numbers, molecule.positions)
    except Exception as error:  # calculators raise whatever they like
        raise UnsupportedSystemError(
            f"{molecule.name}: {model.info.name} cannot do the start geometry "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error


def apart(positions: NDArray[np.float64], closest: float = OVERLAP) -> bool:
    """Would `Replicas` take such a start? A model without repulsion may fuse atoms in relaxing."""
    return len(positions) < 2 or bool(pdist(positions).min() > closest)


def distort(
    molecule: Molecule,
    positions: NDArray[np.float64],
    spread: float,
    seed: int,
    tries: int = 100,
) -> NDArray[np.float64]:
    """Positions [N, 3] Å with every coordinate displaced at random, with a standard deviation
    of at most ``spread`` Å.

    Drawn again, a little smaller each time, while a bond is off by more than 0.3 Å or two atoms
    come closer than 0.8 Å (four fifths of what they were, in hydrogen): from there a hydrogen may
    fly off by the laws of nature. So the root mean square of what comes of 0.1 Å is nearer to
    0.09 Å, and records tell it.

    Raises:
        UnsupportedSystemError: no such start was found.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 0)))
    limit = CLOSEST if apart(positions, CLOSEST) else 0.8 * float(pdist(positions).min())  # H2
    bonds = find_bonds(molecule.numbers, molecule.positions)
    still = bond_lengths(positions[None], bonds)
    for attempt in range(tries):
        moved = positions + 0.98**attempt * spread * rng.standard_normal(positions.shape)
        strained = np.abs(bond_lengths(moved[None], bonds) - still) > STRAIN
        if not strained.any() and apart(moved, limit):
            return moved
    raise UnsupportedSystemError(
        f"no start off by {spread:g} Å was found in {tries} draws in which bonds are within "
        f"{STRAIN:g} Å of their lengths and atoms {limit:.2g} Å apart. Leave this molecule out, or "
        "distort it less"
    )
