"""How the backbones of `ablation` are denoised.

`0.1` is coordinate noise of 0.1 Å, predicted by a head that gives a vector an atom. Words after it
change something: `0.1 + torsions` turns single bonds first (not to be predicted; as many steps,
each of which takes a bit longer), and `0.2 briefly` takes a quarter of the steps. `0.1 by energy`
predicts the noise as the gradient of an energy, whose head the supervised training then goes on
with. A step of that takes twice the time, so it has half the steps; every geometry has one noise
and not another one each time, and the loss is that of forces (lengths of errors, not squares).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from experiment import quiet  # this folder is where the script runs
from history import hours_by_step
from scipy.spatial.distance import pdist

from mlpot.data.record import OVERLAP, Record
from mlpot.errors import InputError
from mlpot.models.checkpoint import ModelInfo, build, load_potential, save
from mlpot.models.potential import Potential
from mlpot.train.finetune import FinetuneConfig, finetune

TORSIONS, BY_ENERGY, BRIEFLY = "+ torsions", "by energy", "briefly"
#: degrees, of the rotations
ANGLE = 30.0
#: of the minutes of denoising
SHARE = 0.25
#: of the published model: six layers without smooth norms want a smaller rate than ours
PUBLISHED_LOOP: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 1e-3}


class Noise(NamedTuple):
    """What a backbone is denoised from, and how."""

    sigma: float  # Å
    how: str = ""

    @classmethod
    def parse(cls, text: str) -> "Noise":
        """Of '0.1', '0.1 + torsions' and the like."""
        sigma, _, how = text.strip().partition(" ")
        try:
            noise = cls(float(sigma), how.strip())
        except ValueError:
            noise = cls(0.0)
        if not 0 < noise.sigma < np.inf or noise.how not in ("", TORSIONS, BY_ENERGY, BRIEFLY):
            raise InputError(
                f"--noise {text!r}: give Å, and after it nothing, {TORSIONS!r}, {BY_ENERGY!r} or "
                f"{BRIEFLY!r}"
            )
        return noise

    @property
    def key(self) -> str:
        return f"{self.sigma:g} {self.how}".strip()

    @property
    def start(self) -> str:
        """Name of the start in tables."""
        return f"denoised {self.sigma:g} Å {self.how}".strip()

    @property
    def folder(self) -> str:
        return "-".join(["denoised", *self.key.replace("+", "").split()])

    @property
    def angle(self) -> float:
        """Degrees."""
        return ANGLE if self.how == TORSIONS else 0.0

    @property
    def share(self) -> float:
        return SHARE if self.how == BRIEFLY else 1.0


def of_start(start: str) -> Noise | None:
    """The noise in a start's name; None if it has none."""
    if not start.startswith("denoised "):
        return None
    return Noise.parse(start.removeprefix("denoised ").replace(" Å", "", 1))


def noised(records: Sequence[Record], sigma: float, seed: int = 0) -> list[Record]:
    """Every geometry once with noise; what points back, in units of sigma, as forces (eV/Å).

    Frames in which two atoms come to lie on each other are left out.
    """
    rng, found = np.random.default_rng(seed), []
    for record in records:
        noise = rng.standard_normal(record.positions.shape)
        positions = record.positions + sigma * noise
        if pdist(positions).min(initial=np.inf) > OVERLAP:
            found.append(replace(record, positions=positions, forces=-noise))
    return found


def denoise_by_energy(
    records: Sequence[Record], sigma: float, recipe: FinetuneConfig, out: Path
) -> ModelInfo:
    """Train an energy whose forces are what points back, and write ``out/model.safetensors``.

    Energies of the frames weigh nothing; reference energies are all that is fitted to them.
    """
    recipe = recipe.model_copy(update={"energy_weight": 0.0, "prior": "none"})
    finetune(noised(records, sigma), recipe, out, progress=False, report=quiet)
    path = out / "model.safetensors"
    model, info = load_potential(path)
    walled = info.model_copy(update={"prior": "zbl"})  # as the other starts have from their recipe
    whole = build(walled)
    assert isinstance(whole, Potential)
    whole.load_state_dict(model.state_dict(), strict=False)
    return save(whole, walled, path)


def minutes_of(folder: Path) -> float:
    """Of training, without what was cut off between; 0 for a run too short to be logged."""
    clock = hours_by_step(folder)
    return 60 * clock[-1][1] if clock else 0.0


def remaining_loss(info: ModelInfo) -> float:
    """Mean squared error of the noise in units of its sigma: 1 for a model that predicts none."""
    validation: dict[str, Any] = info.provenance["validation"]
    if info.kind == "denoiser":
        return float(validation["loss"])
    return float(validation["force_rmse"]) ** 2
