"""Recipe: train energies and forces, from a pretrained model or from nothing.

Read top to bottom: split, reference energies, model, loop. What starts it off may be a
potential (its head goes on learning), a denoised backbone (gets a new head), or nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase.data import chemical_symbols, covalent_radii
from pydantic import BaseModel, ConfigDict, Field

from mlpot import __version__
from mlpot.data.lengths import pair_name, shortest_lengths
from mlpot.data.loader import GraphLoader, LabelledGraph
from mlpot.data.record import Record, check_records
from mlpot.data.references import (
    check_units,
    reference_energies,
    reference_sum,
    split_isolated,
)
from mlpot.data.splits import Split, load_split, make_split, save_split, split_held_out
from mlpot.errors import DataError
from mlpot.graph import Graph
from mlpot.models.checkpoint import (
    ModelInfo,
    build,
    load,
    save,
)
from mlpot.models.potential import Denoiser, Potential, Prediction
from mlpot.models.priors import REACH
from mlpot.models.visnet import ViSNetConfig
from mlpot.train.guard import add_missing
from mlpot.train.loop import HISTORY, LoopConfig, TrainingModule, claim_folder, fit
from mlpot.train.losses import Errors, ErrorSums, energy_force_loss

#: a model to start from, and its description
Start = tuple[Potential | Denoiser, ModelInfo]


class FinetuneLoop(LoopConfig):
    """Defaults for a few hundred frames of one molecule.

    Muon on batches of a few frames has smaller errors than AdamW on twice as many, from 50 and
    from 200 frames of aspirin (rmd17 and rmd17-adamw in benchmarks/accuracy/results). From
    nothing, a learning rate of 3e-3 is better.
    """

    batch_atoms: int = Field(100, gt=0)
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: float = Field(1e-3, gt=0)
    warmup: int = Field(100, ge=0)
    ema: float = Field(0.99, gt=0, lt=1)
    validate_every: int = Field(100, gt=0)


class FinetuneConfig(BaseModel):
    """Energies and forces: what `mlpot finetune` reads from a TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "finetuned"
    level: str = Field("", description="label source, for the model's description")
    train: int | float | None = Field(None, description="share or number of frames; None: the rest")
    validation: int | float = Field(0.1, description="share (below 1) or number of frames")
    test: int | float = Field(0.1, description="share (below 1) or number of frames")
    split_by: Literal["auto", "group", "frame"] = Field(
        "auto", description="group keeps a molecule in one part; auto does if there are ten or more"
    )
    held_out: str = Field("", description="JSON file of molecules held out, instead of a new split")
    energy_weight: float = Field(2.0, ge=0)
    force_weight: float = Field(1.0, ge=0)
    model: ViSNetConfig = Field(ViSNetConfig(), description="used when starting from nothing")
    prior: Literal["none", "zbl"] = Field("zbl", description="unless a potential is the start")
    floor: float = Field(
        0.85,
        ge=0,
        le=1,
        description="features see no pair closer than this share of its shortest length in "
        "training, the start's included; below 1 is a margin for narrow data, 0 is no floor",
    )
    loop: FinetuneLoop = FinetuneLoop()


class EnergyForceModule(TrainingModule):
    """Lightning's view of a Potential."""

    terms, predictions = 2, 2

    def __init__(self, model: Potential, config: FinetuneConfig, architecture: dict[str, Any]):
        super().__init__(model, config.loop, architecture)
        self.factors = (config.energy_weight, config.force_weight)
        self._errors = ErrorSums()

    def weights(self, batch: LabelledGraph) -> torch.Tensor:
        sizes = (batch.energy.shape[0], batch.forces.shape[0])
        each = [f / n for f, n in zip(self.factors, sizes, strict=True)]
        return torch.tensor(each, dtype=batch.forces.dtype, device=batch.forces.device)

    def outputs(self, weights: torch.Tensor, batch: LabelledGraph) -> tuple[torch.Tensor, ...]:
        prediction = self.model(batch.graph)
        loss = energy_force_loss(prediction, batch, weights)
        return loss, prediction.energy, prediction.forces

    def observe(self, outputs: Sequence[torch.Tensor], batch: LabelledGraph) -> None:
        self._errors.add(outputs[1], outputs[2], batch)

    def finish(self) -> dict[str, float]:
        errors, self._errors = self._errors.result(), ErrorSums()
        loss = self.factors[0] * errors.energy_mae + self.factors[1] * errors.force_mae
        return {"loss": loss, **errors._asdict()}


def finetune(
    records: Sequence[Record],
    config: FinetuneConfig,
    out: str | Path,
    start: str | Path | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
    usual: Callable[[Record], bool] | None = None,
) -> tuple[ModelInfo, Errors]:
    """Train and write ``out/model.safetensors``; a run that was cut off goes on.

    Args:
        records: structures with energy and forces, one level of theory.
        config: the recipe.
        out: folder for the model, split, logs and checkpoints.
        start: model file to start from; None starts from nothing.
        usual: frames that set the line of the guard; see `mlpot.train.guard.add_missing`.

    Returns:
        the description of the best model, and its errors on the test part, if there is one.

    Raises:
        DataError: labels are missing or not finite, or an element is covered by no frame.
    """
    if config.level:  # the user's word for all of it, whatever the files say
        records = [replace(r, level=config.level) for r in records]
    isolated, records = split_isolated(records)
    check_records(records, need_energy=True, need_forces=True)
    out = Path(out)
    source = None if start is None else load(start)
    begun = claim_folder(out, config, source[1].weights_sha256 if source else "")
    torch.manual_seed(config.loop.seed)
    if begun:  # refuses other data than the run began with
        split = load_split(out / "split.json", records)
    else:
        split = divide(records, config)
        save_split(split, out / "split.json")
    train = [records[i] for i in split.train]
    _check_learned(train, records)
    model, info = _start(train, isolated, config, source)
    batches = {
        "train": _loader(train, model.cutoff, config, shuffle=True),
        "validation": _loader([records[i] for i in split.validation], model.cutoff, config),
    }
    report(_outline(split, source, config, finished=(out / HISTORY).is_file()))

    def keep(metrics: dict[str, float]) -> None:
        described = info.model_copy(update={"provenance": _provenance(config, source, metrics)})
        save(model, described, out / "model.safetensors")

    module = EnergyForceModule(model.train(), config, info.architecture())
    fit(module, batches["train"], batches["validation"], out, keep, progress, report)
    began = None if source is None or source[1].extrapolation is None else Path(str(start))
    best, described = add_missing(out / "model.safetensors", records, split, began, usual, report)
    held_back = split.test if len(split.test) else split.validation
    errors = evaluate(best, [records[i] for i in held_back], config.loop.batch_atoms)
    report(f"{'test' if len(split.test) else 'validation'}: {errors.describe()}")
    return described, errors


def _outline(split: Split, source: Start | None, config: FinetuneConfig, finished: bool) -> str:
    if finished:
        return "this run is finished already; it is not trained again"
    origin = source[1].name if source else "random weights"
    return (
        f"training on {len(split.train)} frames, validating on {len(split.validation)}, testing "
        f"on {len(split.test)}, split by {split.by}; from {origin}, {config.loop.steps} steps"
    )


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
    model.eval()
    return measure(
        model, records, model.cutoff, model.scale.dtype, model.scale.device, batch_atoms, done
    )


def measure(
    predict: Callable[[Graph], Prediction],
    records: Sequence[Record],
    cutoff: float,
    dtype: torch.dtype,
    device: torch.device,
    batch_atoms: int = 512,
    done: Callable[[int], Any] = lambda frames: None,
) -> Errors:
    """`evaluate` for anything that predicts, on its device and in its dtype."""
    sums = ErrorSums()
    for batch in GraphLoader(records, cutoff, batch_atoms, shuffle=False, dtype=dtype):
        graph = type(batch.graph)(*(f.to(device) for f in batch.graph))
        moved = LabelledGraph(graph, batch.energy.to(device), batch.forces.to(device), batch.noise)
        prediction = predict(graph)
        sums.add(prediction.energy, prediction.forces, moved)
        done(batch.energy.shape[0])
    return sums.result()


def divide(records: Sequence[Record], config: FinetuneConfig) -> Split:
    """Training, validation and test frames of this recipe."""
    if config.held_out:
        return split_held_out(records, config.held_out)
    by = config.split_by
    if by == "auto":
        by = "group" if len({r.group for r in records}) >= 10 else "frame"
    return make_split(
        records, config.validation, config.test, config.train, seed=config.loop.seed, by=by
    )


def _start(
    records: Sequence[Record],
    isolated: Sequence[Record],
    config: FinetuneConfig,
    start: Start | None,
) -> tuple[Potential, ModelInfo]:
    """The model before its first step, with reference energies that fit these labels."""
    common: dict[str, Any] = {
        "kind": "potential",
        "name": config.name,
        "elements": sorted({int(z) for r in records for z in np.unique(r.numbers)}),
        "level": config.level or records[0].level or "unknown",
        "scale": _force_scale(records),
        "provenance": {},
    }
    if start is None:
        source, info = None, ModelInfo(config=config.model.model_dump())
    else:
        source, info = start
        _check_covered(common["elements"], info)
    if isinstance(source, Potential):
        common["scale"] = info.scale
        common["reference_energies"] = _shifted_references(source, records, config)
    else:
        common["reference_energies"] = reference_energies(records, isolated)
        common["prior"] = config.prior
    common["floors"] = _floors(records, config, info.model_copy(update=common), source)
    info = info.model_copy(update=common)
    model = build(info)
    assert isinstance(model, Potential)
    if source is not None:
        model.backbone.load_state_dict(source.backbone.state_dict())
    if isinstance(source, Potential):
        model.head.load_state_dict(source.head.state_dict())
    return model, info


def _floors(
    records: Sequence[Record],
    config: FinetuneConfig,
    info: ModelInfo,
    source: Potential | Denoiser | None,
) -> dict[str, float]:
    """Å, of every pair of elements of the new model: the start's, or what follows from these
    frames where that is shorter. A pair out of reach in all of them counts as seen at the cutoff.

    A start that was trained without floors may know more than these frames show. Unless they are
    said to be complete (a floor of 1), it keeps its say down to where the wall ends anyway."""
    if not config.floor or info.prior == "none":
        return {}
    cutoff = float(info.config["cutoff"])
    found, known = shortest_lengths(records, cutoff), {}
    unknown = isinstance(source, Potential) and not info.floors and config.floor < 1
    for a, b in combinations_with_replacement(info.elements, 2):
        pair = pair_name(a, b)
        length = config.floor * found.get(pair, cutoff)
        if unknown:
            length = min(length, REACH * (covalent_radii[a] + covalent_radii[b]))
        known[pair] = round(min(length, info.floors.get(pair, length)), 4)
    return known


def _check_learned(train: Sequence[Record], records: Sequence[Record]) -> None:
    def elements(some: Sequence[Record]) -> set[int]:
        return {int(z) for r in some for z in np.unique(r.numbers)}

    unseen = sorted(elements(records) - elements(train))
    if unseen:
        raise DataError(
            f"{_symbols(unseen)} occurs in frames held out for validation or test only, so that "
            "nothing could learn it. Train on more frames, take another seed, or leave those out"
        )


def _check_covered(elements: Sequence[int], info: ModelInfo) -> None:
    unknown = sorted(set(elements) - set(info.elements))
    if unknown:
        raise DataError(
            f"the data hold {_symbols(unknown)}, which {info.name} has never seen (it covers "
            f"{_symbols(info.elements)}). Start from nothing (--from none), or leave those "
            "frames out"
        )


def _symbols(numbers: Sequence[int]) -> str:
    return ", ".join(chemical_symbols[z] for z in numbers)


def _shifted_references(
    source: Potential, records: Sequence[Record], config: FinetuneConfig
) -> dict[int, float]:
    """Reference energies of a potential, moved to the level of theory of these records.

    The smallest move per element that does it: one molecule cannot tell its elements apart, and
    references that only fit in sum would be useless for the next molecule.
    """
    sample = records[:: max(1, len(records) // 1000)]
    known = {z: float(source.reference_energies[z]) for z in source.elements}
    explained = np.array(_interaction(source, sample, config.loop.batch_atoms))
    explained += reference_sum(sample, known)
    check_units(sample, known, explained.tolist())
    rest = [
        replace(r, energy=(r.energy or 0.0) - e) for r, e in zip(sample, explained, strict=True)
    ]
    return {z: known[z] + move for z, move in reference_energies(rest).items()}


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
    config: FinetuneConfig, start: Start | None, metrics: dict[str, float]
) -> dict[str, Any]:
    return {
        "recipe": config.model_dump(mode="json"),
        "start": {"name": start[1].name, "sha256": start[1].sha256} if start else None,
        "mlpot": __version__,
        "torch": torch.__version__,
        "validation": metrics,
    }


__all__ = ["EnergyForceModule", "FinetuneConfig", "Split", "evaluate", "finetune"]
