"""What both recipes share: optimiser, averaging, logs, checkpoints, exact resume.

Lightning does the work; this file only sets it up.
"""

import math
import os
import time
import tomllib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlpot.data.loader import GraphLoader
from mlpot.errors import InputError
from mlpot.models.checkpoint import write_atomically

RESUME = "last.ckpt"
Config = TypeVar("Config", bound=BaseModel)


class LoopConfig(BaseModel):
    """How long and how fast to train."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(2000, gt=0, description="optimiser steps")
    batch_atoms: int = Field(512, gt=0, description="atoms per batch, on average")
    learning_rate: float = Field(1e-3, gt=0, description="peak, reached after the warm-up")
    warmup: int = Field(200, ge=0, description="steps of linear warm-up; then cosine to zero")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    ema: float = Field(0.999, gt=0, lt=1, description="decay of the averaged weights")
    validate_every: int = Field(500, gt=0, description="steps")
    patience: int = Field(0, ge=0, description="validations without gain before stopping; 0: never")
    checkpoint_minutes: float = Field(5.0, gt=0)
    seed: int = 0
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves torch's own choice")
    device: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int = Field(1, ge=1, description="more than one: DistributedDataParallel")


class TrainingModule(L.LightningModule):
    """Base of the two recipes. A recipe defines `loss`, `observe` and `finish`."""

    def __init__(self, loop: LoopConfig):
        super().__init__()
        self.loop = loop

    def loss(self, batch: Any) -> torch.Tensor:
        raise NotImplementedError

    def observe(self, batch: Any) -> None:
        """Add one validation batch to the running errors."""
        raise NotImplementedError

    def finish(self) -> dict[str, float]:
        """Errors over the validation set, among them ``loss``; starts anew."""
        raise NotImplementedError

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self.loss(batch)
        if not torch.isfinite(loss):
            raise InputError(
                f"the loss is {float(loss.detach())} at step {self.global_step}; look for "
                "damaged labels in the data, or lower learning_rate"
            )
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=1)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        with torch.enable_grad():  # forces are gradients, in validation too
            self.observe(batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.loop.learning_rate, weight_decay=self.loop.weight_decay
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
        pl_module.log_dict({f"val/{k}": v for k, v in metrics.items()}, prog_bar=True)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        self.history.append({"step": float(trainer.global_step), **metrics})
        if metrics["loss"] < self.best:
            self.best = metrics["loss"]
            self.save(metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.history = state_dict["best"], state_dict["history"]


def fit(
    module: TrainingModule,
    train: GraphLoader,
    validation: GraphLoader,
    out: Path,
    save: Callable[[dict[str, float]], None],
    progress: bool = True,
) -> dict[str, Any]:
    """Train until steps, patience or Ctrl-C; go on from ``out/last.ckpt`` where there is one.

    Args:
        save: writes the model; called with the validation errors whenever they improve.

    Returns:
        seconds of this call, steps in all, and the validation history.
    """
    loop = module.loop
    if loop.threads:
        torch.set_num_threads(loop.threads)
    keep = KeepBest(save)
    trainer = L.Trainer(
        default_root_dir=out,
        accelerator=loop.device,
        devices=loop.devices,
        max_steps=loop.steps,
        max_epochs=-1,
        val_check_interval=loop.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=loop.clip,
        inference_mode=False,
        callbacks=_callbacks(loop, keep, out),
        logger=[CSVLogger(out, name="log"), TensorBoardLogger(out, name="tensorboard")],
        enable_progress_bar=progress,
        enable_model_summary=False,
        log_every_n_steps=min(50, loop.validate_every),
    )
    resume = out / RESUME
    start = time.perf_counter()
    trainer.fit(
        module,
        train,
        validation,
        ckpt_path=str(resume) if resume.is_file() else None,
        weights_only=True,
    )
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "steps": trainer.global_step, "history": keep.history}


def _callbacks(loop: LoopConfig, keep: KeepBest, out: Path) -> list[Callback]:
    """Averaging, logs, and one checkpoint file, written by steps and by the clock."""
    last: dict[str, Any] = {
        "dirpath": out,
        "filename": RESUME.removesuffix(".ckpt"),
        "save_top_k": 1,
        "enable_version_counter": False,
    }
    callbacks: list[Callback] = [
        keep,
        EMAWeightAveraging(decay=loop.ema, use_buffers=False),
        LearningRateMonitor("step"),
        ModelCheckpoint(**last, train_time_interval=timedelta(minutes=loop.checkpoint_minutes)),
        ModelCheckpoint(**last, every_n_train_steps=loop.validate_every),
    ]
    if loop.patience:
        callbacks.append(EarlyStopping("val/loss", patience=loop.patience))
    return callbacks


def read_toml(path: str | Path, kind: type[Config]) -> Config:
    """A recipe from a TOML file; unknown keys are errors."""
    try:
        with open(path, "rb") as file:
            return kind.model_validate(tomllib.load(file))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise InputError(f"{path} is no valid {kind.__name__}: {error}") from error


def write_config(config: BaseModel, out: Path) -> None:
    """The resolved configuration, beside the results. A second run must not differ from it,
    or resuming would mix two recipes."""
    path, text = out / "config.json", config.model_dump_json(indent=2) + "\n"
    if path.is_file() and (out / RESUME).is_file() and path.read_text() != text:
        raise InputError(
            f"{out} holds a run with another configuration ({path}). Choose another output "
            "folder, or remove this one to start anew"
        )
    write_atomically(path, text.encode())


def quiet() -> None:
    """Silence Lightning's tips, which are about clusters and dataloader workers."""
    import logging
    import warnings

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
