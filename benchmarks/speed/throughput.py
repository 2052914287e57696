"""Work in batches: replicas of a molecule in one call, and training steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.speed.candidates import JITTER, Step
from benchmarks.speed.geometries import load
from benchmarks.speed.ours import MODEL
from benchmarks.speed.timing import Effort, Row, alternate, guarded, ratio, set_threads

REPLICAS = 32
REPLICA_SYSTEM = "ethanol"
TRAIN_SYSTEMS = ("ethanol", "aspirin", "alanine-dipeptide")
TRAIN_FRAMES = 64  # of each
BATCH_ATOMS = 512
LABELS, DENOISING = "training on energies and forces", "denoising"
DENOISED, NOISE = "pretrained-visnet-denoised", 0.1  # Å, of its recipe


def replicas(threads: int, effort: Effort) -> list[dict[str, Any]]:
    """One graph of one molecule against one graph of many: aggregate evaluations a second.

    Returns:
        per engine and thread count: ms of both, and ``gain``, how much more all replicas
        together advance in a second than one alone.
    """
    from mlpot.deploy.engines import ENGINES

    rows = [
        Row(engine, str(size), count)  # "1" and "32" in place of a route
        for engine in ENGINES
        for count in sorted({1, threads})
        for size in (1, REPLICAS)
    ]
    steps = []
    for row in rows:
        set_threads(row.threads)
        steps += _started(row, partial(_predict, row.name, int(row.route)))
    alternate(steps, effort.rounds, effort.block)
    return [_compared(one, many) for one, many in zip(rows[::2], rows[1::2], strict=True)]


def _compared(one: Row, many: Row) -> dict[str, Any]:
    done = one.status == many.status == "timed"
    return {
        "engine": one.name,
        "threads": one.threads,
        "status": one.reason or many.reason or "timed",
        "one_ms": one.median if done else None,
        "many_ms": many.median if done else None,
        "gain": REPLICAS * ratio(one, many) if done else None,
    }


def _started(row: Row, make: Callable[[], Step]) -> list[tuple[Row, Step]]:
    """The row with its step, called once; nothing if that fails, and the row says why."""
    steps: list[Step] = []

    def first() -> None:
        step = make()
        step()
        steps.append(step)

    return [(row, steps[0])] if guarded(row, first) else []


def _predict(engine: str, size: int) -> Step:
    """`DeployedModel.predict` of a batch, on new positions in every call."""
    import torch

    from mlpot.deploy.load import load as load_model
    from mlpot.graph import batch

    model, atoms = load_model(MODEL, engine=engine, device="cpu"), load(REPLICA_SYSTEM)
    graph = batch([model.bind(atoms.numbers).graph(atoms.positions)] * size)

    def step() -> object:
        noise = JITTER * torch.randn_like(graph.positions)
        return model.predict(graph._replace(positions=graph.positions + noise)).forces

    return step


def training_records() -> list[Any]:
    """Rattled geometries labelled by the shipped model: the labels' values cost nothing."""
    from mlpot.data.record import Record
    from mlpot.deploy.load import load as load_model

    model, rng = load_model(MODEL, device="cpu"), np.random.default_rng(0)
    records = []
    for name in TRAIN_SYSTEMS:
        atoms = load(name)
        for _ in range(TRAIN_FRAMES):
            positions = atoms.positions + rng.normal(0.0, 0.02, atoms.positions.shape)
            result = model(atoms.numbers, positions)
            records.append(
                Record(atoms.numbers, positions, result.energy, result.forces, group=name)
            )
    return records


def trainer(records: list[Any], task: str, compile_: str, threads: int) -> Callable[[], int]:
    """One pass over the records: graphs, loss, gradient of the weights, optimiser step.

    Args:
        task: `LABELS` or `DENOISING`.
        compile_: ``yes`` or ``no``, the recipe's ``loop.compile``.

    Returns:
        a function that trains on all records once and says how many there were.
    """
    import torch

    from mlpot.data.loader import GraphLoader

    module = {LABELS: _on_labels, DENOISING: _denoising}[task](compile_)
    module.prepare("cpu", threads, lambda said: None)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)
    noise = NOISE if task == DENOISING else 0.0
    loader = GraphLoader(records, module.model.cutoff, BATCH_ATOMS, noise=noise)

    def epoch() -> int:
        for index, batch in enumerate(loader):
            optimizer.zero_grad()
            module.training_step(batch, index).backward()
            optimizer.step()
        return len(records)

    return epoch


def _on_labels(compile_: str) -> Any:
    from mlpot.models.checkpoint import load_potential
    from mlpot.train.finetune import EnergyForceModule, FinetuneConfig
    from mlpot.zoo import resolve

    model, info = load_potential(resolve(MODEL))
    config = FinetuneConfig.model_validate({"loop": {"compile": compile_}})
    return EnergyForceModule(model.train(), config, info.architecture())


def _denoising(compile_: str) -> Any:
    from mlpot.models.checkpoint import load
    from mlpot.train.loop import LoopConfig
    from mlpot.train.pretrain import DenoisingModule
    from mlpot.zoo import resolve

    model, info = load(resolve(DENOISED))
    loop = LoopConfig.model_validate({"compile": compile_})
    return DenoisingModule(model.train(), loop, info.architecture())


#: name -> the recipe's ``loop.compile``
TRAINERS = {"eager": "no", "compiled": "yes"}


def training(threads: int, effort: Effort) -> list[dict[str, Any]]:
    """Molecules a second in batches of 512 atoms; mean of 17 atoms each. On one thread as well."""
    records = training_records()
    rows = [
        Row(name, task, count)
        for task in (LABELS, DENOISING)
        for name in TRAINERS
        for count in sorted({1, threads})
    ]
    steps = []
    for row in rows:
        set_threads(row.threads)
        compile_ = TRAINERS[row.name]
        steps += _started(row, partial(trainer, records, row.route, compile_, row.threads))
    alternate(steps, max(2, effort.rounds // 3), effort.block)
    return [
        {
            "task": row.route,
            "trainer": row.name,
            "threads": row.threads,
            "status": row.reason or row.status,
            "molecules_per_s": 1e3 * len(records) / row.median if row.ms else None,
        }
        for row in rows
    ]
