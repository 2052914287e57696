"""What both recipes share: optimiser, averaging, logs, checkpoints, exact resume.

Lightning does the work; this file only sets it up.
"""

import json
import math
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mlpot.data.loader import GraphLoader, LabelledGraph
from mlpot.errors import CompileError, DivergedError, InputError, MLPotError, ModelFileError
from mlpot.models.checkpoint import write_atomically
from mlpot.models.compiled import cache_path, can_compile
from mlpot.models.tracing import state
from mlpot.train.optimizer import make_optimizer
from mlpot.train.step import CompiledStep, WithGradients

RESUME = "last.ckpt"
HISTORY = "history.json"  # written when a run has come to its end
#: atoms, in all steps together, from which compiling pays: on slow cores from the second run on
WORTHWHILE = 50_000
Config = TypeVar("Config", bound=BaseModel)


class LoopConfig(BaseModel):
    """How long and how fast to train. ``steps`` is rounded up to whole validations, so that the
    last step is always validated; a short run validates at least once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(2000, gt=0, description="optimiser steps")
    batch_atoms: int = Field(512, gt=0, description="atoms per batch, on average")
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, description="peak, reached after the warm-up")
    warmup: int = Field(200, ge=0, description="steps of linear warm-up; then cosine to zero")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    ema: float = Field(0.999, gt=0, lt=1, description="decay of the averaged weights")
    validate_every: int = Field(500, gt=0, description="steps")
    patience: int = Field(0, ge=0, description="validations without gain before stopping; 0: never")
    checkpoint_minutes: float = Field(5.0, gt=0, description="besides one at every validation")
    seed: int = 0
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's own choice")
    device: Literal["auto", "cpu", "gpu"] = "auto"  # not mps: energies are summed in float64
    devices: int = Field(1, ge=1, description="more than one: DistributedDataParallel")
    compile: Literal["auto", "yes", "no"] = Field(
        "auto", description="the step, on a CPU; auto: where it saves more time than it takes"
    )

    @model_validator(mode="after")
    def _whole_validations(self) -> "LoopConfig":
        every = min(self.validate_every, self.steps)
        steps = -(-self.steps // every) * every
        fitted = {"validate_every": every, "steps": steps, "warmup": min(self.warmup, steps // 2)}
        for name, value in fitted.items():
            object.__setattr__(self, name, value)  # the model is frozen for everyone else
        return self


class TrainingModule(L.LightningModule):
    """Base of the two recipes. A recipe defines `weights`, `outputs`, `observe` and `finish`."""

    model: torch.nn.Module
    terms = 1  # weights that the loss takes
    predictions = 0  # outputs beside the loss

    def __init__(self, model: torch.nn.Module, loop: LoopConfig, architecture: dict[str, Any]):
        super().__init__()
        self.model = model
        self.loop = loop
        shapes = [list(t.shape) for t in state(self.model)]
        self.key = {**architecture, "recipe": type(self).__name__, "shapes": shapes}
        self.compiled: CompiledStep | None = None

    def weights(self, batch: LabelledGraph) -> torch.Tensor:
        """What the sums in the loss of this batch are multiplied with, [K]."""
        raise NotImplementedError

    def outputs(self, weights: torch.Tensor, batch: LabelledGraph) -> tuple[torch.Tensor, ...]:
        """Loss, then predictions with a row an atom or a structure. It is traced: no decision in
        it may depend on values."""
        raise NotImplementedError

    def observe(self, outputs: Sequence[torch.Tensor], batch: LabelledGraph) -> None:
        """Add one validation batch to the running errors."""
        raise NotImplementedError

    def finish(self) -> dict[str, float]:
        """Errors over the validation set, among them ``loss``; starts anew."""
        raise NotImplementedError

    def prepare(self, device: str, threads: int, report: Callable[[str], None]) -> None:
        """Compile the step, where that pays.

        Args:
            device: ``cpu`` or ``gpu``.
            threads: cores that the compiled step uses.
        """
        if not wanted(self.loop, device, self.key):
            return
        if not cache_path(self.key).is_file():
            report("compiling the training step, once for this architecture: about a minute")
        try:
            self.compiled = CompiledStep(
                self.model, self.outputs, self.terms, self.predictions, self.key, threads
            )
        except (CompileError, ModelFileError) as error:
            if self.loop.compile == "yes":
                raise
            report(f"training goes on without: {error}")

    def evaluated(self, batch: LabelledGraph) -> tuple[torch.Tensor, ...]:
        """`outputs` of a batch; the loss carries gradients."""
        weights = self.weights(batch)
        if self.compiled is None:
            return self.outputs(weights, batch)
        (loss, *rest), gradients = self.compiled(weights, batch)
        return (WithGradients.apply(loss, gradients, *self.model.parameters()), *rest)

    def training_step(self, batch: LabelledGraph, index: int) -> torch.Tensor:
        loss = self.evaluated(batch)[0]
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss is {float(loss.detach())} at step {self.global_step}; look for "
                "damaged labels in the data, or lower learning_rate"
            )
        self.log("train/loss", loss.detach(), batch_size=1)
        return loss

    def validation_step(self, batch: LabelledGraph, index: int) -> None:
        with torch.enable_grad():  # forces are gradients, in validation too
            self.observe([out.detach() for out in self.evaluated(batch)], batch)

    def configure_optimizers(self) -> Any:
        loop = self.loop
        optimizer = make_optimizer(
            self.model, loop.optimizer, loop.learning_rate, loop.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _schedule(self, step: int) -> float:
        warm, total = self.loop.warmup, max(self.loop.steps, self.loop.warmup + 1)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warm) / (total - warm))))


def wanted(loop: LoopConfig, device: str, key: dict[str, Any]) -> bool:
    """Shall the steps of this run be compiled?"""
    possible = device == "cpu" and can_compile()
    if loop.compile == "yes" and not possible:
        raise InputError(
            "compile = 'yes' needs a CPU and a C++ compiler; install g++, or leave it to 'auto'"
        )
    if loop.compile == "auto":
        worthwhile = loop.steps * loop.batch_atoms >= WORTHWHILE
        return possible and (worthwhile or cache_path(key).is_file())
    return loop.compile == "yes"


class KeepBest(Callback):
    """Saves the averaged weights whenever validation improves. Must come before the averaging
    callback: at the end of a validation the averaged weights are still in place."""

    def __init__(self, save: Callable[[dict[str, float]], None]):
        self.save = save
        self.best = math.inf
        self.history: list[dict[str, float]] = []

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        metrics = pl_module.finish()
        pl_module.log_dict({f"val/{k}": v for k, v in metrics.items()})
        self.history.append({"step": float(trainer.global_step), **metrics})
        if metrics["loss"] < self.best:
            self.best = metrics["loss"]
            if trainer.is_global_zero:
                self.save(metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.history = state_dict["best"], state_dict["history"]


class Resume(Callback):
    """Writes ``last.ckpt`` after every validation, and by the clock in between. Must come last,
    so that what it stores of the other callbacks is up to date."""

    def __init__(self, path: Path, minutes: float):
        self.path = path
        self.seconds = 60 * minutes
        self._written = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        due = time.monotonic() - self._written > self.seconds
        # together: ranks have clocks of their own, and writing waits for all of them
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        part = self.path.with_name(self.path.name + ".part")
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            part.replace(self.path)  # a process killed while writing leaves the old one whole
        self._written = time.monotonic()


def fit(
    module: TrainingModule,
    train: GraphLoader,
    validation: GraphLoader,
    out: Path,
    save: Callable[[dict[str, float]], None],
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> None:
    """Train until steps or patience run out; go on from ``out/last.ckpt`` where there is one.

    A run that has come to its end (``out/history.json`` says so) is not trained again.

    Args:
        save: writes the model; called with the validation errors whenever they improve.

    Raises:
        MLPotError: interrupted; the same call goes on.
    """
    loop, history = module.loop, out / HISTORY
    if history.is_file():
        return
    keep = KeepBest(save)
    device = {"auto": "gpu" if torch.cuda.is_available() else "cpu"}.get(loop.device, loop.device)
    with _threads(loop.threads):
        module.prepare(device, torch.get_num_threads(), report)
        trainer = _trainer(loop, device, out, keep, progress)
        resume = out / RESUME
        start = str(resume) if resume.is_file() else None
        try:
            trainer.fit(module, train, validation, ckpt_path=start, weights_only=True)
        except (SystemExit, KeyboardInterrupt) as error:  # Lightning turns Ctrl-C into an exit
            raise MLPotError(
                f"interrupted at step {trainer.global_step} of {loop.steps}; give the same command "
                f"to go on from the last checkpoint in {out}"
            ) from error
        finally:
            if module.compiled:
                module.compiled.close()
    if trainer.is_global_zero:
        write_atomically(history, (json.dumps(keep.history, indent=1) + "\n").encode())
    trainer.strategy.barrier("the best model is on disk")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many torch threads (0 leaves them alone), and afterwards what there was."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trainer(loop: LoopConfig, device: str, out: Path, keep: KeepBest, progress: bool) -> L.Trainer:
    return L.Trainer(
        default_root_dir=out,
        accelerator=device,
        devices=loop.devices,
        max_steps=loop.steps,
        max_epochs=-1,
        val_check_interval=loop.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=loop.clip,
        inference_mode=False,
        callbacks=_callbacks(loop, keep, out, progress),
        logger=[CSVLogger(out, name="log"), TensorBoardLogger(out, name="tensorboard")],
        enable_progress_bar=progress,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=min(50, loop.validate_every),
    )


def _callbacks(loop: LoopConfig, keep: KeepBest, out: Path, progress: bool) -> list[Callback]:
    callbacks: list[Callback] = [
        keep,
        WeightAveraging(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(loop.ema)),
        LearningRateMonitor("step"),
    ]
    if progress:
        callbacks.append(StepBar())
    if loop.patience:
        callbacks.append(EarlyStopping("val/loss", patience=loop.patience))
    return [*callbacks, Resume(out / RESUME, loop.checkpoint_minutes)]


class StepBar(TQDMProgressBar):
    """One bar over all steps; epochs mean nothing to a run that is measured in steps."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        seen = trainer.callback_metrics
        shown = {"train/loss": "loss", "val/force_mae": "force MAE", "val/energy_mae": "energy MAE"}
        return {label: f"{float(seen[key]):.3g}" for key, label in shown.items() if key in seen}

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        trainer = self.trainer
        self.train_progress_bar.reset(trainer.max_steps)
        self.train_progress_bar.initial = self.train_progress_bar.n = trainer.global_step
        self.train_progress_bar.set_description("training")

    def on_train_epoch_start(self, *_: Any) -> None:
        """An epoch is nothing to show."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if trainer.global_step % 10 == 0 or trainer.global_step == trainer.max_steps:
            self.train_progress_bar.n = trainer.global_step
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))


def read_toml(path: str | Path, kind: type[Config]) -> Config:
    """A recipe from a TOML file; unknown keys are errors. ``held_out`` is relative to the file."""
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        if raw.get("held_out"):
            raw["held_out"] = str(path.parent / raw["held_out"])
        return kind.model_validate(raw)
    except (OSError, tomllib.TOMLDecodeError, TypeError, ValidationError) as error:
        raise InputError(f"{path} is no valid {kind.__name__}: {error}") from error


def claim_folder(out: Path, config: BaseModel, start: str = "") -> bool:
    """Store the resolved configuration beside the results; true if a run is there to go on with.

    Raises:
        InputError: the folder holds a run with another configuration or another start; going on
            would mix two recipes.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "config.json"
    told = json.dumps({"recipe": config.model_dump(mode="json"), "start": start}, indent=2) + "\n"
    begun = path.is_file() and (out / RESUME).is_file()
    if begun and (changed := _changed(json.loads(path.read_text()), json.loads(told))):
        raise InputError(
            f"{out} holds a run with another configuration or starting model ({path}: "
            f"{', '.join(changed)}). Choose another output folder, or remove this one to start anew"
        )
    write_atomically(path, told.encode())
    return begun


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    old, new = ({"starting model": d["start"], **d["recipe"]} for d in (before, now))
    for name in {"floor", "torsions"} & new.keys():
        old.setdefault(name, 0.0)  # of runs that were begun before there was one
    return sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))


def quiet() -> None:
    """Silence Lightning's tips, which are about clusters and dataloader workers."""
    import logging
    import warnings

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
