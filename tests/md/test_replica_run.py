"""`simulate` with several replicas, and the command: what they write, and how they stop."""

import json
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from openmm import app
from typer.testing import CliRunner

from mlpot.cli import app as cli
from mlpot.deploy.load import load
from mlpot.errors import InputError, MLPotError, UnsupportedSystemError
from mlpot.md.replicas import Replicas
from mlpot.md.settings import Summary
from mlpot.md.simulate import simulate
from mlpot.md.structure import Structure, read_structure
from mlpot.units import BOLTZMANN
from tests.helpers import save_random_model
from tests.md.conftest import EXAMPLES

ALANINE = EXAMPLES / "alanine-dipeptide.pdb"


def run(structure: Structure, model: Path, out: Path, **options: object) -> Summary:
    quiet = {"progress": False, "report": lambda line: None, "replicas": 3}
    return simulate(structure, model, out=out, **(quiet | options))


def rows(path: Path) -> np.ndarray:
    return np.genfromtxt(path, delimiter=",", names=True)


@pytest.mark.parametrize("suffix", ["dcd", "xtc"])
def test_files_agree_with_each_other_and_with_the_model(
    alanine: Structure, soft_model: Path, tmp_path: Path, suffix: str
) -> None:
    options = {"steps": 25, "report_interval": 10, "trajectory_format": suffix, "seed": 4}
    summary = run(alanine, soft_model, tmp_path, **options)
    assert (summary.steps, summary.replicas, summary.replica_steps) == (25, 3, 75)
    rate = summary.aggregate_steps_per_second
    assert rate == pytest.approx(3 * summary.steps_per_second)
    assert all(path.is_file() and path.stat().st_size for path in summary.files.values())

    log = rows(summary.files["log"])
    assert log["step"].tolist() == [0, 0, 0, 10, 10, 10, 20, 20, 20]
    assert log["replica"].tolist() == [0, 1, 2] * 3
    assert log["time_ps"] == pytest.approx(log["step"] * 0.0005)
    kelvin = 2 * log["kinetic_eV"] / ((3 * 22 - 3) * BOLTZMANN)
    assert log["temperature_K"] == pytest.approx(kelvin, abs=0.1)

    model = load(soft_model, dtype="float64")
    ends = []
    for r in range(3):
        trajectory = mdtraj.load(tmp_path / f"replica_{r:02d}.{suffix}", top=ALANINE)
        mine = log[log["replica"] == r]
        assert trajectory.n_frames == len(mine) == 3
        for frame, energy in zip(trajectory.xyz, mine["potential_eV"], strict=True):
            found = model(alanine.numbers, 10 * frame)
            # XTC rounds to 0.01 Å, which is 0.0029 Å root mean square: four sigma
            rounding = 4 * 0.0029 * float(np.linalg.norm(found.forces))
            assert found.energy == pytest.approx(energy, abs=rounding if suffix == "xtc" else 1e-4)
        ends.append(trajectory.xyz[-1])
    assert np.abs(ends[0] - ends[1]).max() > 1e-3  # nm; each has a seed of its own

    final = app.PDBFile(str(summary.files["final"]))
    assert final.getNumFrames() == 3
    told = json.loads(summary.files["run"].read_text())
    assert told["settings"]["replicas"] == 3 and told["summary"]["replica_steps"] == 75
    assert [r["seed"] for r in told["replicas"]] == [4, 5, 6]
    assert "batched integrator" in told["host"]
    assert summary.files["plot"].read_bytes().startswith(b"\x89PNG")


def test_constant_energy(alanine: Structure, soft_model: Path, tmp_path: Path) -> None:
    summary = run(alanine, soft_model, tmp_path, ensemble="nve", steps=200, timestep=0.25)
    log = rows(summary.files["log"])
    for r in range(3):
        total = log["total_eV"][log["replica"] == r]
        kinetic = log["kinetic_eV"][log["replica"] == r]
        assert np.ptp(total) < 0.02 * max(np.ptp(kinetic), 0.1)
    assert summary.energy_drift is not None and abs(summary.energy_drift) < 5


def test_a_replica_starts_like_a_run_of_its_own(
    alanine: Structure, soft_model: Path, tmp_path: Path
) -> None:
    """The same seed gives the same starting velocities, in OpenMM and ASE as well."""
    options = {"steps": 20, "ensemble": "nve", "minimize": False, "dtype": "float64"}
    many = rows(run(alanine, soft_model, tmp_path / "many", **options).files["log"])
    one = {"replicas": 1, "host": "ase", "seed": 2}
    single = rows(run(alanine, soft_model, tmp_path / "one", **options, **one).files["log"])
    mine = many[many["replica"] == 2]
    for column in ("potential_eV", "kinetic_eV"):
        assert mine[column] == pytest.approx(single[column], abs=1e-4)


def test_one_replica_breaks_and_the_others_go_on(
    alanine: Structure, soft_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Replicas.step

    def kick(self: Replicas, count: int) -> None:
        if self.steps == 10 and self.alive.all():
            self._now.velocities[22:44] *= 100.0
        step(self, count)

    monkeypatch.setattr(Replicas, "step", kick)
    told: list[str] = []
    options = {"steps": 30, "report_interval": 10, "report": told.append}
    summary = run(alanine, soft_model, tmp_path, **options)
    assert summary.lost == {1: 10} and summary.replica_steps == 30 + 10 + 30
    assert any("replica 1 broke at step 11" in line for line in told)
    log = rows(summary.files["log"])
    frames = [int((log["replica"] == r).sum()) for r in range(3)]
    assert frames == [4, 2, 4]
    assert mdtraj.load(tmp_path / "replica_01.dcd", top=ALANINE).n_frames == 2
    assert np.isfinite(summary.mean_temperature)


def test_all_break(alanine: Structure, tmp_path: Path) -> None:
    wild = save_random_model(tmp_path / "wild.safetensors", layers=1, scale=500.0)
    options = {"steps": 500, "minimize": False, "timestep": 5.0, "report_interval": 5}
    with pytest.raises(MLPotError, match="all 3 replicas broke.*Minimise first"):
        run(alanine, wild, tmp_path / "out", **options)
    assert np.isfinite(mdtraj.load(tmp_path / "out" / "replica_00.dcd", top=ALANINE).xyz).all()


def test_ctrl_c_keeps_and_sums_up_what_there_is(
    alanine: Structure, soft_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Replicas.step

    def interrupted(self: Replicas, count: int) -> None:
        if self.steps == 20:
            raise KeyboardInterrupt
        step(self, count)

    monkeypatch.setattr(Replicas, "step", interrupted)
    summary = run(alanine, soft_model, tmp_path, steps=1000, report_interval=10)
    assert summary.interrupted and summary.steps == 20 and summary.files["final"].is_file()


def test_results_are_not_mixed(alanine: Structure, soft_model: Path, tmp_path: Path) -> None:
    run(alanine, soft_model, tmp_path, steps=1, minimize=False, replicas=4)
    for replicas in (1, 2):
        with pytest.raises(InputError, match="already holds results .*--overwrite"):
            run(alanine, soft_model, tmp_path, steps=1, replicas=replicas)
    run(alanine, soft_model, tmp_path, steps=1, minimize=False, replicas=2, overwrite=True)
    assert not (tmp_path / "replica_02.dcd").exists()


def test_refused(alanine: Structure, soft_model: Path, tmp_path: Path) -> None:
    from ase.build import molecule
    from ase.io import write

    out = tmp_path / "out"
    for options, says in (
        ({"replicas": 0}, "replicas must be positive"),
        ({"engine": "torchforce"}, "engine must be"),
        ({"platform": "abacus"}, "cannot be used"),
    ):
        with pytest.raises(InputError, match=says):
            run(alanine, soft_model, out, **options)
    water = molecule("H2O", vacuum=3)
    water.pbc = True
    write(tmp_path / "water.extxyz", water)
    with pytest.raises(UnsupportedSystemError, match="--no-pbc"):
        run(read_structure(tmp_path / "water.extxyz"), soft_model, out)
    (tmp_path / "close.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0.05\n")
    with pytest.raises(InputError, match="^atoms 0 and 1 overlap"):
        run(read_structure(tmp_path / "close.xyz"), soft_model, out)
    (tmp_path / "hf.xyz").write_text("2\n\nH 0 0 0\nF 0 0 0.92\n")
    with pytest.raises(UnsupportedSystemError, match="does not cover F"):
        run(read_structure(tmp_path / "hf.xyz"), soft_model, out)
    assert not out.exists()


def test_the_command(soft_model: Path, tmp_path: Path) -> None:
    args = ["md", ALANINE, "--model", soft_model, "--out", tmp_path / "a", "--replicas", 2]
    options = ["--steps", 4, "--report", 2, "--host", "ase", "--quiet"]
    result = CliRunner().invoke(cli, [str(a) for a in [*args, *options]])
    assert result.exit_code == 0, result.output
    for says in ("batched integrator", "--host does not apply", "2 replicas: ", "in all"):
        assert says in result.stdout
    assert "replica_00.dcd to replica_01.dcd (2 files)" in result.stdout
    refused = CliRunner().invoke(cli, [str(a) for a in [*args[:-1], 0, "--overwrite"]])
    assert refused.exit_code == 1 and "replicas must be positive" in refused.stderr
