"""The compiled training step gives eager's loss and gradients, in parts and on threads."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mlpot.data.loader import GraphLoader, LabelledGraph
from mlpot.data.record import Record
from mlpot.models.checkpoint import ModelInfo, build
from mlpot.models.compiled import can_compile
from mlpot.models.potential import Denoiser, Potential
from mlpot.models.visnet import ViSNetConfig
from mlpot.train.finetune import EnergyForceModule, FinetuneConfig, FinetuneLoop, finetune
from mlpot.train.loop import LoopConfig, TrainingModule, wanted
from mlpot.train.pretrain import DenoisingModule
from mlpot.train.step import parts
from tests.helpers import FLOORS, REFERENCES, ethanol, methanol_with_water

needs_compiler = pytest.mark.skipif(not can_compile(), reason="no C++ compiler on this machine")
MODEL = ViSNetConfig(layers=2, channels=16, heads=16, radial=8)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Two molecules with labels that need not be physical."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(60):
        atoms = (ethanol, methanol_with_water)[i % 2]()
        positions = atoms.positions + 0.05 * rng.standard_normal(atoms.positions.shape)
        total = sum(REFERENCES[z] for z in atoms.numbers) + rng.standard_normal()
        forces = rng.standard_normal(positions.shape)
        made.append(Record(atoms.numbers.astype(np.int64), positions, total, forces, group=str(i)))
    return made


@pytest.fixture(scope="module")
def batch(records: list[Record]) -> LabelledGraph:
    return next(iter(GraphLoader(records, 5.0, 10**6, shuffle=False, noise=0.05)))


def module(kind: str) -> TrainingModule:
    """Of the architecture that `finetune` makes of ``MODEL``: it is compiled once for all here."""
    torch.manual_seed(0)
    info = ModelInfo(
        kind="denoiser" if kind == "denoising" else "potential",
        config=MODEL.model_dump(),
        elements=sorted(REFERENCES),
        reference_energies=REFERENCES,
        **({} if kind == "denoising" else {"prior": "zbl", "floors": FLOORS}),  # type: ignore
    )
    model = build(info).train()
    loop = FinetuneLoop(compile="yes")
    if kind == "denoising":
        assert isinstance(model, Denoiser)
        return DenoisingModule(model, loop, info.architecture())
    assert isinstance(model, Potential)
    return EnergyForceModule(model, FinetuneConfig(loop=loop), info.architecture())


def test_parts_hold_the_whole_batch(batch: LabelledGraph) -> None:
    pieces = parts(batch, least=3)
    assert len(pieces) >= 3
    assert torch.equal(torch.cat([p.energy for p in pieces]), batch.energy)
    assert torch.equal(torch.cat([p.forces for p in pieces]), batch.forces)
    assert torch.equal(torch.cat([p.noise for p in pieces]), batch.noise)


@needs_compiler
@pytest.mark.parametrize("kind", ["energies and forces", "denoising"])
def test_a_compiled_step_is_the_eager_step(kind: str, batch: LabelledGraph) -> None:
    trained = module(kind)
    want = trained.evaluated(batch)
    want[0].backward()
    gradients = [p.grad for p in trained.model.parameters()]
    trained.zero_grad()

    trained.prepare("cpu", 2, report=lambda text: None)
    assert trained.compiled is not None
    got = trained.evaluated(batch)
    got[0].backward()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
    largest = max(float(g.abs().max()) for g in gradients if g is not None)
    assert largest > 1e-3
    for p, before in zip(trained.model.parameters(), gradients, strict=True):
        before = torch.zeros_like(p) if before is None else before
        torch.testing.assert_close(p.grad, before, atol=1e-4 * largest, rtol=1e-3)


@needs_compiler
def test_a_compiled_run_learns_and_goes_on(records: list[Record], tmp_path: Path) -> None:
    """Twelve steps in one go, or eight and then four more: the same model."""
    from mlpot.models.checkpoint import load

    def run(out: Path, steps: int) -> dict[str, torch.Tensor]:
        loop = FinetuneLoop(
            steps=12, batch_atoms=120, validate_every=4, compile="yes", warmup=2, learning_rate=3e-3
        )
        config = FinetuneConfig(model=MODEL, loop=loop, validation=8, test=0, split_by="frame")
        if steps < 12:  # stop after a validation, as a kill would
            with pytest.MonkeyPatch.context() as patch:
                stopping = EnergyForceModule.training_step

                def step(self: EnergyForceModule, *args: object) -> torch.Tensor:
                    if self.global_step == steps:
                        raise KeyboardInterrupt
                    return stopping(self, *args)  # type: ignore[arg-type]

                patch.setattr(EnergyForceModule, "training_step", step)
                with pytest.raises(Exception, match="interrupted"):
                    finetune(records, config, out, progress=False, report=lambda text: None)
        finetune(records, config, out, progress=False, report=lambda text: None)
        return dict(load(out / "model.safetensors")[0].state_dict())

    whole, resumed = run(tmp_path / "whole", 12), run(tmp_path / "resumed", 8)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5)


def test_short_runs_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlpot.train.loop.can_compile", lambda: True)
    assert not wanted(LoopConfig(steps=10), "cpu", {"a": 1})
    assert wanted(LoopConfig(steps=100_000), "cpu", {"a": 1})
    assert not wanted(LoopConfig(steps=100_000), "gpu", {"a": 1})
    assert not wanted(LoopConfig(steps=100_000, compile="no"), "cpu", {"a": 1})
