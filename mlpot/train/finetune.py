"""Recipe: train energies and forces, from a pretrained model or from nothing.

Read top to bottom: split, reference energies, model, loop. What starts it off may be a
potential (its head goes on learning), a denoised backbone (gets a new head), or nothing.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mlpot import __version__
from mlpot.data.loader import GraphLoader, LabelledGraph
from mlpot.data.record import Record, check_records
from mlpot.data.references import fit_references
from mlpot.data.splits import Split, make_split, save_split
from mlpot.errors import DataError
from mlpot.models.checkpoint import ModelInfo, build, load, save
from mlpot.models.potential import Potential
from mlpot.models.visnet import ViSNetConfig
from mlpot.train.loop import LoopConfig, TrainingModule, fit, write_config
from mlpot.train.losses import Errors, ErrorSums, energy_force_loss


class FinetuneConfig(BaseModel):
    """Energies and forces: what `mlpot finetune` reads from a TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "finetuned"
    level: str = Field("", description="label source, for the model's description")
    train: float = Field(0.8, gt=0, description="share, or count if above 1")
    validation: float = Field(0.1, gt=0, description="share, or count if above 1")
    test: float = Field(0.1, ge=0, description="share, or count if above 1")
    split_by: str = Field("auto", description="group (molecule), frame, or auto")
    energy_weight: float = Field(2.0, ge=0)
    force_weight: float = Field(1.0, ge=0)
    model: ViSNetConfig = Field(ViSNetConfig(), description="used when starting from nothing")
    loop: LoopConfig = LoopConfig(learning_rate=5e-4, warmup=100, validate_every=100)


class EnergyForceModule(TrainingModule):
    """Lightning's view of a Potential."""

    def __init__(self, model: Potential, config: FinetuneConfig):
        super().__init__(config.loop)
        self.model = model
        self.weights = (config.energy_weight, config.force_weight)
        self._errors = ErrorSums()

    def loss(self, batch: LabelledGraph) -> torch.Tensor:
        return energy_force_loss(self.model(batch.graph), batch, *self.weights)

    def observe(self, batch: LabelledGraph) -> None:
        self._errors.add(self.model(batch.graph), batch)

    def finish(self) -> dict[str, float]:
        errors, self._errors = self._errors.result(), ErrorSums()
        loss = self.weights[0] * errors.energy_mae + self.weights[1] * errors.force_mae
        return {"loss": loss, **errors._asdict()}


def finetune(
    records: Sequence[Record],
    config: FinetuneConfig,
    out: str | Path,
    start: str | Path | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> tuple[ModelInfo, Errors]:
    """Train and write ``out/model.safetensors``; a run that was cut off goes on.

    Args:
        records: structures with energy and forces, one level of theory.
        config: the recipe.
        out: folder for the model, split, logs and checkpoints.
        start: model file to start from; None starts from nothing.

    Returns:
        the description of the best model, and its errors on the test part (on the
        validation part where there is no test part).

    Raises:
        DataError: labels are missing or not finite, or an element is covered by no frame.
    """
    check_records(records, need_energy=True, need_forces=True)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_config(config, out)
    torch.manual_seed(config.loop.seed)
    split = make_split(
        records,
        config.train,
        config.validation,
        config.test,
        seed=config.loop.seed,
        by=config.split_by,
    )
    save_split(split, out / "split.json")
    train = [records[i] for i in split.train]
    model, info = _start(train, config, start)
    batches = {
        "train": _loader(train, model.cutoff, config, shuffle=True),
        "validation": _loader([records[i] for i in split.validation], model.cutoff, config),
    }
    report(
        f"training on {len(split.train)} frames, validating on {len(split.validation)}, testing "
        f"on {len(split.test)}; from {start or 'random weights'}; {config.loop.steps} steps of "
        f"about {config.loop.batch_atoms} atoms"
    )

    def keep(metrics: dict[str, float]) -> None:
        described = info.model_copy(update={"provenance": _provenance(config, start, metrics)})
        save(model, described, out / "model.safetensors")

    module = EnergyForceModule(model.train(), config)
    fit(module, batches["train"], batches["validation"], out, keep, progress)
    best, described = load(out / "model.safetensors")
    assert isinstance(best, Potential)
    held_back = split.test or split.validation
    errors = evaluate(best, [records[i] for i in held_back], config.loop.batch_atoms)
    report(f"{'test' if split.test else 'validation'}: {errors.describe()}")
    return described, errors


def evaluate(
    model: Potential,
    records: Sequence[Record],
    batch_atoms: int = 512,
    done: Callable[[int], Any] = lambda frames: None,
) -> Errors:
    """Errors of a model on labelled structures.

    Args:
        done: called after every batch with the number of frames in it.
    """
    sums = ErrorSums()
    model.eval()
    device = model.scale.device
    for batch in GraphLoader(
        records, model.cutoff, batch_atoms, shuffle=False, dtype=model.scale.dtype
    ):
        graph = type(batch.graph)(*(f.to(device) for f in batch.graph))
        moved = LabelledGraph(graph, batch.energy.to(device), batch.forces.to(device), batch.noise)
        sums.add(model(graph), moved)
        done(batch.energy.shape[0])
    return sums.result()


def _start(
    records: Sequence[Record], config: FinetuneConfig, start: str | Path | None
) -> tuple[Potential, ModelInfo]:
    """The model before its first step, with reference energies that fit these labels."""
    elements = sorted({int(z) for r in records for z in np.unique(r.numbers)})
    level = config.level or records[0].level or "unknown"
    common = {"name": config.name, "elements": elements, "level": level}
    if start is None:
        references = fit_references(records)
        scale = _force_scale(records)
        info = ModelInfo(
            config=config.model.model_dump(), reference_energies=references, scale=scale, **common
        )
        model = build(info)
        assert isinstance(model, Potential)
        return model, info
    source, known = load(start)
    unknown = set(elements) - set(known.elements)
    if unknown:
        raise DataError(
            f"the data hold atomic numbers {sorted(unknown)}, which {start} has never seen "
            f"(it covers {known.elements}). Start from nothing (--from none), or leave those "
            "frames out"
        )
    # A potential already explains part of the energy: references explain the rest, so that
    # the first step does not have to unlearn the difference between two levels of theory.
    sample = records[:: max(1, len(records) // 2000)]
    scale = known.scale if isinstance(source, Potential) else _force_scale(records)
    if isinstance(source, Potential):
        offset = _interaction(source, sample, config.loop.batch_atoms)
        references = fit_references(sample, offset)
    else:
        references = fit_references(records)
    info = known.model_copy(
        update={"kind": "potential", "reference_energies": references, "scale": scale, **common}
    )
    model = build(info)
    assert isinstance(model, Potential)
    model.backbone.load_state_dict(source.backbone.state_dict())
    if isinstance(source, Potential):
        model.head.load_state_dict(source.head.state_dict())
    return model, info


def _interaction(model: Potential, records: Sequence[Record], batch_atoms: int) -> list[float]:
    """What a model says before reference energies, eV per frame (forces come along unused)."""
    model.eval()
    loader = GraphLoader(records, model.cutoff, batch_atoms, shuffle=False)
    return [float(e) for batch in loader for e in model(batch.graph).interaction]


def _force_scale(records: Sequence[Record]) -> float:
    """Root mean square force component (eV/Å): the size of energy differences over 1 Å."""
    squares = [np.square(r.forces).mean() for r in records if r.forces is not None]
    return float(np.sqrt(np.mean(squares)))


def _loader(
    records: Sequence[Record], cutoff: float, config: FinetuneConfig, shuffle: bool = False
) -> GraphLoader:
    return GraphLoader(records, cutoff, config.loop.batch_atoms, config.loop.seed, shuffle)


def _provenance(
    config: FinetuneConfig, start: str | Path | None, metrics: dict[str, float]
) -> dict[str, Any]:
    return {
        "recipe": config.model_dump(mode="json"),
        "start": str(start) if start else None,
        "mlpot": __version__,
        "torch": torch.__version__,
        "validation": metrics,
    }


__all__ = ["EnergyForceModule", "FinetuneConfig", "Split", "evaluate", "finetune"]
