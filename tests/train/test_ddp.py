"""Two ranks on one machine, as a user starts them: `devices = 2` in a recipe."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mlpot.data.formats.extxyz import write_extxyz
from mlpot.data.record import Record
from mlpot.models.checkpoint import load_potential
from tests.helpers import ethanol

RECIPE = """
validation = 4
test = 4
split_by = "frame"
[model]
layers = 2
channels = 16
heads = 4
radial = 8
[loop]
steps = 6
batch_atoms = 36
warmup = 2
validate_every = 3
device = "cpu"
devices = 2
compile = "no"
checkpoint_minutes = 1e-4
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_ranks_train_one_model(tmp_path: Path) -> None:
    atoms, rng = ethanol(), np.random.default_rng(0)
    frames = [atoms.positions + 0.05 * rng.standard_normal((9, 3)) for _ in range(40)]
    records = [
        Record(atoms.numbers, x, float(rng.normal()), rng.normal(size=(9, 3)), group="CCO")
        for x in frames
    ]
    write_extxyz(tmp_path / "frames.xyz", records)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    out = tmp_path / "run"
    command = [str(Path(sys.executable).parent / "mlpot"), "finetune", str(tmp_path / "frames.xyz")]
    command += ["--config", str(tmp_path / "recipe.toml"), "--from", "none", "--out", str(out)]
    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("read 40 frames") == done.stdout.count("wrote ") == 1  # not by each
    steps = [row["step"] for row in json.loads((out / "history.json").read_text())]
    assert steps == [3.0, 6.0]
    model, info = load_potential(out / "model.safetensors")
    assert info.provenance["recipe"]["loop"]["devices"] == 2
    assert all(torch.isfinite(p).all() for p in model.parameters())
