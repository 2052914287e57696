"""Runs of both hosts: what they write, what is physics, and how they stop."""

import csv
import json
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from openmm import app

from mlpot.deploy.load import load
from mlpot.errors import InputError, MLPotError, UnknownModelError, UnsupportedSystemError
from mlpot.md.simulate import simulate
from mlpot.md.structure import Structure, read_structure
from mlpot.md.velocities import maxwell_boltzmann
from mlpot.units import ACCELERATION, BOLTZMANN
from tests.helpers import save_random_model
from tests.md.conftest import EXAMPLES

CASES = [
    ("openmm", "torchforce", "dcd"),
    ("openmm", "python", "xtc"),
    ("ase", "eager", "xtc"),
    ("ase", "torchscript", "dcd"),
]


def run(structure: Structure, model: Path, out: Path, **options: object):
    quiet = {"progress": False, "report": lambda line: None}
    return simulate(structure, model, out=out, **(quiet | options))


def rows(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize(("host", "engine", "suffix"), CASES)
def test_files_agree_with_each_other_and_with_the_model(
    alanine: Structure, soft_model: Path, tmp_path: Path, host: str, engine: str, suffix: str
) -> None:
    if engine == "torchforce":
        pytest.importorskip("openmmtorch")
    options = {"host": host, "engine": engine, "trajectory_format": suffix, "steps": 25}
    summary = run(alanine, soft_model, tmp_path, report_interval=10, **options)
    assert summary.steps == 25 and summary.steps_per_second > 0
    assert summary.ns_per_day == pytest.approx(summary.steps_per_second * 0.5 * 0.0864)
    assert all(path.is_file() and path.stat().st_size for path in summary.files.values())

    log = rows(summary.files["log"])
    assert [row["step"] for row in log] == [0, 10, 20]
    assert [row["time_ps"] for row in log] == pytest.approx([0, 0.005, 0.010])
    degrees = 3 * 22 - 3
    for row in log:
        assert row["total_eV"] == pytest.approx(row["potential_eV"] + row["kinetic_eV"], abs=2e-6)
        kelvin = 2 * row["kinetic_eV"] / (degrees * BOLTZMANN)
        assert row["temperature_K"] == pytest.approx(kelvin, abs=0.1)

    trajectory = mdtraj.load(summary.files["trajectory"], top=summary.files["topology"])
    assert trajectory.n_frames == 3
    model = load(soft_model, dtype="float64")
    for frame, row in zip(trajectory.xyz, log, strict=True):
        energy = model(alanine.numbers, 10 * frame).energy
        assert energy == pytest.approx(row["potential_eV"], abs=5e-3 if suffix == "xtc" else 1e-4)
    if suffix == "xtc":  # a DCD file tells its times in its header only
        assert trajectory.time == pytest.approx([0, 0.005, 0.010])

    final = app.PDBFile(str(summary.files["final"]))
    assert [a.name for a in final.topology.atoms()] == [a.name for a in alanine.topology.atoms()]
    told = json.loads(summary.files["run"].read_text())
    assert told["settings"]["steps"] == 25 and told["summary"]["steps"] == 25
    assert summary.files["plot"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("host", ["openmm", "ase"])
def test_constant_energy_and_resting_centre_of_mass(
    alanine: Structure, soft_model: Path, tmp_path: Path, host: str
) -> None:
    summary = run(
        alanine, soft_model, tmp_path, host=host, ensemble="nve", steps=200, timestep=0.25
    )
    log = rows(summary.files["log"])
    total = np.array([row["total_eV"] for row in log])
    kinetic = np.array([row["kinetic_eV"] for row in log])
    assert np.ptp(total) < 0.02 * max(np.ptp(kinetic), 0.1)
    assert summary.energy_drift is not None and abs(summary.energy_drift) < 5
    trajectory = mdtraj.load(summary.files["trajectory"], top=summary.files["topology"])
    centre = mdtraj.compute_center_of_mass(trajectory)
    assert np.ptp(centre, axis=0) == pytest.approx(0, abs=1e-5)  # nm


def test_both_hosts_start_alike(alanine: Structure, soft_model: Path, tmp_path: Path) -> None:
    first, second = (
        rows(
            run(
                alanine,
                soft_model,
                tmp_path / host,
                host=host,
                steps=20,
                ensemble="nve",
                minimize=False,
                dtype="float64",
            ).files["log"]
        )
        for host in ("openmm", "ase")
    )
    assert first[0]["potential_eV"] == pytest.approx(second[0]["potential_eV"], abs=1e-4)
    assert first[1]["potential_eV"] == pytest.approx(second[1]["potential_eV"], abs=1e-3)


@pytest.mark.parametrize("host", ["openmm", "ase"])
def test_a_seed_gives_the_same_run(
    alanine: Structure, soft_model: Path, tmp_path: Path, host: str
) -> None:
    same = [
        run(alanine, soft_model, tmp_path / f"{i}", host=host, steps=20, seed=seed).mean_temperature
        for i, seed in enumerate((0, 0, 1))
    ]
    assert same[0] == pytest.approx(same[1], rel=1e-4)
    assert same[0] != pytest.approx(same[2], rel=1e-3)


def test_starting_velocities_have_the_temperature() -> None:
    masses = np.tile([1.008, 12.011, 15.999], 4000)
    velocities = maxwell_boltzmann(masses, 300.0, seed=1)
    assert masses @ velocities == pytest.approx(np.zeros(3), abs=1e-9)
    kinetic = 0.5 * (masses[:, None] * velocities**2).sum() / ACCELERATION
    assert 2 * kinetic / (3 * len(masses) * BOLTZMANN) == pytest.approx(300, rel=0.03)


@pytest.mark.parametrize(
    ("host", "engine"), [("openmm", "auto"), ("openmm", "python"), ("ase", "auto")]
)
def test_a_periodic_system(soft_model: Path, tmp_path: Path, host: str, engine: str) -> None:
    from ase.build import molecule
    from ase.io import write

    water = molecule("H2O", vacuum=0)
    water.set_cell([4, 4, 4])
    water.pbc = True
    write(tmp_path / "water.extxyz", water * (2, 2, 2))
    structure = read_structure(tmp_path / "water.extxyz")
    summary = run(structure, soft_model, tmp_path / "out", host=host, engine=engine, steps=20)
    trajectory = mdtraj.load(summary.files["trajectory"], top=summary.files["topology"])
    assert trajectory.unitcell_lengths == pytest.approx(np.full((2, 3), 0.8))


@pytest.mark.parametrize(
    ("host", "engine"), [("openmm", "auto"), ("openmm", "python"), ("ase", "auto")]
)
def test_a_simulation_that_blows_up_says_so_and_keeps_its_frames(
    alanine: Structure, tmp_path: Path, host: str, engine: str
) -> None:
    wild = save_random_model(tmp_path / "wild.safetensors", layers=1, scale=500.0)
    with pytest.raises(MLPotError, match=r"broke by step \d+: .*Minimise first") as caught:
        options = {"host": host, "engine": engine, "steps": 500, "minimize": False}
        run(alanine, wild, tmp_path / "out", timestep=5.0, report_interval=5, **options)
    kept = rows(tmp_path / "out" / "log.csv")
    assert f"{len(kept)} frame" in str(caught.value)
    trajectory = mdtraj.load(
        tmp_path / "out" / "trajectory.dcd", top=EXAMPLES / "alanine-dipeptide.pdb"
    )
    assert trajectory.n_frames == len(kept)
    assert np.isfinite(trajectory.xyz).all()


def test_ctrl_c_keeps_and_sums_up_what_there_is(
    alanine: Structure, soft_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlpot.md.hosts import AseHost

    step = AseHost.step
    calls = []

    def interrupted(self: AseHost, steps: int) -> None:
        calls.append(steps)
        if len(calls) == 3:
            raise KeyboardInterrupt
        step(self, steps)

    monkeypatch.setattr(AseHost, "step", interrupted)
    summary = run(alanine, soft_model, tmp_path, host="ase", steps=1000, report_interval=10)
    assert summary.interrupted and summary.steps == 20
    assert len(rows(summary.files["log"])) == 3 and summary.files["final"].is_file()


def test_results_are_not_overwritten_by_accident(
    alanine: Structure, soft_model: Path, tmp_path: Path
) -> None:
    before = run(alanine, soft_model, tmp_path, steps=1, trajectory_format="xtc", minimize=False)
    with pytest.raises(InputError, match="already holds results .*--overwrite"):
        run(alanine, soft_model, tmp_path, steps=1)
    with pytest.raises(UnknownModelError):  # a slip of the pen must not cost the old results
        run(alanine, Path("absent.pt"), tmp_path, steps=1, overwrite=True)
    assert before.files["trajectory"].is_file()
    run(alanine, soft_model, tmp_path, steps=1, overwrite=True, minimize=False)
    assert not before.files["trajectory"].exists()  # .xtc and .dcd of two runs do not mix


@pytest.mark.parametrize("host", ["openmm", "ase"])
def test_an_element_that_is_not_covered(soft_model: Path, tmp_path: Path, host: str) -> None:
    path = tmp_path / "hf.xyz"
    path.write_text("2\n\nH 0 0 0\nF 0 0 0.92\n")
    with pytest.raises(UnsupportedSystemError, match="does not cover F"):
        run(read_structure(path), soft_model, tmp_path / "out", host=host)
    assert not (tmp_path / "out").exists()


def test_overlapping_atoms(soft_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "close.xyz"
    path.write_text("2\n\nH 0 0 0\nH 0 0 0.05\n")
    with pytest.raises(InputError, match="overlap"):
        run(read_structure(path), soft_model, tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("host", "lammps"),
        ("ensemble", "npt"),
        ("trajectory_format", "pdb"),
        ("steps", 0),
        ("timestep", -1.0),
        ("timestep", float("nan")),
        ("temperature", -1.0),
        ("threads", 0),
        ("engine", "warp"),
        ("dtype", "float16"),
        ("platform", "Abacus"),
    ],
)
def test_options_that_make_no_sense(
    alanine: Structure, soft_model: Path, tmp_path: Path, option: str, value: object
) -> None:
    with pytest.raises(InputError, match="must be|must not be|no OpenMM platform"):
        run(alanine, soft_model, tmp_path, **{option: value})


def test_a_misspelt_option_is_refused(alanine: Structure, soft_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="tempreature"):
        run(alanine, soft_model, tmp_path, tempreature=310)
