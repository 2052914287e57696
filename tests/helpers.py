"""Small models and molecules that many tests use."""

from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule

from mlpot.models.checkpoint import ModelInfo, build, save
from mlpot.models.potential import Potential
from mlpot.models.visnet import ViSNetConfig

#: Å; bonds of the molecules below are on both sides of these, so that every engine has to know them
FLOORS = {"H-H": 1.2, "H-C": 1.12, "H-N": 0.8, "H-O": 0.98, "C-C": 1.2, "C-N": 1.1, "C-O": 1.4} | {
    pair: 1.1 for pair in ("N-N", "N-O", "O-O")
}
REFERENCES = {1: -13.587, 6: -1029.5, 7: -1484.9, 8: -2042.0}


def save_random_model(
    path: Path,
    name: str = "random",
    seed: int = 1,
    scale: float = 2.0,
    floors: dict[str, float] = FLOORS,
    **config: object,
) -> Path:
    """A potential with random weights on H, C, N, O, with reference energies of real size."""
    info = _random_info(name, scale, config).model_copy(update={"floors": floors})
    torch.manual_seed(seed)
    save(build(info), info, path)
    return path


def random_potential(seed: int = 1, scale: float = 2.0, **config: object) -> Potential:
    """The same without a file, in evaluation mode."""
    torch.manual_seed(seed)
    model = build(_random_info("random", scale, config))
    assert isinstance(model, Potential)
    return model.eval()


def _random_info(name: str, scale: float, config: dict[str, object]) -> ModelInfo:
    settings = {"layers": 3, "channels": 16, "heads": 4, "radial": 8, **config}
    return ModelInfo(
        name=name,
        config=ViSNetConfig(**settings).model_dump(),  # type: ignore[arg-type]
        reference_energies=REFERENCES,
        elements=sorted(REFERENCES),
        scale=scale,
        level="random weights",
        prior="zbl",
        floors=FLOORS,
    )


def ethanol() -> Atoms:
    """9 atoms, slightly distorted so that no force vanishes by symmetry."""
    atoms = molecule("CH3CH2OH")
    atoms.positions += 0.03 * np.random.default_rng(0).standard_normal(atoms.positions.shape)
    return atoms


def methanol_with_water() -> Atoms:
    """9 + 3 - 3 = 9 atoms in two molecules would be odd again; this one is even: 6 + 3 + 3."""
    first, second, third = molecule("CH3OH"), molecule("H2O"), molecule("H2O")
    second.positions += [3.2, 0.3, 0.2]
    third.positions += [-0.4, 3.4, 0.5]
    return first + second + third


def float32_limit(weights: Path, atoms: Atoms, cell: object = None, least: float = 2e-5) -> float:
    """eV/Å that two engines may differ by in float32: four times what eager is off by itself.

    Sums in another order, and of another processor's vector length, round differently; how much
    that is in the forces depends on the geometry.
    """
    from mlpot.deploy.load import load

    near, exact = (
        load(weights, "eager", dtype=dtype)(atoms.numbers, atoms.positions, cell).forces
        for dtype in ("float32", "float64")
    )
    return max(least, 4 * float(abs(near - exact).max()))
