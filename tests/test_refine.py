"""Active learning: rounds happen, nothing is done twice after a kill, debris is not learned."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
import typer
from ase import Atoms
from ase.calculators.calculator import Calculator
from torch import Tensor
from typer.testing import CliRunner

from mlpot.active import explore as exploring
from mlpot.active import records as recording
from mlpot.active import refine as refining
from mlpot.active.choose import choose, describe, farthest
from mlpot.active.explore import FLAGGED, LAST, THERMAL, explore, plan
from mlpot.active.records import RoundFiles, read_frames
from mlpot.active.sanity import Sanity
from mlpot.active.settings import INTERVAL, LOOK, RefineSettings
from mlpot.cli.common import Group
from mlpot.cli.refine import refine as refine_command
from mlpot.data.formats import read
from mlpot.data.formats.extxyz import write_extxyz
from mlpot.data.labellers import labeller
from mlpot.data.loader import GraphLoader
from mlpot.data.record import Record
from mlpot.deploy.grader import FeatureGrader, Grader
from mlpot.errors import DataError, InputError, MLPotError, UnsupportedSystemError
from mlpot.graph import Graph
from mlpot.md.guard import Guard, ReplicaGuard
from mlpot.md.replicas import Replicas
from mlpot.md.structure import Structure, read_structure
from mlpot.models.checkpoint import load_potential
from mlpot.train import guard as guarding
from mlpot.train.finetune import EnergyForceModule, FinetuneConfig
from mlpot.train.guard import add_guard
from mlpot.train.loop import quiet
from tests.helpers import ethanol, random_potential, save_random_model

COLD = 20.0  # K; on a surface that is nearly flat, warm molecules fly apart


class Springs(Calculator):
    """A spring between any two atoms, at rest in ethanol; some frames fail, some are absurd."""

    implemented_properties = ["energy", "forces"]
    calls: list[bytes] = []  # noqa: RUF012 (shared: calculators are made anew)
    deadly = -1  # calls until one is interrupted

    def __init__(self, picky: bool = True):
        super().__init__()
        self.picky = picky
        self.rest = ethanol().get_all_distances()

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = ()):
        super().calculate(atoms, properties, system_changes)
        if Springs.deadly == 0:
            Springs.deadly = -1
            raise KeyboardInterrupt
        Springs.deadly -= 1
        Springs.calls.append(atoms.positions.tobytes())
        kind = round(1e5 * abs(atoms.positions[0, 0])) % 7 if self.picky else 6
        if kind == 0:
            raise RuntimeError("no convergence")
        arms = atoms.positions[:, None] - atoms.positions[None]
        lengths = np.linalg.norm(arms, axis=2) + np.eye(len(atoms))
        stretch = lengths - self.rest - np.eye(len(atoms))
        forces = -(2.0 * stretch / lengths)[:, :, None] * arms
        self.results = {
            "energy": float(0.5 * (stretch**2).sum()) - 300.0,
            "forces": forces.sum(axis=1) * (1e4 if kind == 1 else 1.0),
        }


SPRINGS = "tests.test_refine:Springs"


class Scripted(Grader):
    """Calm, but for the hot half of the replicas in the second half of the second round."""

    cold = False  # the cold half instead

    def __init__(self, model: Path):
        real = FeatureGrader(model)  # has statistics, or this raises
        super().__init__(real.info, real.cutoff, real.dtype, real.device)
        self.restless, self.checks = "round_00" in str(model), 0

    def grades(self, graph: Graph) -> Tensor:
        self.checks += 1
        grades = torch.full((len(graph.numbers),), 0.5)
        if self.restless and self.checks > 2:
            half = len(grades) // 2
            grades[slice(half) if self.cold else slice(half, None)] = 9.0  # needs no confirmation
        return grades


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Frames in every check; a scripted guard; a fresh count of calculations."""
    quiet()
    monkeypatch.setattr(exploring, "THERMAL_SPACING", 0.0)
    monkeypatch.setattr(
        exploring,
        "Guard",
        lambda model, policy, **given: Guard(Scripted(model), policy, **given),
    )
    Springs.calls.clear()
    Springs.deadly = -1
    yield


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "flat.safetensors"
    return save_random_model(path, name="flat", layers=1, scale=0.05, floors={})


@pytest.fixture(scope="module")
def structure(tmp_path_factory: pytest.TempPathFactory) -> Structure:
    path = tmp_path_factory.mktemp("structures") / "ethanol.xyz"
    ase.io.write(path, ethanol())
    return read_structure(path)


def settings(**changes: Any) -> RefineSettings:
    small: dict[str, Any] = {"temperatures": (COLD, 30.0), "ps": 0.05, "replicas": 4, "rounds": 3}
    return RefineSettings(
        **{**small, "initial": 12, "frames": 6, "spacing": 0.0, "engine": "eager", **changes}
    )


def config(**changes: Any) -> FinetuneConfig:
    loop = {"steps": 8, "batch_atoms": 36, "warmup": 2, "validate_every": 4, "ema": 0.5}
    return FinetuneConfig(**{"validation": 0.25, "test": 0.0, "loop": loop, **changes})


def refine(structure: Structure, start: Path, out: Path, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "settings": settings(),
        "config": config(),
        "workers": 0,
        "progress": False,
    }
    options |= {"labeller": labeller(SPRINGS, level="springs"), "report": lambda line: None}
    return refining.refine(structure, start, out=out, **(options | changes))


# --- the loop ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(
    structure: Structure, start: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], int]:
    """An undisturbed run: folder, what it told, calculations."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exploring, "THERMAL_SPACING", 0.0)
        patch.setattr(
            exploring, "Guard", lambda m, policy, **given: Guard(Scripted(m), policy, **given)
        )
        Springs.calls.clear()
        told = refine(structure, start, out)
    return out, told, len(Springs.calls)


def test_rounds_until_the_guard_is_quiet(whole: tuple) -> None:
    out, told, calls = whole
    first, second, third = told["rounds"]
    assert told["outcome"].startswith("quiet")
    assert [row["trained"] for row in told["rounds"]] == [True, True, False]
    # the start model knows no training set: the lowest temperature only, and no flags
    assert not first["guarded"] and [t["temperature"] for t in first["simulated"]] == [COLD]
    assert first["frames"]["candidates"]["thermal"] == 16 and first["frames"]["chosen"] == 12
    assert [t["temperature"] for t in second["simulated"]] == [COLD, 30.0]
    cold, warm = second["simulated"]
    assert (cold["flagged"], cold["unstable"], cold["stable_ps"]) == (0, 0, pytest.approx(0.05))
    assert (warm["flagged"], warm["first_flag_ps"]) == (4, pytest.approx(0.0375))
    assert (warm["unstable"], warm["broke"], warm["stable_ps"]) == (4, 0, pytest.approx(0.0375))
    assert second["frames"]["candidates"] == {"flagged": 8, "last sound": 0, "thermal": 0}
    assert second["frames"]["chosen"] == 6
    assert all(t["unstable"] == 0 for t in third["simulated"])
    assert json.loads((out / "rounds.json").read_text()) == told
    assert calls == first["frames"]["chosen"] + second["frames"]["chosen"]


def test_what_lies_in_the_folder(whole: tuple) -> None:
    out, told, _ = whole
    assert (out / "model.safetensors").read_bytes() == RoundFiles(out, 1).model.read_bytes()
    info = load_potential(out / "model.safetensors")[1]
    assert info.level == "springs" and info.extrapolation is not None
    assert info.provenance["start"]["name"] == "flat"  # and not the model of round 0
    for row in told["rounds"][:2]:
        files, frames = RoundFiles(out, row["round"]), row["frames"]
        labels = read(files.labels)
        assert len(labels) == frames["labelled"] > 0
        assert {r.level for r in labels} == {"springs"}
        assert frames["chosen"] == frames["labelled"] + frames["failed"] + frames["left_out"]
    trained = told["rounds"][1]["training_frames"]
    assert trained == sum(row["frames"]["labelled"] for row in told["rounds"][:2])


def test_failures_and_absurd_forces_are_recorded_and_not_learned(whole: tuple) -> None:
    out, told, _ = whole
    files = RoundFiles(out, 0)
    kept = json.loads(files.labelled.read_text())
    assert kept["failed"] and kept["left_out"]
    assert all("no convergence" in f["why"] for f in kept["failed"])
    assert all(f["max_force"] > 30 for f in kept["left_out"])
    chosen = read(files.chosen)
    bad = [chosen[f["frame"]].positions for f in kept["failed"] + kept["left_out"]]
    for record in read(files.labels):
        assert not any(np.allclose(record.positions, x, atol=1e-6) for x in bad)


def test_errors_do_not_count_the_level_of_theory(whole: tuple) -> None:
    """References of ethanol in the start model are thousands of eV away from the springs'."""
    errors = whole[1]["rounds"][0]["errors"]
    assert errors["before"]["energy_mae"] < 1.0
    assert errors["before"]["force_mae"] > 0 and errors["after"]["force_mae"] > 0
    assert errors["validation"]["energy_mae"] < 1.0


class Killed(BaseException):
    """As far as Python can be killed and go on."""


def dying(function: Any, when: Any = lambda *args, **options: True, after: bool = False) -> Any:
    """The same function, which dies once (before or after its work) where ``when`` says so."""
    lives = [1]

    def wrapped(*args: Any, **options: Any) -> Any:
        if not (lives and when(*args, **options)):
            return function(*args, **options)
        lives.pop()
        if after:
            function(*args, **options)
        raise Killed

    return wrapped


def to(name: str, folder: str = "") -> Any:
    def when(path: Path, *_: Any, **__: Any) -> bool:
        return path.name == name and folder in str(path)

    return when


def deaths() -> list[tuple[Any, str, Any]]:
    """(where, what, how it dies), in the order of a run."""
    half = dying(Replicas.step, lambda replicas, count=1: len(replicas) > 1 and replicas.steps > 40)
    train = dying(EnergyForceModule.training_step, lambda module, *_: module.global_step == 6)
    return [
        (recording.Journal, "_write", dying(recording.Journal._write)),
        (Replicas, "step", half),
        (exploring, "write_json", dying(exploring.write_json)),
        (exploring, "write_json", dying(exploring.write_json, after=True)),
        (refining, "write_frames", dying(refining.write_frames)),
        (refining, "write_frames", dying(refining.write_frames, after=True)),
        (Springs, "deadly", 5),
        (refining, "write_labelled", dying(refining.write_labelled)),
        (refining, "write_labelled", dying(refining.write_labelled, after=True)),
        (EnergyForceModule, "training_step", train),
        (guarding, "fit_guard", dying(guarding.fit_guard)),
        (refining, "write_atomically", dying(refining.write_atomically)),
        (recording.Journal, "add", dying(recording.Journal.add)),
        (recording.Journal, "add", dying(recording.Journal.add, after=True)),
        (refining, "write_json", dying(refining.write_json, to("labels.json", "round_01"))),
        (refining, "finetune", dying(refining.finetune, after=True)),
        (recording.Journal, "end", dying(recording.Journal.end, lambda s, how: "quiet" in how)),
    ]


def test_killed_at_every_stage_it_goes_on_and_does_nothing_twice(
    whole: tuple,
    structure: Structure,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, told, calls = whole
    again, steps, honest = tmp_path / "again", [], EnergyForceModule.training_step

    def counted(self: EnergyForceModule, batch: Any, index: int) -> Tensor:
        steps.append(self.global_step)
        return honest(self, batch, index)

    monkeypatch.setattr(EnergyForceModule, "training_step", counted)
    for where, what, how in deaths():
        with pytest.MonkeyPatch.context() as patch, pytest.raises((Killed, KeyboardInterrupt)):
            patch.setattr(where, what, how)
            refine(structure, start, again)
    assert refine(structure, start, again) == told
    assert len(set(Springs.calls)) == calls
    # the first training died at step 6 and went on from its checkpoint at step 4
    assert steps == [*range(6), *range(4, 8), *range(8)]
    # a calculation is stored when the next has been handed out, so Ctrl-C can cost one
    assert len(Springs.calls) <= calls + 1
    same = [p.relative_to(out) for p in out.rglob("*") if p.suffix in (".xyz", ".safetensors")]
    same += [p.relative_to(out) for p in out.glob("**/*.json")]
    assert len(same) > 15
    for path in same:
        assert (again / path).read_bytes() == (out / path).read_bytes(), path
    left = [p.name for p in again.rglob("*") if p.name.endswith((".part", ".tmp"))]
    assert not left


def test_a_finished_run_is_not_done_again(
    whole: tuple, structure: Structure, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, told, _ = whole
    before = (out / "rounds.json").read_bytes()
    for work in ("explore", "finetune", "label"):
        monkeypatch.setattr(refining, work, lambda *_, **__: pytest.fail("done twice"))
    assert refine(structure, start, out) == told
    assert (out / "rounds.json").read_bytes() == before


def test_rounds_run_out_and_more_can_be_given(
    whole: tuple, structure: Structure, start: Path, tmp_path: Path
) -> None:
    own = read(RoundFiles(whole[0], 0).labels)
    options = {"data": own, "labeller": labeller(SPRINGS, {"picky": False}, "springs")}
    few = {"settings": settings(rounds=1, temperatures=(COLD,)), **options}
    told = refine(structure, start, tmp_path / "out", **few)
    assert told["outcome"].startswith("all rounds")
    assert [row["trained"] for row in told["rounds"]] == [True, False]
    assert told["rounds"][0]["training_frames"] == len(own) + 12
    assert told["rounds"][1]["simulated"][0]["flagged"] == 2  # the last model was simulated too
    more = {"settings": settings(rounds=2, temperatures=(COLD,)), **options}
    told = refine(structure, start, tmp_path / "out", **more)
    assert [row["trained"] for row in told["rounds"]] == [True, True, False]
    assert told["outcome"].startswith("quiet") and told["rounds"][1]["frames"]["labelled"] == 4


def test_flags_at_a_lower_temperature_are_no_quiet(
    structure: Structure, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hottest replicas are calm, and the others are flagged: there is more to learn."""
    monkeypatch.setattr(Scripted, "cold", True)
    options = {"labeller": labeller(SPRINGS, {"picky": False}, "springs")}
    told = refine(structure, start, tmp_path / "out", settings=settings(rounds=1), **options)
    cold, warm = told["rounds"][1]["simulated"]
    assert (cold["flagged"], warm["flagged"], warm["broke"]) == (4, 0, 0)
    assert told["outcome"].startswith("all rounds")


def test_a_quiet_model_of_the_same_level_needs_no_training(
    whole: tuple, structure: Structure, tmp_path: Path
) -> None:
    model = RoundFiles(whole[0], 1).model
    told = refine(structure, model, tmp_path / "out")
    assert told["outcome"].startswith("quiet") and len(told["rounds"]) == 1
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == model.read_bytes()
    assert not Springs.calls


def test_every_label_failing_is_one_error_and_a_retry_goes_on(
    structure: Structure, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Springs.calculate

    def failing(self: Springs, *args: Any, **options: Any) -> None:
        raise RuntimeError("no licence")

    monkeypatch.setattr(Springs, "calculate", failing)
    with pytest.raises(DataError, match="no frame of the first round.*no licence.*--retry"):
        refine(structure, start, tmp_path)
    monkeypatch.setattr(Springs, "calculate", honest)
    told = refine(structure, start, tmp_path, retry=True, settings=settings(rounds=1))
    assert told["rounds"][0]["trained"]


def test_later_rounds_without_a_usable_label_end_it(
    structure: Structure, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = labeller(SPRINGS, {"picky": False})
    told = refine(structure, start, tmp_path / "first", settings=settings(rounds=1), labeller=how)
    assert told["rounds"][0]["trained"]
    monkeypatch.setattr(refining, "_strongest", lambda record: 99.0)
    told = refine(structure, start, tmp_path / "first", settings=settings(rounds=2), labeller=how)
    assert told["outcome"].startswith("stuck: no flagged frame")
    assert "6 had forces beyond --max-force" in told["outcome"]
    row = told["rounds"][1]
    assert not row["trained"] and row["frames"]["left_out"] == row["frames"]["chosen"] == 6
    before = RoundFiles(tmp_path / "first", 0).model.read_bytes()
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == before


def test_broken_before_there_is_a_frame_is_no_result(
    structure: Structure, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the start model does not pass for one."""
    monkeypatch.setattr(refining, "read_frames", lambda path: [])
    told = refine(structure, start, tmp_path / "out")
    assert told["outcome"].startswith("stuck: the simulations broke")
    assert "--data" in told["outcome"]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    app = typer.Typer(cls=Group)
    app.command("refine")(refine_command)
    app.command("other")(lambda: None)
    monkeypatch.setattr(refining, "refine", lambda *_, **__: told)
    options = ["--with", SPRINGS, "--out", str(tmp_path / "out"), "--model", str(start)]
    result = CliRunner().invoke(app, ["refine", "CCO", *options])
    assert result.exit_code == 1 and "error: stuck: the simulations broke" in result.stderr
    assert "wrote" not in result.output


def test_own_frames_are_known_when_frames_are_chosen(
    whole: tuple,
    structure: Structure,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, seen = read(RoundFiles(whole[0], 0).labels), []
    other = replace(own[0], numbers=own[0].numbers[:3], positions=own[0].positions[:3])
    other = replace(other, forces=own[0].forces[:3])  # another molecule tells nothing

    def noted(candidates: Any, known: Any, *options: Any) -> Any:
        seen.append(known)
        return choose(candidates, known, *options)

    monkeypatch.setattr(refining, "choose", noted)
    few = settings(rounds=1, temperatures=(COLD,))
    refine(structure, start, tmp_path / "out", data=[*own, other], settings=few)
    assert [r.positions.tobytes() for r in seen[0]] == [r.positions.tobytes() for r in own]


def test_flagged_frames_draw_the_line_where_they_were_learned(whole: tuple) -> None:
    """Two calm frames, one flagged that the model knows, one that it is wrong about."""
    model, _ = load_potential(RoundFiles(whole[0], 1).model)
    frames = read(RoundFiles(whole[0], 0).labels)[:4]
    model.eval()
    off = [0.1, 0.2, 0.4, 0.6]  # eV/Å, on one atom; 0.45 is three times the median of the first two
    records = []
    for record, error in zip(frames, off, strict=True):
        graph = next(iter(GraphLoader([record], model.cutoff, 100, shuffle=False))).graph
        forces = model(graph).forces.detach().double().numpy()
        forces[3, 1] += error
        records.append(replace(record, forces=forces))
    calm = [r.positions.tobytes() for r in records[:2]]
    kept = guarding.learned(model, records, lambda r: r.positions.tobytes() in calm)
    assert [any(r is k for k in kept) for r in records] == [True, True, True, False]
    # where none is calm, the median is that of all
    assert len(guarding.learned(model, records, lambda r: False)) == 4
    # and a calm one counts, however wrong
    assert len(guarding.learned(model, records[1:], lambda r: r is records[3])) == 3


def test_calm_frames_are_told_to_the_training(
    whole: tuple, structure: Structure, start: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """By what was chosen, whatever could not be labelled in between."""
    out, told, _ = whole
    asked: list[Any] = []
    honest = refining.finetune

    def noted(records: Any, *given: Any, usual: Any) -> Any:
        asked.append([usual(r) for r in records])
        return honest(records, *given, usual=usual)

    monkeypatch.setattr(refining, "finetune", noted)
    assert refine(structure, start, tmp_path / "out") == told
    thermal, flagged = (told["rounds"][n]["frames"]["labelled"] for n in (0, 1))
    assert asked == [[True] * thermal, [True] * thermal + [False] * flagged]


def test_a_guarded_start_has_both_kinds_in_its_first_round(
    whole: tuple, structure: Structure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calm replicas at the lowest temperature, flagged ones above; some cannot be labelled."""
    asked: list[Any] = []
    honest = refining.finetune

    def noted(records: Any, *given: Any, usual: Any) -> Any:
        asked.extend(usual(r) for r in records)
        return honest(records, *given, usual=usual)

    monkeypatch.setattr(refining, "finetune", noted)
    start, out = RoundFiles(whole[0], 0).model, tmp_path / "out"
    told = refine(structure, start, out, settings=settings(rounds=1, frames=8))
    files = RoundFiles(out, 0)
    why = [frame.info["why"] for frame in read_frames(files.chosen)]
    assert {THERMAL, FLAGGED} <= set(why)
    kept = json.loads(files.labelled.read_text())
    bad = {f["frame"] for f in kept["failed"] + kept["left_out"]}
    assert bad and told["rounds"][0]["trained"]
    assert asked == [w == THERMAL for i, w in enumerate(why) if i not in bad]


def test_a_refinement_from_before_forces_were_asked_about_goes_on(
    whole: tuple, structure: Structure, start: Path, tmp_path: Path
) -> None:
    own = read(RoundFiles(whole[0], 0).labels)
    few = {"settings": settings(rounds=1, temperatures=(COLD,)), "data": own}
    told = refine(structure, start, tmp_path / "out", **few)
    journal = tmp_path / "out" / "rounds.json"
    old = json.loads(journal.read_text())
    del old["asked"]["forces"]
    journal.write_text(json.dumps(old))
    assert refine(structure, start, tmp_path / "out", **few)["rounds"] == told["rounds"]
    other = [replace(own[0], forces=own[0].forces + 0.1), *own[1:]]
    with pytest.raises(InputError, match=r"other options \(forces: "):
        refine(structure, start, tmp_path / "out", **{**few, "data": other})


# --- what is simulated and chosen ----------------------------------------------------------------


def test_debris_is_recorded_and_no_candidate(
    structure: Structure, start: Path, tmp_path: Path
) -> None:
    """A flat surface at 1500 K: hydrogens fly off within 50 fs."""
    hot = settings(temperatures=(1500.0,), ps=0.2)
    files = RoundFiles(tmp_path, 1)
    explore(structure, plan(hot, 1, start), hot, files)
    seen = json.loads(files.explored.read_text())
    assert all("flew off" in r["end"] or "overlap" in r["end"] for r in seen["replicas"])
    assert len(seen["rejected"]) == len(read_frames(files.rejected)) == 4
    assert all(r["stable_ps"] < 0.2 for r in seen["replicas"])
    # the last sound frame of each, before it broke
    kept = read_frames(files.candidates)
    assert 0 < len(kept) <= 4 and {a.info["why"] for a in kept} == {LAST}
    sanity = Sanity(structure.numbers, structure.positions)
    assert not any(sanity.problem(a.positions) for a in kept)
    assert all(sanity.problem(a.positions) for a in read_frames(files.rejected))


@pytest.fixture(scope="module")
def knowing(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flat surface, with statistics of whole ethanol: a real grader, which sees lengths."""
    path = tmp_path_factory.mktemp("models") / "knowing.safetensors"
    path.write_bytes(start.read_bytes())
    rng, atoms = np.random.default_rng(0), ethanol()
    moves = 0.05 * rng.standard_normal((60, 9, 3))
    noise = 0.1 * rng.standard_normal((60, 9, 3))
    pairs = zip(moves, noise, strict=True)
    numbers = atoms.numbers.astype(np.int64)
    frames = [Record(numbers, atoms.positions + m, forces=f, group="one") for m, f in pairs]
    add_guard(path, frames)
    return path


def test_lengths_are_looked_at_between_checks(
    structure: Structure, knowing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hydrogen that leaves is flagged, and kept, before the next check finds its debris."""
    looked: list[int] = []
    before = ReplicaGuard.__call__

    def call(self: ReplicaGuard, replicas: Replicas) -> None:
        looked.append(replicas.steps)
        before(self, replicas)

    monkeypatch.setattr(ReplicaGuard, "__call__", call)
    monkeypatch.setattr(exploring, "Guard", Guard)  # a real one
    hot = settings(temperatures=(1500.0,), ps=0.1, replicas=8)
    files = RoundFiles(tmp_path, 1)
    explore(structure, plan(hot, 1, knowing), hot, files)
    assert looked[:4] == [LOOK, 2 * LOOK, 3 * LOOK, 4 * LOOK] and LOOK < INTERVAL
    kept = [a for a in read_frames(files.candidates) if a.info["why"] == FLAGGED]
    between = [a for a in kept if a.info["step"] % INTERVAL]
    assert between, [a.info["step"] for a in kept]
    sanity = Sanity(structure.numbers, structure.positions)
    assert not any(sanity.problem(a.positions) for a in between)
    assert all(a.info["extrapolation_grade"] > 3.0 for a in between)
    flags = {
        (r["replica"], round(r["flag_ps"] * 2000))
        for r in json.loads(files.explored.read_text())["replicas"]
        if r["flag_ps"] is not None
    }
    assert {(a.info["replica"], a.info["step"]) for a in between} <= flags


def test_the_last_sound_frame_is_from_just_before_the_break(
    structure: Structure, start: Path, tmp_path: Path
) -> None:
    """Looked for as often as lengths are, and not at checks only."""
    hot = settings(temperatures=(1500.0,), ps=0.1)
    files = RoundFiles(tmp_path, 0)
    explore(structure, plan(hot, 0, start), hot, files)
    last = {a.info["replica"]: a.info["step"] for a in read_frames(files.candidates)}
    broken = {a.info["replica"]: a.info["step"] for a in read_frames(files.rejected)}
    assert broken and {broken[r] - last[r] for r in broken} == {LOOK}


def test_sanity() -> None:
    atoms = ethanol() + Atoms("OHH", [[9, 0, 0], [9.96, 0, 0], [8.76, 0.93, 0]])
    sanity = Sanity(atoms.numbers, atoms.positions)
    assert not sanity.problem(atoms.positions)
    far = atoms.positions.copy()
    far[9:] += 50.0  # a molecule that was apart may go further
    assert not sanity.problem(far)
    hydrogen = int((atoms.numbers == 1).argmax())
    gone = atoms.positions.copy()
    gone[hydrogen] += 30.0
    assert sanity.problem(gone) == f"H{hydrogen} flew off"
    close = atoms.positions.copy()
    close[0] = close[1] + [0.5, 0, 0]
    assert "overlap" in sanity.problem(close)
    close[0, 0] = np.nan
    assert "not finite" in sanity.problem(close)


@pytest.mark.parametrize("factor", [0.75, 1.3])
def test_bonds_of_hot_molecules_are_sane(factor: float) -> None:
    atoms = ethanol()
    assert not Sanity(atoms.numbers, atoms.positions).problem(factor * atoms.positions)


def test_a_proton_that_changes_its_partner_is_no_debris() -> None:
    """H of one water goes over to the other, and both stay."""
    atoms = Atoms("OHHOHH", np.zeros((6, 3)))
    atoms.positions[:3] = [[0, 0, 0], [0.97, 0, 0], [-0.24, 0.93, 0]]
    atoms.positions[3:] = [[2.7, 0, 0], [3.0, 0.9, 0], [3.0, -0.9, 0]]
    sanity = Sanity(atoms.numbers, atoms.positions)
    moved = atoms.positions.copy()
    moved[1] = [1.6, 0, 0]
    assert not sanity.problem(moved)


def test_farthest_points() -> None:
    line = np.array([[0.0], [0.1], [1.0], [5.0], [5.1]])
    assert farthest(line, np.zeros((0, 1)), 3) == [0, 2, 4]
    assert farthest(line, np.array([[5.0]]), 1) == [0]
    assert farthest(line, np.array([[0.0], [5.0]]), 1) == [2]
    assert farthest(line, np.zeros((0, 1)), 9) == [0, 1, 2, 3, 4]
    same = np.zeros((4, 2))
    assert len(set(farthest(same, same[:1], 3))) == 3


def test_frames_are_chosen_where_nothing_is_known() -> None:
    """Twenty frames of one geometry, one of another: the other is taken, twins are not."""
    model, atoms = random_potential(layers=1), ethanol()
    rng = np.random.default_rng(0)

    def frame(shift: float, why: str = "flagged") -> Atoms:
        moved = atoms.copy()
        moved.positions += 1e-3 * rng.standard_normal((9, 3))
        moved.positions[0] += shift
        moved.info["why"] = why
        return moved

    flagged = [frame(0.0) for _ in range(20)] + [frame(0.2)]
    known = [Record(numbers=a.numbers.astype(np.int64), positions=a.positions) for a in flagged[:5]]
    assert choose(flagged, known, model, frames=1, initial=0) == [flagged[20]]
    calm = [frame(0.0, THERMAL) for _ in range(9)]
    assert choose(calm, [], model, frames=1, initial=3) == [calm[0], calm[4], calm[8]]
    assert choose([*calm[:2], *flagged[:3]], [], model, 5, 5) == [*calm[:2], *flagged[:3]]
    assert choose([], [], model, 5, 5) == []


def test_features_do_not_know_the_order_of_atoms() -> None:
    model, atoms = random_potential(layers=1), ethanol()
    order = np.argsort(np.random.default_rng(1).random(9))
    other = atoms.positions + 0.1 * np.random.default_rng(2).standard_normal((9, 3))
    numbers = atoms.numbers.astype(np.int64)
    frames = [
        (numbers, atoms.positions),
        (numbers[order], atoms.positions[order]),
        (numbers, other),
    ]
    a, b, c = describe(model, [Record(numbers=z, positions=x) for z, x in frames])
    assert np.linalg.norm(a - b) < 1e-3 * np.linalg.norm(a - c)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperatures": ()}, "temperatures"),
        ({"temperatures": (300.0, -1.0)}, "temperatures"),
        ({"ps": 0.001}, "looks every"),
        ({"replicas": 0}, "replicas"),
        ({"rounds": 0}, "rounds"),
        ({"initial": 3}, "initial"),
        ({"linger": -1.0}, "linger"),
        ({"max_force": float("nan")}, "max_force"),
        ({"threads": 0}, "threads"),
    ],
)
def test_settings_that_make_no_sense(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**change)


def test_what_cannot_work_is_refused_before_the_first_step(
    whole: tuple, structure: Structure, start: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def refused(kind: type[MLPotError], message: str, **changes: Any) -> None:
        given = {"structure": structure, "start": start, "out": out, **changes}
        with pytest.raises(kind, match=message):
            refine(**given)
        assert not out.exists()

    labelled = read(RoundFiles(whole[0], 0).labels)
    box = replace(structure, box=20 * np.eye(3))
    refused(UnsupportedSystemError, "periodic.*--no-pbc", structure=box)
    silicon = replace(structure, numbers=np.where(structure.numbers == 8, 14, structure.numbers))
    refused(UnsupportedSystemError, "Si", structure=silicon)
    torn = replace(structure, positions=np.where(np.arange(9)[:, None] == 0, 0.0, 3.0))
    refused(InputError, "relaxed geometry", structure=torn)
    other = [replace(r, level="B3LYP") for r in labelled]
    refused(DataError, "'B3LYP'.*cannot be mixed", data=other)
    refused(DataError, "no forces", data=[replace(r, forces=None) for r in labelled])
    refused(InputError, "no_such", labeller=labeller("ase.calculators.emt:no_such"))
    exported = tmp_path / "model.pt"
    exported.touch()
    refused(InputError, "exported", start=exported)
    refused(InputError, "held_out", config=config(held_out="m.json"))


def test_a_folder_of_another_refinement_is_left_alone(
    whole: tuple, structure: Structure, start: Path, tmp_path: Path
) -> None:
    out = whole[0]
    before = (out / "rounds.json").read_bytes()
    for changes in ({"settings": settings(ps=0.1)}, {"labeller": labeller(SPRINGS, level="other")}):
        with pytest.raises(InputError, match=r"other options \((settings.ps: 0.05|recipe.level)"):
            refine(structure, start, out, **changes)
    assert (out / "rounds.json").read_bytes() == before
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="holds other results"):
        refine(structure, start, tmp_path)


def _raise(error: Exception) -> None:
    raise error


def test_two_processes_do_not_refine_in_one_folder(
    whole: tuple,
    structure: Structure,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each would overwrite the other's rounds, without a word."""
    with recording.alone(whole[0]):
        for _ in range(3):  # one that was refused takes nothing away
            with pytest.raises(InputError, match="another process refines"):
                refine(structure, start, whole[0])
    assert refine(structure, start, whole[0]) == whole[1]
    with pytest.raises(ZeroDivisionError), recording.alone(tmp_path / "new"):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(recording.FileLock, "acquire", lambda self: _raise(OSError(37, "no locks")))
    with pytest.warns(UserWarning, match="cannot lock files"), recording.alone(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"), recording.alone(tmp_path / "file"):
        pass


# --- the command ---------------------------------------------------------------------------------

app = typer.Typer(cls=Group)
app.callback()(lambda: None)
app.command("refine")(refine_command)


def test_the_command(whole: tuple, start: Path, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "ethanol.xyz", ethanol())
    write_extxyz(tmp_path / "mine.xyz", read(RoundFiles(whole[0], 0).labels))
    recipe = "validation = 0.25\ntest = 0.0\n[loop]\nsteps = 4\nvalidate_every = 4\n"
    (tmp_path / "recipe.toml").write_text(recipe)
    words = f"{tmp_path}/ethanol.xyz --model {start} --with {SPRINGS} --level springs --ps 0.05"
    words += f" --temperature {COLD:g} --replicas 4 --initial 12 --engine eager --workers 0"
    words += f" --quiet --data {tmp_path}/mine.xyz --config {tmp_path}/recipe.toml"
    call = ["refine", *words.split(), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, call, env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    assert "quiet" in result.output and "2 of 4" in result.output
    assert "force MAE, meV/Å" in result.output and (tmp_path / "out/model.safetensors").is_file()
    refused = CliRunner().invoke(app, [*call, "--ps", "0.1"])
    assert refused.exit_code == 1 and "settings.ps: 0.05 there, 0.1 here" in refused.stderr
    unknown = CliRunner().invoke(app, [*call[:4], "--with", "dft", "--out", str(tmp_path / "o")])
    assert unknown.exit_code == 1 and "gfn2-xtb" in unknown.stderr
    assert not (tmp_path / "o").exists()


def test_gfn2_xtb(structure: Structure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the model that comes along and a real method, one round."""
    pytest.importorskip("tblite", reason="needs tblite (mlpot[xtb])")
    short = settings(temperatures=(300.0,), rounds=1, replicas=4)
    told = refine(
        structure,
        "pretrained-visnet",  # type: ignore[arg-type]
        tmp_path / "out",
        labeller=labeller("gfn2-xtb"),
        settings=short,
        config=config(loop={"steps": 12, "batch_atoms": 36, "warmup": 2, "learning_rate": 1e-3}),
    )
    row = told["rounds"][0]
    assert row["frames"]["labelled"] == 12 and row["frames"]["failed"] == 0
    assert row["errors"]["after"]["force_mae"] < row["errors"]["before"]["force_mae"] < 1.0
    assert load_potential(tmp_path / "out" / "model.safetensors")[1].level == "GFN2-xTB"
