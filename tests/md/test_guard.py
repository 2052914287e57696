"""The guard: its rule, what it writes, and that it works in every host the same way."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import pytest
import torch
import typer
from ase import Atoms, units
from ase.data import covalent_radii
from ase.md.verlet import VelocityVerlet
from torch import Tensor
from typer.testing import CliRunner, Result

from mlpot import MLPotCalculator
from mlpot.cli import app as cli
from mlpot.cli.common import Group
from mlpot.cli.guard import guard as guard_command
from mlpot.data.record import Record
from mlpot.deploy.export import export
from mlpot.deploy.grader import (
    CommitteeGrader,
    FeatureGrader,
    Grader,
    JoinedGrader,
    committee_unit,
    make_grader,
)
from mlpot.deploy.load import load
from mlpot.errors import InputError, MLPotError, ModelFileError
from mlpot.graph import Graph
from mlpot.md import flagged
from mlpot.md.bonds import find_bonds, opened
from mlpot.md.guard import (
    INTERVAL,
    LOOK,
    SURE,
    ExtrapolationError,
    Guard,
    GuardReporter,
    ReplicaGuard,
    Watch,
    make_guard,
)
from mlpot.md.hosts import AseHost
from mlpot.md.replicas import Replicas
from mlpot.md.settings import Summary
from mlpot.md.simulate import simulate
from mlpot.md.structure import Structure
from mlpot.models.checkpoint import ModelInfo, load_extrapolation, load_potential, save
from mlpot.train.finetune import FinetuneConfig, finetune
from mlpot.train.guard import add_guard
from tests.helpers import ethanol, save_random_model

MODEL = "model.safetensors"
QUIET = {"progress": False, "report": lambda line: None}


def frames_of(model: Path, numbers: np.ndarray, positions: np.ndarray, width: float) -> list:
    """Frames near one geometry, labelled by the model itself and noise."""
    rng, teacher, records = np.random.default_rng(0), load(model, engine="eager"), []
    for _ in range(60):
        moved = positions + width * rng.standard_normal(positions.shape)
        forces = teacher(numbers, moved).forces
        forces = forces + 0.01 * rng.standard_normal(forces.shape)
        records.append(Record(numbers=numbers, positions=moved, forces=forces, group="one"))
    return records


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat energy surface on which ethanol falls apart, and statistics of whole ethanol."""
    path = tmp_path_factory.mktemp("models") / "guarded.safetensors"
    save_random_model(path, name="guarded", layers=1, scale=0.05, floors={})
    atoms = ethanol()
    add_guard(path, frames_of(path, atoms.numbers.astype(np.int64), atoms.positions, 0.05))
    return path


@pytest.fixture(scope="module")
def ethanol_structure(tmp_path_factory: pytest.TempPathFactory) -> Structure:
    from mlpot.md.structure import read_structure

    path = tmp_path_factory.mktemp("structures") / "ethanol.xyz"
    ase.io.write(path, ethanol())
    return read_structure(path)


# --- the rule ------------------------------------------------------------------------------------


class Silent(Grader):
    """Grades are handed to `Watch.observe` by the test."""

    def __init__(self) -> None:
        info = ModelInfo(name="told", elements=[1, 6])
        super().__init__(info, 5.0, torch.float32, torch.device("cpu"))

    def grades(self, graph: Graph) -> Tensor:
        raise AssertionError("not asked")


def watched(tmp_path: Path, policy: str = "save") -> tuple[Guard, Watch, list[str]]:
    lines: list[str] = []
    guard = Guard(Silent(), policy, save_to=tmp_path / "out.xyz", report=lines.append)  # type: ignore[arg-type]
    return guard, guard.watch([6, 1, 1]), lines


def feed(watch: Watch, rows: list[list[float]]) -> None:
    for i, row in enumerate(rows):
        watch.observe(np.array(row), 20 * i, 0.01 * i, np.eye(3) + i)


CALM, HIGH = [0.5, 0.4, 0.3], [0.5, 1.2, 0.3]


@pytest.mark.parametrize(
    ("rows", "flags"),
    [
        ([CALM] * 10, []),
        ([HIGH, HIGH, CALM] * 5, []),  # never three in a row
        ([HIGH, [1.2, 0.5, 0.5], HIGH, [1.2, 0.5, 0.5]], []),  # never the same atom
        ([CALM, HIGH, HIGH, HIGH, CALM], [(60, 1)]),
        ([HIGH] * 10, [(40, 1)]),  # one excursion
        ([HIGH, HIGH, HIGH, CALM, CALM, HIGH, HIGH, HIGH], [(40, 1)]),  # still the same
        ([HIGH] * 3 + [CALM] * 3 + [HIGH] * 3, [(40, 1), (160, 1)]),
        ([CALM, [0.5, 0.4, 3.1], CALM], [(20, 2)]),  # needs no confirmation
        ([CALM, [0.5, np.inf, 0.3]], [(20, 1)]),
    ],
)
def test_when_a_flag_is_raised(tmp_path: Path, rows: list, flags: list) -> None:
    guard, watch, lines = watched(tmp_path, "warn")
    feed(watch, rows)
    assert [(f.step, f.atom) for f in guard.flags] == flags
    assert len(lines) == len(flags)
    assert not (tmp_path / "out.xyz").exists()


def test_the_sentence_names_atom_grade_and_time(tmp_path: Path) -> None:
    guard, watch, lines = watched(tmp_path)
    feed(watch, [HIGH, HIGH, [0.5, 1.37, 1.9]])
    assert lines == [
        "atom 1 (H) left what told was trained on: extrapolation grade 1.37 at step 40 (0.02 ps); "
        f"frames are in {tmp_path / 'out.xyz'}: label them and fine-tune"
    ]
    told = guard.told()
    assert told["largest"] == {"grade": 1.9, "step": 40, "system": None, "atom": 2}
    assert json.loads(json.dumps(told, allow_nan=False))["saved_frames"] == 3


def test_frames_above_the_line_are_kept_those_that_came_to_nothing_are_not(tmp_path: Path) -> None:
    guard, watch, _ = watched(tmp_path)
    feed(watch, [HIGH, HIGH, CALM, HIGH, HIGH, HIGH, HIGH, CALM, CALM, CALM, HIGH, CALM])
    kept = ase.io.read(tmp_path / "out.xyz", ":")
    assert [a.info["step"] for a in kept] == [60, 80, 100, 120]
    assert guard.saved is not None and guard.saved.count == 4
    assert kept[0].positions == pytest.approx(np.eye(3) + 3)
    assert kept[0].arrays["extrapolation_grade"] == pytest.approx(HIGH)
    assert kept[0].info["model"] == "told" and kept[0].info["atom"] == 1


def test_stop_raises_where_the_excursion_begins(tmp_path: Path) -> None:
    _, watch, lines = watched(tmp_path, "stop")
    with pytest.raises(ExtrapolationError, match=r"^stopped: atom 1 \(H\) .* step 40 .* fine-tune"):
        feed(watch, [HIGH] * 5)
    assert len(ase.io.read(tmp_path / "out.xyz", ":")) == 3 and not lines


def test_frames_beyond_the_most_are_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flagged, "MOST", 4)
    guard, watch, lines = watched(tmp_path)
    feed(watch, [HIGH] * 9)
    assert len(ase.io.read(tmp_path / "out.xyz", ":")) == guard.told()["saved_frames"] == 4
    assert guard.told()["left_out_frames"] == 5
    assert [line for line in lines if "left what" not in line] == [
        f"{tmp_path / 'out.xyz'} has 4 frames, the most that are kept; later ones are left out"
    ]


def test_an_excursion_that_uses_up_the_frames_leaves_room_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flagged, "MOST", 4)
    guard = Guard(Calm(), "save", save_to=tmp_path / "out.xyz", report=lambda line: None)
    watch = guard.watch([6, 1, 1])
    feed(watch, [HIGH] * 9)
    watch.remember(200, 0.2, 9.0 * np.eye(3))
    assert watch.broke() == 1
    assert [a.info["step"] for a in ase.io.read(tmp_path / "out.xyz", ":")] == [0, 20, 40, 60, 200]


def test_one_replica_does_not_use_up_the_frames_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flagged, "MOST", 8)
    monkeypatch.setattr(flagged, "LEAST", 2)
    guard, _, lines = watched(tmp_path)
    assert guard.saved is not None
    guard.saved.spread(2)
    for system in (0, 1):
        feed(guard.watch([6, 1, 1], system=system), [HIGH] * 6)
    kept = [a.info["replica"] for a in ase.io.read(tmp_path / "out.xyz", ":")]
    assert kept == [0] * 4 + [1] * 4
    assert sum("4 frames of replica 0, the most" in line for line in lines) == 1
    guard.saved.spread(100)  # not fewer than this
    feed(guard.watch([6, 1, 1], system=2), [HIGH] * 6)
    assert [a.info["replica"] for a in ase.io.read(tmp_path / "out.xyz", ":")][8:] == [2, 2]


class Calm(Silent):
    """Every atom is as in training."""

    def grades(self, graph: Graph) -> Tensor:
        return torch.full((len(graph.numbers),), 0.5)


def test_the_last_frames_before_a_break_are_kept_without_a_flag(tmp_path: Path) -> None:
    guard = Guard(Calm(), "stop", save_to=tmp_path / "out.xyz", interval=20, look=20)
    watch = guard.watch([6, 1, 1])
    for step in range(0, 101, 20):
        watch.look(step, 1e-3 * step, 9.0 * np.eye(3) + step)
    assert watch.broke() == 3 and not guard.flags
    kept = ase.io.read(tmp_path / "out.xyz", ":")
    assert [a.info["step"] for a in kept] == [60, 80, 100]
    assert {a.info["why"] for a in kept} == {"last before the run broke"}
    assert kept[-1].positions == pytest.approx(9.0 * np.eye(3) + 100)
    assert kept[-1].info["extrapolation_grade"] == 0.5
    assert watch.broke() == 0  # nothing twice
    silent = Guard(Calm(), "warn", save_to=tmp_path / "none.xyz").watch([6, 1, 1])
    silent.look(0, 0.0, 9.0 * np.eye(3))
    assert silent.broke() == 0 and not (tmp_path / "none.xyz").exists()


def test_frames_of_an_excursion_are_not_kept_again_when_it_breaks(tmp_path: Path) -> None:
    guard, watch, _ = watched(tmp_path)
    for step, row in enumerate([HIGH] * 4):
        watch.remember(step, 0.0, np.eye(3) + step)
        watch.observe(np.array(row), step, 0.0, np.eye(3) + step)
    assert guard.saved is not None and guard.saved.count == 4 and watch.broke() == 0
    # above the line, but not yet confirmed: what came next did not stay
    for step, row in enumerate([CALM] * 3):  # the excursion is over
        watch.observe(np.array(row), 10 + step, 0.0, np.eye(3))
    for step in (20, 21):
        watch.observe(np.array(HIGH), step, 0.0, np.eye(3) + step)
    assert watch.broke() == 2


def test_a_box_that_changes_is_kept_as_it_was(tmp_path: Path) -> None:
    """ASE hands over the very array that it goes on to change; frames are written later."""
    guard = Guard(Silent(), "save", save_to=tmp_path / "out.xyz", report=lambda line: None)  # type: ignore[arg-type]
    watch, cell = guard.watch([6, 1, 1], (True, True, True)), 20.0 * np.eye(3)
    for step in range(4):
        watch.observe(np.array(HIGH), step, 0.0, np.eye(3) + step, cell)
        cell += np.eye(3)
    kept = ase.io.read(tmp_path / "out.xyz", ":")
    assert [frame.cell[0, 0] for frame in kept] == [20.0, 21.0, 22.0, 23.0]


def test_a_full_disk_leaves_whole_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, watch, _ = watched(tmp_path)
    feed(watch, [HIGH] * 4)
    before = (tmp_path / "out.xyz").read_bytes()

    class Full:
        def __init__(self, path: Path):
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            return self.file.write(data[: len(data) // 2])

    whole = Path.open
    monkeypatch.setattr(
        Path, "open", lambda p, mode="r", **kw: Full(p) if mode == "ab" else whole(p, mode, **kw)
    )
    with pytest.raises(OSError, match="No space left"):
        feed(watch, [HIGH])
    assert (tmp_path / "out.xyz").read_bytes() == before


def test_lengths_are_looked_at_between_checks(guarded: Path) -> None:
    atoms, lines = ethanol(), []
    guard = Guard(guarded, report=lines.append)
    assert (guard.every, guard.interval) == (LOOK, INTERVAL)
    watch = guard.watch(atoms.numbers)
    assert watch.look(LOOK, 0.005, atoms.positions) is None
    grades = watch.look(INTERVAL, 0.05, atoms.positions)
    assert grades is not None and not lines
    atoms.set_distance(0, 6, 1.6, fix=0)  # C-H
    torn = INTERVAL + LOOK
    grades = watch.look(torn, 0.055, atoms.positions)
    assert grades is not None and grades[6] > guard.sure
    assert (guard.flags[0].step, guard.flags[0].atom) == (torn, 0)
    assert guard.flags[0].reason == "C 0 - H 6 at 1.60 Å, hardly ever seen in training"
    assert watch.look(torn + LOOK, 0.06, atoms.positions) is None and watch.outside  # known already
    other = guard.watch(atoms.numbers)
    assert other.look(LOOK, 0.005, atoms.positions * np.nan) is not None and len(guard.flags) == 2
    assert Guard(guarded, interval=7).every == 7 and Guard(Silent()).every == INTERVAL


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "panic"},
        {"interval": 0},
        {"checks": 0},
        {"look": 0},
        {"line": 4.0},
        {"line": 0.0},
    ],
)
def test_options_that_make_no_sense(options: dict) -> None:
    with pytest.raises(InputError, match="guard"):
        Guard(Silent(), **options)


# --- models --------------------------------------------------------------------------------------


def test_a_model_without_statistics_names_the_remedy(soft_model: Path) -> None:
    with pytest.raises(ModelFileError, match="no statistics.*mlpot guard"):
        Guard(soft_model)


def test_an_exported_model_asks_for_its_weights(guarded: Path, tmp_path: Path) -> None:
    export(guarded, tmp_path / "m.pt")
    for model in (tmp_path / "m.pt", load(tmp_path / "m.pt")):
        with pytest.raises(ModelFileError, match="exported.*--guard-model"):
            Guard(model)


def test_engines_share_one_grade(guarded: Path) -> None:
    atoms = ethanol()
    found = [
        FeatureGrader(model).bind(atoms.numbers)(atoms.positions)
        for model in (guarded, load(guarded, engine="torchscript"), load(guarded, dtype="float64"))
    ]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_nothing_but_infinity_comes_of_a_broken_geometry(guarded: Path) -> None:
    atoms = ethanol()
    grade = FeatureGrader(guarded).bind(atoms.numbers)
    x = atoms.positions.copy()
    x[3, 0] = np.nan
    assert np.isinf(grade(x)).all()
    x[3] = x[4]  # no direction between the two
    assert np.isinf(grade(x)).any()
    x = atoms.positions * 100.0  # nine atoms alone
    assert grade(x).max() > 2


def test_a_committee(tmp_path: Path) -> None:
    paths = [save_random_model(tmp_path / f"{s}.safetensors", seed=s) for s in (1, 2, 3)]
    models = [load(path, engine="eager") for path in paths]
    atoms = ethanol()
    forces = np.stack([m(atoms.numbers, atoms.positions).forces for m in models])
    sigma = np.sqrt(((forces - forces.mean(0)) ** 2).sum(2).mean(0))
    committee = CommitteeGrader(models, unit=0.25)
    found = committee.bind(atoms.numbers)(atoms.positions)
    assert found == pytest.approx(sigma / 0.25, rel=1e-4)
    assert Guard(committee).watch(atoms.numbers).check(0, 0.0, atoms.positions).shape == (9,)
    with pytest.raises(InputError, match="two models"):
        CommitteeGrader(models[:1], unit=0.25)
    other = load(save_random_model(tmp_path / "o.safetensors", cutoff=4.0), engine="eager")
    with pytest.raises(InputError, match="another cutoff"):
        CommitteeGrader([models[0], other], unit=0.25)


def member(path: Path, seed: int, rmse: float | None = 0.02) -> Path:
    """A model with statistics of ethanol, whose file says how wrong it was on frames held back."""
    save_random_model(path, name=path.stem, seed=seed, layers=1, scale=0.05, floors={})
    atoms = ethanol()
    add_guard(path, frames_of(path, atoms.numbers.astype(np.int64), atoms.positions, 0.05))
    model, info = load_potential(path)
    told = {} if rmse is None else {"validation": {"force_rmse": rmse}}
    save(model, info.model_copy(update={"provenance": told}), path, load_extrapolation(path))
    return path


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("committee")
    return [member(folder / f"m{seed}.safetensors", seed, 0.01 * seed) for seed in (1, 2)]


def test_several_guard_models_are_a_committee(members: list[Path], tmp_path: Path) -> None:
    """The larger of the two grades counts, and lengths are looked at as before."""
    lines: list[str] = []
    together = ",".join(str(m) for m in members)
    guard = make_guard("auto", members[0], tmp_path / "x.xyz", lines.append, together)
    assert guard is not None and isinstance(guard.grader, JoinedGrader)
    # three times the root mean square of |F - F label|: components of 0.01 and 0.02 eV/Å
    unit = 3 * np.sqrt(3 * (0.01**2 + 0.02**2) / 2)
    assert guard.told()["committee"] == {"members": ["m1", "m2"], "unit": pytest.approx(unit)}
    assert (
        f"committee of 2 every 200 steps: grade 1 is a disagreement of {unit:.3g} eV/Å" in lines[0]
    )
    atoms = ethanol()
    alone = FeatureGrader(members[0]).bind(atoms.numbers)
    sigma = CommitteeGrader(members, unit).bind(atoms.numbers)
    watch, largest = guard.watch(atoms.numbers), []
    for step, width in enumerate((0.0, 0.05, 0.3)):
        moved = atoms.positions + width * np.random.default_rng(0).standard_normal((9, 3))
        parts = alone(moved), sigma(moved)
        assert watch.check(step, 0.0, moved) == pytest.approx(np.maximum(*parts), rel=1e-4)
        largest += (parts[0] > parts[1]).tolist()
    assert any(largest) and not all(largest)
    assert guard.every == LOOK and guard.interval == 2 * INTERVAL  # two models, the same cost
    assert Guard(members[0]).interval == INTERVAL and Guard(guard.grader, interval=7).interval == 7
    atoms.set_distance(0, 6, 1.6, fix=0)
    assert guard.grader.bind(atoms.numbers).torn(atoms.positions, None, 6) is not None


def test_what_a_committee_needs(members: list[Path], tmp_path: Path) -> None:
    quiet = member(tmp_path / "quiet.safetensors", 3, None)
    together = f"{members[0]}, {quiet}"
    with pytest.raises(InputError, match=r"quiet does not say how wrong.*--guard-unit"):
        make_grader(together)
    assert make_grader(together, 0.3).committee == {"members": ["m1", "quiet"], "unit": 0.3}
    with pytest.raises(InputError, match="two models or more, with commas"):
        make_grader(members[0], 0.3)
    with pytest.raises(InputError, match="positive unit"):
        make_grader(together, -1.0)
    bare = save_random_model(tmp_path / "bare.safetensors", seed=9, layers=1, floors={})
    alone = make_grader(f"{bare},{members[0]}", 0.3)
    assert isinstance(alone, CommitteeGrader) and not alone.sees_lengths
    info = load_potential(members[1])[1]
    assert committee_unit([info, info]) == pytest.approx(3 * np.sqrt(3) * 0.02)
    comma = tmp_path / "a,b.safetensors"
    comma.write_bytes(members[0].read_bytes())
    assert isinstance(make_grader(comma), FeatureGrader)


def test_a_guard_of_another_cutoff_cannot_grade_replicas(guarded: Path, tmp_path: Path) -> None:
    """It would see the graph of the model that runs."""
    short = save_random_model(tmp_path / "s.safetensors", layers=1, cutoff=4.0, floors={})
    atoms = ethanol()
    replicas = Replicas(load(short, engine="eager"), [atoms.numbers] * 2, [atoms.positions] * 2)
    replicas.observers.append(ReplicaGuard(Guard(guarded)))
    with pytest.raises(InputError, match=r"another cutoff .*guard_model="):
        replicas.step(LOOK)


# --- hosts ---------------------------------------------------------------------------------------


def atoms_on(model: Path, speed: float = 0.05) -> Atoms:
    """Ethanol whose hydroxyl hydrogen flies off, at a speed in Å/fs."""
    atoms = ethanol()
    atoms.calc = MLPotCalculator(model, engine="eager")
    velocities = np.zeros_like(atoms.positions)
    oxygen = int((atoms.numbers == 8).argmax())
    hydrogens = [i for i in range(9) if atoms.numbers[i] == 1]
    leaving = min(hydrogens, key=lambda i: atoms.get_distance(i, oxygen))
    arm = atoms.positions[leaving] - atoms.positions[oxygen]
    velocities[leaving] = speed * arm / np.linalg.norm(arm)
    atoms.set_velocities(velocities / units.fs)
    return atoms


def test_ase_stops_while_a_hydrogen_leaves(guarded: Path, tmp_path: Path) -> None:
    atoms = atoms_on(guarded)
    guard = Guard(guarded, "stop", save_to=tmp_path / "out.xyz")
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    guard.attach(dynamics)
    with pytest.raises(ExtrapolationError, match=r"atom \d \([HO]\)"):
        dynamics.run(400)
    flag = guard.flags[0]
    assert flag.step == dynamics.nsteps and flag.step % guard.every == 0
    assert flag.time == pytest.approx(flag.step * 0.5e-3)
    pair = r"(O 2 - H \d|H \d - O 2)"
    assert re.fullmatch(rf"{pair} at 1\.\d\d Å, hardly ever seen in training", flag.reason)
    assert flag.describe("it").endswith(f" ps), {flag.reason}")
    kept = ase.io.read(tmp_path / "out.xyz", ":")
    assert kept[-1].positions == pytest.approx(atoms.positions, abs=1e-6)
    assert not (kept[-1].pbc.any() or kept[-1].cell.any())


def test_openmm_stops_at_the_same_frame_as_ase(guarded: Path, tmp_path: Path) -> None:
    import openmm
    from openmm import app, unit
    from openmmml import MLPotential

    atoms = atoms_on(guarded)
    topology = app.Topology()
    residue = topology.addResidue("ETH", topology.addChain())
    for z in atoms.numbers.tolist():
        topology.addAtom("X", app.Element.getByAtomicNumber(z), residue)
    system = MLPotential("mlpot", model=str(guarded)).createSystem(topology, engine="python")
    integrator = openmm.VerletIntegrator(0.5 * unit.femtosecond)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(topology, system, integrator, platform)
    simulation.context.setPositions(atoms.positions * unit.angstrom)
    speeds = atoms.get_velocities() * units.fs
    simulation.context.setVelocities(speeds * (unit.angstrom / unit.femtosecond))
    guard = Guard(guarded, "stop", save_to=tmp_path / "openmm.xyz")
    simulation.reporters.append(GuardReporter(guard))
    with pytest.raises(ExtrapolationError, match="stopped: atom"):
        simulation.step(400)
    other = Guard(guarded, "stop", save_to=tmp_path / "ase.xyz")
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    other.attach(dynamics)
    with pytest.raises(ExtrapolationError):
        dynamics.run(400)
    ours, theirs = guard.flags[0], other.flags[0]
    assert (ours.step, ours.atom) == (theirs.step, theirs.atom)
    assert ours.grade == pytest.approx(theirs.grade, rel=0.05)  # leapfrog: half a kick apart
    assert ours.time == pytest.approx(theirs.time)


def test_replicas_that_leave_are_taken_out_and_the_others_go_on(
    guarded: Path, tmp_path: Path
) -> None:
    still, leaving = ethanol(), atoms_on(guarded)
    lines: list[str] = []
    guard = Guard(guarded, "stop", save_to=tmp_path / "out.xyz", report=lines.append)
    speeds = [np.zeros((9, 3)), leaving.get_velocities() * units.fs]
    replicas = Replicas(
        load(guarded, engine="eager"),
        [still.numbers] * 2,
        [still.positions, leaving.positions],
        velocities=speeds,
        friction=None,
    )
    observer = ReplicaGuard(guard)
    replicas.observers.append(observer)
    replicas.step(50)
    assert list(observer.stopped) == [1] and "replica 1: atom" in observer.stopped[1]
    assert replicas.alive.tolist() == [True, False] and replicas.steps == 50
    assert replicas.lost == {1: guard.flags[0].step}
    assert {a.info["replica"] for a in ase.io.read(tmp_path / "out.xyz", ":")} == {1}


# --- simulate ------------------------------------------------------------------------------------


def run(structure: Structure, model: Path, out: Path, **options: object) -> Summary:
    defaults = {"engine": "eager", "host": "ase", "temperature": 1500.0, "minimize": False}
    return simulate(structure, model, out=out, **(QUIET | defaults | options))


def told(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())["summary"]["guard"]


@pytest.mark.parametrize("host", ["ase", "openmm"])
def test_a_run_that_stops_keeps_its_results(
    ethanol_structure: Structure, guarded: Path, tmp_path: Path, host: str
) -> None:
    engine = {"ase": "eager", "openmm": "python"}[host]
    with pytest.raises(ExtrapolationError, match="stopped: atom"):
        run(
            ethanol_structure, guarded, tmp_path, host=host, engine=engine, guard="stop", steps=2000
        )
    flag = told(tmp_path)["flags"][0]
    summary = json.loads((tmp_path / "run.json").read_text())["summary"]
    assert 0 < flag["step"] == summary["steps"] < 2000
    names = {path.name for path in tmp_path.iterdir()}
    assert {"trajectory.dcd", "log.csv", "final.pdb", "extrapolated.xyz"} <= names
    assert len(ase.io.read(tmp_path / "extrapolated.xyz", ":")) == told(tmp_path)["saved_frames"]


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_start_that_is_outside_already(
    ethanol_structure: Structure, guarded: Path, tmp_path: Path, replicas: int
) -> None:
    torn = ethanol_structure.positions.copy()
    (oxygen,) = np.flatnonzero(ethanol_structure.numbers == 8)
    apart = np.linalg.norm(torn - torn[oxygen], axis=1) + 9.0 * (ethanol_structure.numbers != 1)
    torn[apart.argmin()] += 0.8 * (torn[apart.argmin()] - torn[oxygen])
    start = replace(ethanol_structure, positions=torn)
    options = {"steps": 50, "minimize": False, "replicas": replicas, "guard": "stop"}
    lines: list[str] = []
    with pytest.raises(ExtrapolationError, match="stopped"):
        run(start, guarded, tmp_path, report=lines.append, **options)
    if replicas > 1:
        assert sum("left what" in line for line in lines) == replicas, lines
    assert {flag["step"] for flag in told(tmp_path)["flags"]} == {0}


@pytest.fixture
def crude(ethanol_structure: Structure) -> Structure:
    """Ethanol with an O-H of 0.6 Å: far outside."""
    moved = ethanol_structure.positions.copy()
    (oxygen,) = np.flatnonzero(ethanol_structure.numbers == 8)
    apart = np.linalg.norm(moved - moved[oxygen], axis=1) + 9.0 * (ethanol_structure.numbers != 1)
    arm = moved[apart.argmin()] - moved[oxygen]
    moved[apart.argmin()] = moved[oxygen] + 0.6 / np.linalg.norm(arm) * arm
    return replace(ethanol_structure, positions=moved)


def minimising(
    monkeypatch: pytest.MonkeyPatch, structure: Structure, by: float
) -> Callable[..., None]:
    """Make minimising end where the O-H of a structure is ``by`` Å longer, and all else as is."""
    (oxygen,) = np.flatnonzero(structure.numbers == 8)
    apart = np.linalg.norm(structure.positions - structure.positions[oxygen], axis=1)
    hydrogen = int((apart + 9.0 * (structure.numbers != 1)).argmin())
    arm = structure.positions[hydrogen] - structure.positions[oxygen]
    end = structure.positions.copy()
    end[hydrogen] += by / np.linalg.norm(arm) * arm
    monkeypatch.setattr(AseHost, "minimize", lambda self, n: self._atoms.set_positions(end))

    def many(self: Replicas, iterations: int) -> None:
        self._restart(torch.tensor(np.tile(end, (len(self), 1))).to(self._now.positions))

    monkeypatch.setattr(Replicas, "minimize", many)
    return many


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_bond_that_minimising_opens_is_flagged_as_it_was_given(
    crude: Structure,
    guarded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replicas: int,
) -> None:
    """A model may lose a bond that it has not seen on the way down, and the pieces look known."""
    minimising(monkeypatch, crude, 0.8)
    options: dict[str, Any] = {"steps": 10, "minimize": True, "replicas": replicas}
    lines: list[str] = []
    run(crude, guarded, tmp_path / "a", report=lines.append, **options)
    told = [line for line in lines if "0.60 Å as given and 1.40 Å after minimising" in line]
    assert [("grade" in line, "opened a bond" in line) for line in told] == [
        (False, True),
        (True, False),
    ], lines
    with pytest.raises(ExtrapolationError, match="bond O 2 - H .*; frames are in"):
        run(crude, guarded, tmp_path / "b", guard="stop", **options)
    frame, *_ = ase.io.read(tmp_path / "b" / "extrapolated.xyz", ":")
    np.testing.assert_allclose(frame.positions, crude.positions, atol=1e-6)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_crude_start_that_minimising_mends_is_no_reason_to_stop(
    crude: Structure,
    guarded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replicas: int,
) -> None:
    """Hydrogens of an X-ray structure, or of a modeller, are a tenth of an Å off."""
    minimising(monkeypatch, crude, 0.37)
    assert Guard(guarded).watch(crude.numbers).check(0, 0.0, crude.positions).max() > SURE
    lines: list[str] = []
    options: dict[str, Any] = {"steps": 10, "minimize": True, "replicas": replicas}
    run(crude, guarded, tmp_path, guard="stop", temperature=10.0, report=lines.append, **options)
    assert not any("left what" in line or "opened" in line for line in lines), lines


def test_what_opens_in_minimising_but_is_known_is_told_without_a_grade(
    ethanol_structure: Structure,
    guarded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model is wrong where it should be right: that is no extrapolation."""
    minimising(monkeypatch, ethanol_structure, 0.8)
    lines: list[str] = []
    run(ethanol_structure, guarded, tmp_path, steps=5, minimize=True, report=lines.append)
    assert any("opened a bond" in line for line in lines)
    assert not any("as given" in line for line in lines if "grade" in line), lines


def test_the_bond_that_is_unknown_counts_and_not_the_longest(
    crude: Structure, guarded: Path, tmp_path: Path
) -> None:
    """A known one may open further beside it."""
    numbers, given = crude.numbers, crude.positions
    (oxygen,) = np.flatnonzero(numbers == 8)
    bonds = find_bonds(numbers, given).tolist()
    known, unknown = (
        next((i, h) for i, h in bonds if numbers[i] == z and numbers[h] == 1) for z in (6, 8)
    )
    now = given.copy()
    for (heavy, hydrogen), by in ((known, 2.0), (unknown, 1.2)):
        now[hydrogen] += by * (given[hydrogen] - given[heavy])
    assert [bond.atoms for bond in opened(numbers, given, now)] == [known, unknown]
    guard = Guard(guarded, "save", save_to=tmp_path / "x.xyz", report=lambda line: None)
    watch = guard.watch(numbers)
    watch.minimised(given, now)
    assert [flag.atom in unknown for flag in guard.flags] == [True]
    watch.remember(0, 0.0, now)
    assert watch.broke() == 1  # the geometry as given was another frame than step 0


@pytest.mark.parametrize("far", [0.7, 0.85, 1.15])  # sums of covalent radii
@pytest.mark.parametrize("atom", [0, 6])
@pytest.mark.parametrize("tip", [0, 1])
def test_a_contact_that_minimising_mends_was_no_bond(far: float, atom: int, tip: int) -> None:
    """Water that a program has put on a carbon or a hydrogen of benzene."""
    benzene = ase.build.molecule("C6H6")
    numbers = np.concatenate([benzene.numbers, [8, 1, 1]])
    along = {0: [(0.0, 0.0), (0.59, 0.76), (0.59, -0.76)]}  # O first
    along[1] = [(0.96, 0.0), (0.0, 0.0), (1.2, 0.93)]  # H first
    out = np.array([0.0, 0.0, 1.0])
    if numbers[atom] == 1:
        out = benzene.positions[atom] / np.linalg.norm(benzene.positions[atom])
    side = np.cross(out, [0.3, 0.5, 0.7])
    side /= np.linalg.norm(side)
    length = far * (covalent_radii[numbers[atom]] + covalent_radii[numbers[12 + tip]])
    water = np.array([(length + x) * out + y * side for x, y in along[tip]])
    given = np.concatenate([benzene.positions, benzene.positions[atom] + water])
    assert [atom, 12 + tip] in find_bonds(numbers, given).tolist()
    now = given.copy()
    now[12:] += 1.5 * out
    assert opened(numbers, given, now) == []


@pytest.mark.parametrize("length", [1.5, 1.6, 1.7])
def test_contacts_of_two_whole_molecules_were_no_bonds(length: float) -> None:
    """Beside an sp2 carbon and a carbonyl's oxygen there is room for a bond, by their valences."""
    benzene, acetone = ase.build.molecule("C6H6"), ase.build.molecule("CH3COCH3")
    (oxygen,) = np.flatnonzero(acetone.numbers == 8)
    carbon = int(acetone.get_distances(oxygen, range(10)).argsort()[1])
    acetone.rotate(acetone.positions[oxygen] - acetone.positions[carbon], (0, 0, -1))
    acetone.translate(benzene.positions[0] + [0, 0, length] - acetone.positions[oxygen])
    numbers = np.concatenate([benzene.numbers, acetone.numbers])
    given = np.concatenate([benzene.positions, acetone.positions])
    assert [0, 12 + oxygen] in find_bonds(numbers, given).tolist()
    now = given + np.where(np.arange(len(given)) < 12, 0.0, 1.2)[:, None] * [0, 0, 1]
    assert opened(numbers, given, now) == []
    now[0] += [0.0, 5.0, 0.0]  # out of the ring: those were bonds
    assert {bond.atoms for bond in opened(numbers, given, now)} == {(0, 1), (0, 5), (0, 6)}


@pytest.mark.parametrize("name", ["C2H4", "cyclobutane", "C2H6", "H2CO"])
def test_bonds_whose_pieces_have_paired_electrons_are_bonds(name: str) -> None:
    """Two carbenes, two ethenes."""
    atoms = ase.build.molecule(name)
    heavy = np.flatnonzero(atoms.numbers > 1)
    centre = atoms.positions[heavy].mean(axis=0)
    axis = atoms.positions[heavy[0]] - atoms.positions[heavy[1]]
    side = (atoms.positions - centre) @ axis
    now = atoms.positions + 0.4 * np.sign(side)[:, None] * axis
    lost = opened(atoms.numbers, atoms.positions, now)
    assert lost and all(i in heavy and j in heavy for i, j in (bond.atoms for bond in lost))


def test_which_bond_has_opened() -> None:
    numbers = np.array([8, 1, 1])
    water = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    for by, found in ((0.49, None), (0.51, (0, 1)), (-0.4, None)):
        now = water + np.array([[0, 0, 0], [by, 0, 0], [0, 0, 0]])
        lost = opened(numbers, water, now)
        assert [bond.atoms for bond in lost] == ([found] if found else [])
    both = opened(numbers, water, water * 1.53)
    assert len(both) == 2 and "O 0 - H 2, 0.96 Å as given and 1.47 Å" in str(both[0])
    assert opened(numbers[:1], water[:1], water[:1]) == []
    assert opened(numbers, water, np.full((3, 3), np.nan)) == []
    assert len(find_bonds(numbers, np.full((3, 3), np.nan))) == 0
    hydrogen = np.array([[0.0, 0, 0], [0.74, 0, 0]])
    assert len(opened(np.array([1, 1]), hydrogen, 3 * hydrogen)) == 1  # H2 is a bond
    far = np.array([[0.0, 0, 0], [1.2, 0, 0]])  # two hydrogens that touch are no bond
    assert opened(np.array([1, 1]), far, 3 * far) == []
    assert len(find_bonds(np.array([], dtype=np.int64), np.empty((0, 3)))) == 0


def test_a_run_looks_at_lengths_between_checks(
    ethanol_structure: Structure, guarded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mlpot md` looks at lengths every few steps, not only where it checks."""
    looked: list[int] = []
    before = Watch.look

    def look(self: Watch, step: int, *given: Any) -> Any:
        looked.append(step)
        return before(self, step, *given)

    monkeypatch.setattr(Watch, "look", look)
    run(ethanol_structure, guarded, tmp_path, steps=2 * LOOK + 1)
    assert looked == [0, LOOK, 2 * LOOK]


@pytest.mark.parametrize(("replicas", "policy"), [(1, "save"), (1, "stop"), (2, "save")])
def test_a_run_that_breaks_keeps_the_frames_before_it(
    ethanol_structure: Structure, guarded: Path, tmp_path: Path, replicas: int, policy: str
) -> None:
    """It broke between two looks, so the guard had raised no flag."""
    wild = save_random_model(tmp_path / "wild.safetensors", layers=1, scale=500.0, floors={})
    options = {"guard": policy, "guard_model": str(guarded), "replicas": replicas}
    options |= {"timestep": 5.0, "report_interval": 5, "steps": 200, "temperature": 300.0}
    lines: list[str] = []
    with pytest.raises(MLPotError, match="broke") as caught:
        run(ethanol_structure, wild, tmp_path / "out", report=lines.append, **options)
    assert not isinstance(caught.value, ExtrapolationError)
    kept = ase.io.read(tmp_path / "out" / "extrapolated.xyz", ":")
    assert {a.info.get("replica") for a in kept} == ({None} if replicas == 1 else {0, 1})
    assert all(np.isfinite(a.positions).all() and a.info["step"] < LOOK for a in kept)
    told = [*lines, str(caught.value)]
    assert any(re.search(r"\d frame\(s\) before .*extrapolated.xyz", line) for line in told), told


def test_a_run_that_warns_goes_on(
    ethanol_structure: Structure, guarded: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    summary = run(ethanol_structure, guarded, tmp_path, steps=200, report=lines.append)
    assert summary.steps == 200 and summary.guard is not None
    assert len(summary.guard["flags"]) == len([line for line in lines if "left what" in line]) > 0
    assert not (tmp_path / "extrapolated.xyz").exists()


def test_saved_frames_are_removed_with_the_other_results(
    ethanol_structure: Structure, guarded: Path, tmp_path: Path
) -> None:
    run(ethanol_structure, guarded, tmp_path, steps=200, guard="save")
    assert (tmp_path / "extrapolated.xyz").exists()
    run(ethanol_structure, guarded, tmp_path, steps=20, guard="off", overwrite=True)
    assert not (tmp_path / "extrapolated.xyz").exists() and told(tmp_path) is None


def test_by_default_a_model_without_statistics_has_no_guard(
    ethanol_structure: Structure, soft_model: Path, tmp_path: Path
) -> None:
    assert run(ethanol_structure, soft_model, tmp_path / "a", steps=20).guard is None
    with pytest.raises(ModelFileError, match="mlpot guard"):
        run(ethanol_structure, soft_model, tmp_path / "b", steps=20, guard="warn")
    assert not (tmp_path / "b").exists()


def test_an_exported_model_with_the_statistics_of_its_weights(
    ethanol_structure: Structure, guarded: Path, tmp_path: Path
) -> None:
    export(guarded, tmp_path / "m.pt")
    options = {"engine": "auto", "steps": 5}
    assert run(ethanol_structure, tmp_path / "m.pt", tmp_path / "a", **options).guard is None
    options |= {"guard_model": str(guarded)}
    found = run(ethanol_structure, tmp_path / "m.pt", tmp_path / "b", **options)
    assert found.guard is not None and found.guard["largest"]["grade"] > 0


def test_the_command_takes_a_committee(
    ethanol_structure: Structure, members: list[Path], tmp_path: Path
) -> None:
    ase.io.write(tmp_path / "e.xyz", ethanol())
    words = ["md", tmp_path / "e.xyz", "--model", members[0], "--out", tmp_path / "out"]
    words += ["--steps", 20, "--host", "ase", "--quiet"]
    words += ["--guard-model", f"{members[0]},{members[1]}"]
    result = CliRunner().invoke(cli, [str(w) for w in words])
    assert result.exit_code == 0, result.output
    assert "committee of 2" in result.stdout and told(tmp_path / "out")["committee"]["unit"] > 0
    words += ["--overwrite", "--guard-unit", 0.25]
    assert CliRunner().invoke(cli, [str(w) for w in words]).exit_code == 0
    assert told(tmp_path / "out")["committee"] == {"members": ["m1", "m2"], "unit": 0.25}


def test_a_run_of_replicas_tells_stopped_from_broken(
    ethanol_structure: Structure, guarded: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    options = {"guard": "stop", "steps": 3000, "replicas": 2, "report": lines.append}
    with pytest.raises(ExtrapolationError, match="no replica is left: 2 of 2 were stopped"):
        run(ethanol_structure, guarded, tmp_path, **options)
    assert sorted(line.split(":")[1] for line in lines if "stopped" in line) == [
        " replica 0",
        " replica 1",
    ]
    details = json.loads((tmp_path / "run.json").read_text())["replicas"]
    assert all(d["stopped_by_guard"] and not d["broke"] for d in details)
    assert (tmp_path / "final.pdb").is_file() and (tmp_path / "replica_01.dcd").is_file()


# --- where statistics come from ------------------------------------------------------------------


def write_xyz(path: Path, records: list[Record]) -> Path:
    from ase.calculators.singlepoint import SinglePointCalculator

    frames = []
    for record in records:
        atoms = Atoms(record.numbers, record.positions)
        atoms.calc = SinglePointCalculator(atoms, energy=-4000.0, forces=record.forces)
        frames.append(atoms)
    ase.io.write(path, frames)
    return path


def test_finetuning_leaves_statistics_of_its_own_frames(guarded: Path, tmp_path: Path) -> None:
    """Not those of the model it started from, but for the lengths that this knows."""
    atoms = ethanol()
    numbers, positions = atoms.numbers.astype(np.int64), atoms.positions
    records = [
        replace(r, energy=load(guarded)(numbers, r.positions).energy)
        for r in frames_of(guarded, numbers, positions, 0.1)
    ]
    loop = {"steps": 2, "validate_every": 2, "batch_atoms": 90, "compile": "no"}
    config = FinetuneConfig.model_validate({"validation": 20, "test": 0, "loop": loop})
    info, _ = finetune(records, config, tmp_path, guarded, progress=False, report=lambda _: None)
    before = load_potential(guarded)[1].extrapolation
    assert info.extrapolation is not None and before is not None
    assert (info.extrapolation.frames, info.extrapolation.held_back) == (40, 20)
    assert info.extrapolation.lengths_of_start and not before.lengths_of_start
    tables = [load_extrapolation(path).pairs for path in (tmp_path / MODEL, guarded)]
    assert tables[0] is not None and tables[1] is not None
    assert (tables[0].gaps <= tables[1].gaps).all()
    assert info.extrapolation != before and load_potential(tmp_path / MODEL)[1] == info
    wide = FeatureGrader(tmp_path / MODEL).bind(numbers)
    narrow = FeatureGrader(guarded).bind(numbers)
    moved = [r.positions for r in records]
    assert np.median([wide(x).max() for x in moved]) < 1
    assert np.median([narrow(x).max() for x in moved]) > 1
    again, _ = finetune(records, config, tmp_path, guarded, progress=False, report=lambda _: None)
    assert again == info  # a finished run is left alone


def test_too_few_frames_cost_the_guard_and_not_the_model(guarded: Path, tmp_path: Path) -> None:
    atoms = ethanol()
    numbers, lines = atoms.numbers.astype(np.int64), []
    made = frames_of(guarded, numbers, atoms.positions, 0.1)[:6]
    records = [replace(r, energy=-4000.0) for r in made]
    loop = {"steps": 2, "validate_every": 2, "batch_atoms": 90, "compile": "no"}
    config = FinetuneConfig.model_validate({"validation": 1, "test": 0, "loop": loop})
    guard_of = "mlpot.train.guard.fit_guard"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard_of, lambda *_, **__: (_ for _ in ()).throw(InputError("too few")))
        info, _ = finetune(records, config, tmp_path, None, progress=False, report=lines.append)
    assert info.extrapolation is None
    assert any("without a guard: too few" in line for line in lines)


def command(*args: object) -> Result:
    app = typer.Typer(cls=Group)
    app.command("guard")(guard_command)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["guard", *(str(a) for a in args)])


def test_the_command_adds_statistics(soft_model: Path, guarded: Path, tmp_path: Path) -> None:
    atoms = ethanol()
    records = frames_of(soft_model, atoms.numbers.astype(np.int64), atoms.positions, 0.05)
    data = write_xyz(tmp_path / "data.xyz", records)
    before = soft_model.read_bytes()
    result = command(soft_model, data, "--out", tmp_path / "new.safetensors")
    assert result.exit_code == 0, result.output
    assert "54 training frames and 6 held back (a tenth held back, by frame)" in result.stdout
    assert soft_model.read_bytes() == before
    old, new = load(soft_model), load(tmp_path / "new.safetensors")
    assert new.info.extrapolation is not None
    x = atoms.positions
    assert np.array_equal(old(atoms.numbers, x).forces, new(atoms.numbers, x).forces)
    few = command(soft_model, data, "--out", tmp_path / "few.safetensors", "--frames", 20)
    assert "18 training frames" in few.stdout
    begun = command(soft_model, data, "--out", tmp_path / "next.safetensors", "--start", guarded)
    assert begun.exit_code == 0, begun.output
    known = load(tmp_path / "next.safetensors").info.extrapolation
    assert known is not None and known.lengths_of_start
    blind = command(soft_model, data, "--out", tmp_path / "no.safetensors", "--start", soft_model)
    assert blind.exit_code and "holds no statistics" in " ".join(blind.output.split())
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("pretrained-visnet", "data.xyz", "comes with mlpot and is not altered.*--out"),
        ("soft", "unforced.xyz", "no forces"),
        ("soft", "fluorine.xyz", "not cover.*training frames"),
        ("nowhere.safetensors", "data.xyz", "no model file"),
    ],
)
def test_what_the_command_refuses(
    soft_model: Path, tmp_path: Path, model: str, data: str, message: str
) -> None:
    atoms = ethanol()
    records = frames_of(soft_model, atoms.numbers.astype(np.int64), atoms.positions, 0.05)
    write_xyz(tmp_path / "data.xyz", records)
    ase.io.write(tmp_path / "unforced.xyz", [atoms, atoms])
    other = replace(records[0], numbers=np.where(records[0].numbers == 8, 9, records[0].numbers))
    write_xyz(tmp_path / "fluorine.xyz", [other] * 3)
    before = soft_model.read_bytes()
    result = command(soft_model if model == "soft" else model, tmp_path / data)
    assert result.exit_code == 1
    assert re.search(message, result.stderr), result.output
    assert soft_model.read_bytes() == before


def test_a_run_without_a_guard_says_so(tmp_path: Path) -> None:
    """As of an exported model, which does not say what it was trained on; not if it was asked."""
    lines: list[str] = []
    exported = tmp_path / "exported.pt"
    exported.write_bytes(b"")
    assert make_guard("auto", exported, tmp_path / "x.xyz", lines.append) is None
    assert len(lines) == 1 and lines[0].startswith("unguarded: ") and ".safetensors" in lines[0]
    assert make_guard("off", exported, tmp_path / "x.xyz", lines.append) is None
    assert len(lines) == 1
