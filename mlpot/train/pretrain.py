"""Recipe: denoise unlabelled geometries.

Coordinates get Gaussian noise; the network predicts it, in units of its standard deviation
(Zaidi et al., arXiv 2206.00133; arXiv 2410.21683). Near a minimum that is learning a force
field from geometries alone, and the features carry over to energies. Rotations about single bonds
can be added, which are not to be removed (fractional denoising, arXiv 2307.10683).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from mlpot import __version__
from mlpot.data.loader import GraphLoader, LabelledGraph
from mlpot.data.record import Record
from mlpot.data.splits import Split, load_split, make_split, save_split, split_held_out
from mlpot.models.checkpoint import ModelInfo, build, load, save
from mlpot.models.potential import Denoiser
from mlpot.models.visnet import ViSNetConfig
from mlpot.train.loop import LoopConfig, TrainingModule, claim_folder, fit
from mlpot.train.losses import denoising_loss


class PretrainConfig(BaseModel):
    """Denoising: what `mlpot pretrain` reads from a TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "denoised"
    noise: float = Field(0.1, gt=0, description="Å, standard deviation of the coordinate noise")
    torsions: float = Field(
        0.0,
        ge=0,
        le=180,
        allow_inf_nan=False,
        description="degrees, standard deviation of rotations about single bonds, which are not "
        "to be removed",
    )
    validation: int | float = Field(0.02, description="share (below 1) or number of geometries")
    test: int | float = Field(0.0, description="the same; not looked at")
    held_out: str = Field("", description="JSON file of molecules held out, instead of a new split")
    model: ViSNetConfig = ViSNetConfig()
    loop: LoopConfig = LoopConfig()


class DenoisingModule(TrainingModule):
    """Lightning's view of a Denoiser."""

    def __init__(self, model: Denoiser, loop: LoopConfig, architecture: dict[str, Any]):
        super().__init__(model, loop, architecture)
        self._sum, self._batches = 0.0, 0

    def weights(self, batch: LabelledGraph) -> torch.Tensor:
        return torch.full_like(batch.noise[:1, 0], 1.0 / max(1, batch.noise.numel()))

    def outputs(self, weights: torch.Tensor, batch: LabelledGraph) -> tuple[torch.Tensor, ...]:
        return (denoising_loss(self.model(batch.graph), batch.noise, weights),)

    def observe(self, outputs: Sequence[torch.Tensor], batch: LabelledGraph) -> None:
        self._sum += float(outputs[0])
        self._batches += 1

    def finish(self) -> dict[str, float]:
        mean = self._sum / max(1, self._batches)
        self._sum, self._batches = 0.0, 0
        return {"loss": mean}


def pretrain(
    records: Sequence[Record],
    config: PretrainConfig,
    out: str | Path,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> ModelInfo:
    """Denoise and write ``out/model.safetensors``; a run that was cut off goes on.

    Args:
        records: geometries; labels are not looked at.
        config: the recipe.
        out: folder for the model, split, logs and checkpoints.

    Returns:
        the description of the best model.
    """
    out = Path(out)
    begun = claim_folder(out, config)
    torch.manual_seed(config.loop.seed)
    elements = sorted({int(z) for r in records for z in set(r.numbers.tolist())})
    if begun:
        split = load_split(out / "split.json", records)
    elif config.held_out:
        split = split_held_out(records, config.held_out)
    else:
        split = make_split(records, config.validation, config.test, seed=config.loop.seed)
    save_split(split, out / "split.json")
    info = ModelInfo(
        kind="denoiser",
        name=config.name,
        config=config.model.model_dump(),
        elements=elements,
        level="coordinate denoising; no energies",
    )
    model = build(info)
    assert isinstance(model, Denoiser)
    loaders = [
        GraphLoader(
            [records[i] for i in indices],
            config.model.cutoff,
            config.loop.batch_atoms,
            config.loop.seed,
            shuffle,
            config.noise,
            torsions=config.torsions,
        )
        for indices, shuffle in ((split.train, True), (split.validation, False))
    ]
    report(_outline(split, elements, config))

    def keep(metrics: dict[str, float]) -> None:
        _save(model, info, config, metrics, out)

    module = DenoisingModule(model.train(), config.loop, info.architecture())
    fit(module, loaders[0], loaders[1], out, keep, progress, report)
    return load(out / "model.safetensors")[1]


def _outline(split: Split, elements: Sequence[int], config: PretrainConfig) -> str:
    turned = f" and rotations of {config.torsions:g}°" if config.torsions else ""
    return (
        f"denoising {len(split.train)} geometries ({len(elements)} elements), "
        f"{len(split.validation)} held back, {config.loop.steps} steps, noise of "
        f"{config.noise:g} Å{turned}"
    )


def _save(
    model: Denoiser,
    info: ModelInfo,
    config: PretrainConfig,
    metrics: dict[str, float],
    out: Path,
) -> None:
    provenance = {
        "recipe": config.model_dump(mode="json"),
        "mlpot": __version__,
        "torch": torch.__version__,
        "validation": metrics,
    }
    save(model, info.model_copy(update={"provenance": provenance}), out / "model.safetensors")
