"""Suites that run: resuming, seeds, calculators, explosions, and what is left on disk."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import write

import mlpot.analysis.batch as batch_module
from mlpot.analysis import stability
from mlpot.analysis.accuracy import Accuracy, predict
from mlpot.analysis.criteria import bond_lengths, find_bonds
from mlpot.analysis.elsewhere import Elsewhere
from mlpot.analysis.molecules import DEFAULT, SETS, own_molecules, read_molecules
from mlpot.analysis.records import Folder, read_trajectory, write_trajectory
from mlpot.analysis.scenarios import MODES, Scenario, plan
from mlpot.analysis.stability import Content, Reference, run
from mlpot.analysis.starts import distort
from mlpot.analysis.subjects import Subject, subject
from mlpot.analysis.summary import analyze
from mlpot.calculator import MLPotCalculator
from mlpot.data.record import Record
from mlpot.errors import DataError, InputError, UnknownModelError, UnsupportedSystemError
from tests.analysis.calculators import Harmonic
from tests.analysis.conftest import HARMONIC, ROOT, lines, small


def runs_of(folder: Folder) -> dict[str, dict[str, Any]]:
    return {r["key"]: r for r in folder.records() if r["kind"] == "run"}


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k != "cpu_seconds"}


# --- what a run leaves ---------------------------------------------------------------------------


def test_a_suite_leaves_records_and_trajectories(
    soft: Subject, content: Content, tmp_path: Path
) -> None:
    folder = run(soft, content, tmp_path / "suite")
    records = runs_of(folder)
    assert len(records) == 8
    assert {(r["molecule"], r["temperature"], r["seed"]) for r in records.values()} == {
        (m, t, s) for m in ("CH3OH", "H2O") for t in (300.0, 600.0) for s in (0, 1)
    }
    for r in records.values():
        frames = read_trajectory(folder.trajectory(r["id"]))
        assert len(frames) == len(r["temperatures"]) == len(r["potential"]) == 11
        assert r["steps"] == 40 and r["interval"] == 2.0 and not r["lost"]
        assert frames.shape[1] == len(folder.suite().molecules[r["molecule"]]["numbers"])
        assert r["trajectory"] in os.listdir(folder.path / "trajectories")
    assert not (folder.path / "partial").exists()
    assert (folder.path / "molecules" / "H2O.pdb").is_file()


def test_the_trajectory_is_that_of_replicas(
    soft: Subject, content: Content, tmp_path: Path
) -> None:
    """The suite adds nothing to the integrator: same start, same seed, same positions."""
    from mlpot.md.replicas import Replicas

    folder = run(soft, content, tmp_path / "suite")
    planned = next(p for p in plan(content.scenarios, content.molecules) if p.seed == 1)
    record = runs_of(folder)[planned.key]
    relaxer = Replicas(
        soft.open(), [planned.molecule.numbers], [planned.molecule.positions], temperatures=0.0
    )
    relaxer.minimize(200)
    alone = Replicas(
        soft.open(),
        [planned.molecule.numbers],
        relaxer.positions,
        temperatures=planned.temperature,
        seeds=[planned.random],
    )
    alone.step(40)
    last = read_trajectory(folder.trajectory(record["id"]))[-1]
    np.testing.assert_allclose(last, alone.positions[0], atol=0.006)  # XTC keeps 0.01 Å
    assert record["potential"][-1] == pytest.approx(alone.potential[0], abs=1e-4)


def test_what_bonds_are_compared_with_comes_first(
    soft: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the rest is: without 300 K nothing could be judged for good."""
    rest = [
        Scenario("ladder", ("standard",), (500.0, 300.0, 900.0), 0.03, interval=2.0),
        Scenario("ramp", ("standard",), (300.0,), 0.04, end_temperature=900.0, interval=2.0),
        Scenario("distorted", ("standard",), (300.0,), 0.05, distortion=0.01, interval=2.0),
        Scenario("long", ("standard",), (300.0,), 0.02, interval=2.0),
    ]
    monkeypatch.setattr(Subject, "batch_atoms", 1)
    folder = run(soft, Content(rest, [small()]), tmp_path)
    runs = [(r["scenario"], r["temperature"]) for r in folder.records() if r["kind"] == "run"]
    # two at a time are kept in any order
    assert sorted(runs[:2]) == [("ladder", 300.0), ("long", 300.0)]
    assert sorted(name for name, _ in runs[2:4]) == ["distorted", "ramp"]


def test_seeds_decide(soft: Subject, content: Content, tmp_path: Path) -> None:
    first, again = (runs_of(run(soft, content, tmp_path / name)) for name in ("a", "b"))
    assert {k: without_times(r) for k, r in first.items()} == {
        k: without_times(r) for k, r in again.items()
    }
    by = {(r["molecule"], r["temperature"], r["seed"]): r["temperatures"] for r in first.values()}
    assert by["H2O", 300.0, 0] != by["H2O", 300.0, 1]


def test_a_long_suite_compiles_before_it_starts(
    soft: Subject, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple] = []

    def compile_ahead(*words: Any) -> bool:
        asked.append((words[0], words[2]))
        return True

    monkeypatch.setattr(stability, "compile_ahead", compile_ahead)
    auto = replace(soft, engine="auto", device="cpu")
    run(auto, content, tmp_path / "short")
    assert not asked
    monkeypatch.setattr(stability, "LONG", 8 * 40)
    run(auto, content, tmp_path / "long")
    assert asked == [(soft.model, 6)]  # the larger of two molecules
    run(auto, content, tmp_path / "long")  # nothing to do, nothing to compile
    assert len(asked) == 1


def test_an_analysis_repeats(soft: Subject, content: Content, tmp_path: Path) -> None:
    folder = run(soft, content, tmp_path / "suite")
    first = analyze(folder.path)
    text = folder.summary_file.read_text()
    records = folder.records_file.read_bytes()
    assert analyze(folder.path) == first
    assert folder.summary_file.read_text() == text
    assert folder.records_file.read_bytes() == records  # it changes nothing but the summary
    assert first == json.loads(text)
    assert [(g["temperature"], g["runs"]) for g in first["groups"]] == [(300.0, 4), (600.0, 4)]
    assert first["missing"] == 0 and not first["failed"]
    assert first["core_hours"]["total"] > 0


# --- resuming ------------------------------------------------------------------------------------


def test_the_same_command_does_nothing_twice(
    soft: Subject, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(soft, content, tmp_path / "suite")
    before = lines(folder.records_file)
    monkeypatch.setattr(stability, "run_batch", lambda job: pytest.fail("ran again"))
    counts: list[tuple[int, int]] = []
    run(
        soft,
        content,
        tmp_path / "suite",
        on_start=lambda total, known: counts.append((total, known)),
    )
    assert lines(folder.records_file) == before
    assert counts == [(5, 5)]  # one batch, four refusals


def test_runs_of_another_machine_count_and_are_not_done_again(
    harmonic: Subject, content: Content, tmp_path: Path
) -> None:
    """All runs at 300 K were done there, which bonds are compared with, and those at 600 K here."""
    whole = analyze(run(harmonic, content, tmp_path / "one").path)
    there = json.loads(json.dumps(whole))  # as a file keeps it
    far = [r for r in there["runs"] if r["temperature"] == 300.0]
    stray = {**far[0], "key": "of no run of this suite", "broke": True}
    keys = [line["key"] for line in far]
    folder = run(harmonic, content, tmp_path / "other", elsewhere=keys)
    assert set(runs_of(folder)) == {r["key"] for r in whole["runs"]} - set(keys)
    assert analyze(folder.path)["missing"] == len(keys) == 4
    known = Elsewhere([*far, *far, stray], there["lengths"], there["rules"])
    together = analyze(folder.path, known)
    assert together["missing"] == 0 and len(together["runs"]) == 8
    assert together["lengths"] == whole["lengths"]

    def told(summary: dict[str, Any]) -> list[Any]:
        return [{k: v for k, v in g.items() if k != "cpu_seconds"} for g in summary["groups"]]

    assert told(together) == told(whole)


def test_what_was_judged_by_other_rules_is_refused(
    harmonic: Subject, content: Content, tmp_path: Path
) -> None:
    folder = run(harmonic, content, tmp_path / "suite")
    summary = analyze(folder.path)
    rules = {**summary["rules"], "bond_departure_A": 9.0}
    with pytest.raises(DataError, match="other rules"):
        analyze(folder.path, Elsewhere(summary["runs"], {}, rules))


def test_drift_and_structure_are_not_taken_from_elsewhere(
    harmonic: Subject, content: Content, tmp_path: Path
) -> None:
    """They need series and frames, so such runs stay missing."""
    free = replace(content.scenarios[0], name="nve", ensemble="nve", temperatures=(300.0,))
    more = replace(content, scenarios=[*content.scenarios, free])
    whole = analyze(run(harmonic, more, tmp_path / "one").path)
    keys = [r["key"] for r in whole["runs"]]
    folder = run(harmonic, more, tmp_path / "other", elsewhere=keys)
    found = analyze(folder.path, Elsewhere(whole["runs"], {}, whole["rules"]))
    assert found["missing"] == 4 and not found["drift"] and len(found["groups"]) == 2


def test_some_scenarios_now_and_the_rest_later(
    harmonic: Subject, content: Content, tmp_path: Path
) -> None:
    ramp = replace(content.scenarios[0], name="ramp", temperatures=(300.0,), end_temperature=400.0)
    more = replace(content, scenarios=[*content.scenarios, ramp])
    folder = run(harmonic, more, tmp_path / "parts", only=["ramp"])
    assert {r["scenario"] for r in runs_of(folder).values()} == {"ramp"}
    summary = analyze(folder.path)
    assert summary["missing"] == 8  # the suite is the whole of it
    assert summary["provisional"] == 4 and summary["lengths"] == {}  # no mean at 300 K yet
    run(harmonic, more, tmp_path / "parts", only=["ladder"])
    run(harmonic, more, tmp_path / "parts")
    whole = run(harmonic, more, tmp_path / "whole")
    assert {k: without_times(r) for k, r in runs_of(folder).items()} == {
        k: without_times(r) for k, r in runs_of(whole).items()
    }
    with pytest.raises(InputError, match="no scenario is named lader; there are ladder, ramp"):
        run(harmonic, more, tmp_path / "parts", only=["lader"])


def interrupted_at(frame: int, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """States are saved at every frame, and Ctrl-C comes at one, once; an entry for each frame."""
    monkeypatch.setattr(batch_module, "CHECKPOINT", -1.0)
    record, asked, cut = batch_module._Going._record, list[None](), False

    def interrupted(self: Any, *state: Any) -> None:
        nonlocal cut
        asked.append(None)
        if len(asked) == frame and not cut:
            cut = True
            raise KeyboardInterrupt
        record(self, *state)

    monkeypatch.setattr(batch_module._Going, "_record", interrupted)
    return asked


def test_what_was_begun_and_left_for_later_goes_on(
    soft: Subject, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in a long run; another scenario is done in between."""
    long = replace(content.scenarios[0], name="long", temperatures=(300.0,), picoseconds=0.04)
    more = replace(content, scenarios=[*content.scenarios, long])
    partial = tmp_path / "suite" / "partial"
    asked = interrupted_at(15, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(soft, more, tmp_path / "suite", only=["long"])
    (state,) = partial.iterdir()
    (partial / f".{state.name}").touch()  # what a kill while it was written leaves
    run(soft, more, tmp_path / "suite", only=["ladder"])
    assert list(partial.iterdir()) == [state]
    asked.clear()
    run(soft, more, tmp_path / "suite", only=["long"])
    assert len(asked) == 21 - 14  # the last state had frames 0 to 13
    assert not partial.exists()


def test_new_molecules_and_seeds_are_added(soft: Subject, content: Content, tmp_path: Path) -> None:
    folder = run(soft, content, tmp_path / "suite")
    old = runs_of(folder)
    more = replace(
        content,
        scenarios=[replace(content.scenarios[0], seeds=3)],
        molecules=[*content.molecules, small("CH4")],
    )
    run(soft, more, tmp_path / "suite")
    new = runs_of(folder)
    assert len(new) == 18
    assert {k: new[k] for k in old} == old  # untouched, times included
    assert sum(line.count('"kind":"run"') for line in lines(folder.records_file)) == 18


def test_a_batch_goes_on_from_its_state(
    soft: Subject, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted half way: the same frames in the end, and only the other half is computed."""
    whole = runs_of(run(soft, content, tmp_path / "whole"))
    asked = interrupted_at(6, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(soft, content, tmp_path / "parts")
    assert len(os.listdir(tmp_path / "parts" / "partial")) == 1
    folder = run(soft, content, tmp_path / "parts")
    assert len(asked) == 12  # 11, and the one that was cut
    parts = runs_of(folder)
    assert {k: without_times(r) for k, r in parts.items()} == {
        k: without_times(r) for k, r in whole.items()
    }
    for r in parts.values():
        mine, other = (
            read_trajectory(Folder(tmp_path / name).trajectory(r["id"]))
            for name in ("parts", "whole")
        )
        np.testing.assert_array_equal(mine, other)


KILLED = """
import sys
from mlpot.analysis.stability import run
from mlpot.analysis.subjects import subject
from mlpot.analysis.scenarios import Scenario
from mlpot.analysis.stability import Content
from tests.analysis.conftest import small

if __name__ == "__main__":
    slow = Scenario("ladder", ("standard",), (300.0,), 0.1, 6, interval=2.0)
    content = Content([slow], [small("CH3OH"), small("H2O")])
    harmonic = subject("tests.analysis.calculators:Harmonic")
    run(harmonic, content, sys.argv[1], workers=int(sys.argv[2]))
"""


def test_sigkill_loses_no_finished_run(tmp_path: Path) -> None:
    script = tmp_path / "suite.py"
    script.write_text(KILLED)
    out = tmp_path / "suite"
    command = [sys.executable, str(script), str(out), "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True)
    folder = Folder(out)
    while process.poll() is None and len(runs_of(folder)) < 3:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = runs_of(folder)
    assert kept
    subprocess.run(command, env=env, cwd=ROOT, check=True, timeout=120)
    after = runs_of(folder)
    assert len(after) == 12
    assert {k: after[k] for k in kept} == kept  # not computed again: CPU times too are the same
    text = folder.records_file.read_text()
    assert all(text.count(f'"id":"{r["id"]}"') == 1 for r in after.values())
    assert not (out / "partial").exists()


def test_a_folder_of_another_model_is_refused(
    soft: Subject, harmonic: Subject, content: Content, tmp_path: Path
) -> None:
    run(soft, content, tmp_path / "suite")
    before = (tmp_path / "suite" / "suite.json").read_bytes()
    with pytest.raises(InputError, match="another model.*--out"):
        run(harmonic, content, tmp_path / "suite")
    assert (tmp_path / "suite" / "suite.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    (tmp_path / "mine" / "partial").mkdir()
    (tmp_path / "mine" / "partial" / ".keep").touch()
    with pytest.raises(InputError, match="something else"):
        run(soft, content, tmp_path / "mine")
    assert sorted(p.name for p in (tmp_path / "mine").rglob("*")) == [
        ".keep",
        "partial",
        "thesis.tex",
    ]


def test_a_second_process_is_refused_before_it_touches_anything(
    soft: Subject, content: Content, tmp_path: Path
) -> None:
    folder = run(soft, content, tmp_path / "suite")
    state = folder.partial("a")
    state.parent.mkdir(exist_ok=True)
    half = state.with_name(".a.npz")
    half.touch()
    before = folder.suite_file.read_bytes()
    more = replace(content, molecules=[*content.molecules, small("NH3")])
    with folder.store(), pytest.raises(DataError, match="another process is writing"):
        run(soft, more, folder.path)
    assert half.exists() and folder.suite_file.read_bytes() == before
    run(soft, more, folder.path)
    assert not half.exists()


def test_a_start_that_was_killed_at_once_leaves_no_foreign_folder(
    soft: Subject, content: Content, tmp_path: Path
) -> None:
    (tmp_path / "suite" / "partial").mkdir(parents=True)
    (tmp_path / "suite" / "records.jsonl").touch()
    assert len(runs_of(run(soft, content, tmp_path / "suite"))) == 8


def test_molecules_that_change_names_keep_their_runs(soft: Subject, tmp_path: Path) -> None:
    """Two isomers have one formula, so their names depend on their order; keys do not."""
    scenario = Scenario("ladder", ("standard",), (300.0,), 0.02, 2, interval=2.0)
    ring, chain = (replace(small(n), name="C2H4O") for n in ("CH2OCH2", "CH3CHO"))
    first = Content([scenario], [ring, replace(chain, name="C2H4O-2")])
    before = analyze(run(soft, first, tmp_path / "suite").path)
    other = Content([scenario], [chain, replace(ring, name="C2H4O-2")])
    after = analyze(run(soft, other, tmp_path / "suite").path)
    alone = analyze(run(soft, Content([scenario], [chain]), tmp_path / "suite").path)
    told = [{r["key"]: (r["broke"], r["stable_ps"]) for r in s["runs"]} for s in (before, after)]
    assert told[0] == told[1] and len(told[0]) == 4
    assert {r["key"]: (r["broke"], r["stable_ps"]) for r in alone["runs"]}.items() <= told[
        0
    ].items()
    assert len(alone["runs"]) == 2 and alone["missing"] == 0
    named = {r["key"]: r["molecule"] for r in after["runs"]}
    swapped = {"C2H4O": "C2H4O-2", "C2H4O-2": "C2H4O"}
    assert named == {r["key"]: swapped[r["molecule"]] for r in before["runs"]}


def test_folders_and_molecules_may_have_umlauts(soft: Subject, tmp_path: Path) -> None:
    path = tmp_path / "Jürg"
    path.mkdir()
    write(path / "Säure.xyz", molecule("CH3OH"))
    scenario = Scenario("ladder", ("own",), (300.0,), 0.01, interval=2.0)
    (own,) = own_molecules([path / "Säure.xyz"])
    assert own.name == "S_ure"
    summary = analyze(run(soft, Content([scenario], [own]), path / "suite").path)
    assert len(summary["runs"]) == 1 and not summary["failed"]


def test_a_trajectory_that_was_cut_is_no_whole_run(
    soft: Subject, content: Content, tmp_path: Path
) -> None:
    folder = run(soft, content, tmp_path / "suite")
    path = folder.trajectory(next(iter(runs_of(folder).values()))["id"])
    write_trajectory(path, read_trajectory(path)[:4], 2.0)
    with pytest.raises(DataError, match="has 4 frames, and its record 11"):
        analyze(folder.path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        analyze(folder.path)


# --- calculators ---------------------------------------------------------------------------------


def test_a_calculator_goes_the_same_way(
    harmonic: Subject, content: Content, tmp_path: Path
) -> None:
    """The suite's trajectory is that of velocity Verlet in ASE with the same calculator."""
    from ase import units
    from ase.md.verlet import VelocityVerlet

    from mlpot.md.replicas import Replicas
    from mlpot.md.velocities import maxwell_boltzmann

    atoms = molecule("CH3OH")
    model = harmonic.open()
    replicas = Replicas(
        model, [atoms.numbers], [atoms.positions], temperatures=300.0, friction=None, seeds=[3]
    )
    atoms.set_velocities(maxwell_boltzmann(atoms.get_masses(), 300.0, 3) / units.fs)
    atoms.calc = model.labeller.build()
    atoms.get_forces()  # so that its springs rest here too
    VelocityVerlet(atoms, 0.5 * units.fs).run(50)
    replicas.step(50)
    np.testing.assert_allclose(replicas.positions[0], atoms.positions, atol=1e-6)
    summary = analyze(run(harmonic, content, tmp_path / "suite").path)
    assert summary["model"] == HARMONIC
    assert all(g["sound"] == g["runs"] == 4 for g in summary["groups"])


def test_ases_own_emt_runs(tmp_path: Path) -> None:
    scenario = Scenario("ladder", ("standard",), (300.0,), 0.01, interval=1.0)
    content = Content([scenario], [small("H2O")])
    summary = analyze(run(subject("ase.calculators.emt:EMT"), content, tmp_path / "s").path)
    assert summary["groups"][0]["runs"] == 1
    assert EMT.implemented_properties  # it is the one that ran
    refused = {r["molecule"]: r["refused"] for r in summary["refusals"]}
    assert refused["NaCl"] is True  # EMT says so itself


def test_torchmd_nets_own_calculator_runs(tmp_path: Path) -> None:
    """It reads the charge where most calculators do not, and raises where there is none."""
    pytest.importorskip("torchmdnet", reason="torchmd-net is not installed")
    from benchmarks.speed.peers.torchmdnet import checkpoint

    scenario = Scenario("ladder", ("standard",), (300.0,), 0.002, interval=1.0)
    content = Content([scenario], [small("H2O")])
    with checkpoint("TensorNet 2x64") as file:
        peer = subject("torchmdnet.calculators:TMDNETCalculator", {"model_file": str(file)})
        summary = analyze(run(peer, content, tmp_path / "s").path)
    assert not summary["failed"] and summary["groups"][0]["runs"] == 1
    assert all(r["refused"] is None for r in summary["refusals"])  # it takes any element


def test_a_calculator_that_cannot_do_ethanol_has_refused_nothing() -> None:
    job = stability.Refusal(subject("tests.analysis.calculators:Lost"), "SiH4")
    (record,) = stability.run_refusal(job)["records"]
    assert record["refused"] is None
    assert record["message"] == "it does not do CH3CH2OH either: RuntimeError: the disk is full"


def test_a_calculator_is_told_the_charge_of_labelled_frames() -> None:
    acetate = small("CH3COOH")
    frames = [
        Record(acetate.numbers, acetate.positions, charge=q, energy=float(q)) for q in (0, -1, 2)
    ]
    energies, _ = predict(subject("tests.analysis.calculators:Charged"), frames)
    assert energies.tolist() == [0.0, -1.0, 2.0]


def test_errors_are_computed_again_for_other_labels(soft: Subject) -> None:
    """Of the same geometries and energies: with forces, others, or another charge."""
    water = small("H2O")
    base = Record(water.numbers, water.positions, energy=0.0)
    ones = np.ones((3, 3))
    others = [base, replace(base, forces=ones), replace(base, forces=2 * ones)]
    others += [replace(base, charge=1)]
    assert len({Accuracy(soft, "a", (r,)).key for r in others}) == 4
    swapped = [Accuracy(soft, "a", (base, r)).key for r in others[1:]]
    swapped += [Accuracy(soft, "a", (r, base)).key for r in others[1:]]
    assert len(set(swapped)) == 6  # whose label it is counts


def test_a_model_does_not_take_charged_frames_for_neutral_ones(soft: Subject) -> None:
    water = small("H2O")
    frame = Record(water.numbers, water.positions, charge=-1, energy=0.0)
    with pytest.raises(UnsupportedSystemError, match="total charge is -1"):
        predict(soft, [frame])


def test_energy_is_conserved_or_not_as_the_time_step_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Harmonic springs: no drift, and a scatter that grows with the step."""
    monkeypatch.setattr(batch_module, "EQUILIBRATION", 0.05)
    molecules = [small("CH3OH")]
    scenarios = [
        Scenario("nve", ("standard",), (300.0,), 0.2, 5, ensemble="nve", timestep=dt, interval=2.0)
        for dt in (0.5, 1.0)
    ]
    content = Content(scenarios, molecules)
    soft_springs = subject(HARMONIC, {"spring": 2.0})  # 1 fs is short for them
    summary = analyze(run(soft_springs, content, tmp_path / "suite").path)
    half, one = summary["drift"]
    assert (half["timestep"], one["timestep"]) == (0.5, 1.0)
    assert len(half["molecules"]["CH3OH"]["values"]) == 5
    assert half["drift"][1] < 0.0 < half["drift"][2]
    # 4 from equal starts; from others it varies as their energies do
    assert one["scatter"] > 1.5 * half["scatter"]


def test_a_ramp_heats(harmonic: Subject, tmp_path: Path) -> None:
    scenario = Scenario(
        "ramp", ("standard",), (300.0,), 0.1, 2, end_temperature=3000.0, interval=2.0, friction=100
    )
    folder = run(harmonic, Content([scenario], [small("CH3OH")]), tmp_path / "suite")
    for r in runs_of(folder).values():
        assert r["thermostat"][0] == 300.0 and r["thermostat"][-1] == 3000.0
        assert np.all(np.diff(r["thermostat"]) > 0)
        assert np.mean(r["temperatures"][-10:]) > 800


# --- a cluster -----------------------------------------------------------------------------------


def test_a_dask_cluster_does_the_same(harmonic: Subject, content: Content, tmp_path: Path) -> None:
    distributed = pytest.importorskip(
        "distributed", reason="dask.distributed is not installed: mlpot[dask]"
    )
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        there = run(harmonic, content, tmp_path / "there", scheduler=cluster.scheduler_address)
    here = run(harmonic, content, tmp_path / "here")
    assert {k: without_times(r) for k, r in runs_of(there).items()} == {
        k: without_times(r) for k, r in runs_of(here).items()
    }
    for r in runs_of(there).values():
        mine, other = (read_trajectory(f.trajectory(r["id"])) for f in (there, here))
        np.testing.assert_array_equal(mine, other)
    assert not (there.path / "partial").exists()


# --- what breaks ---------------------------------------------------------------------------------


def test_a_certain_explosion_is_caught_at_its_step(tmp_path: Path) -> None:
    """The calculator gives NaN from a call on: relaxing takes 1 + 1 + 1, starting 1, steps 1 each.

    At rest, FIRE ends at its first look, so the calls before the first step are known.
    """
    good = 24
    how = subject(HARMONIC, {"nan_after": good})
    scenario = Scenario("ladder", ("standard",), (300.0,), 0.02, interval=2.0)
    folder = run(how, Content([scenario], [small("CH3OH")]), tmp_path / "suite")
    record = next(iter(runs_of(folder).values()))
    before = calls_before_the_first_step(tmp_path)
    assert record["lost"] and record["steps"] == good - before
    assert "not finite" in record["reason"]
    assert len(record["temperatures"]) == 1 + record["steps"] // 4
    summary = analyze(folder.path)
    (one,) = summary["runs"]
    assert one["broke"] and one["cause"] == "integrator"
    assert one["stable_ps"] == pytest.approx(record["steps"] * 0.5e-3)
    assert summary["groups"][0]["survival"]["probability"][-1] == 0.0


def calls_before_the_first_step(tmp_path: Path) -> int:
    """Of the calculator, in a run of a single frame of one step."""
    Harmonic.calls = 0
    scenario = Scenario("ladder", ("standard",), (300.0,), 0.0005, interval=0.5)
    run(
        subject(HARMONIC, {"spring": 20.5}), Content([scenario], [small("CH3OH")]), tmp_path / "one"
    )
    refusals = 4
    return Harmonic.calls - refusals - 1


def test_a_run_that_is_lost_at_once_has_a_frame_and_a_record(tmp_path: Path) -> None:
    how = subject(HARMONIC, {"nan_after": 1})  # sound at the door, and never again
    for ensemble in ("nvt", "nve"):
        scenario = Scenario("x", ("standard",), (300.0,), 0.02, ensemble=ensemble, interval=2.0)
        folder = run(how, Content([scenario], [small("CH3OH")]), tmp_path / ensemble)
        summary = analyze(folder.path)
        assert [(r["stable_ps"], r["broke"]) for r in summary["runs"]] == [(0.0, True)]
        for r in runs_of(folder).values():
            assert r["lost"] and r["steps"] == 0 and len(r["temperatures"]) == 1
            assert read_trajectory(folder.trajectory(r["id"])).shape == (1, 6, 3)


@pytest.mark.parametrize(("spring", "cause"), [(-200.0, "integrator"), (-1.0, "bond")])
def test_springs_that_push_break_every_run(tmp_path: Path, spring: float, cause: str) -> None:
    """Hard ones within a few steps, before a frame is stored; soft ones bond first."""
    scenario = Scenario("ladder", ("standard",), (300.0,), 0.1, 2, interval=2.0)
    content = Content([scenario], [small("CH3OH")])
    how = subject(HARMONIC, {"spring": spring})
    summary = analyze(run(how, content, tmp_path / "suite").path)
    assert summary["groups"][0]["sound"] == 0
    assert list(summary["groups"][0]["causes"]) == [cause]
    assert all(0 < r["stable_ps"] < 0.1 for r in summary["runs"])
    for r in runs_of(Folder(tmp_path / "suite")).values():
        assert r["lost"] and np.shape(r["last"]) == (6, 3)


def test_what_is_in_pieces_is_not_simulated_any_further(tmp_path: Path) -> None:
    """Springs too soft to be an explosion; whatever the rule, the verdict is that of a full run."""
    scenario = Scenario("ladder", ("standard",), (300.0,), 2.0, interval=2.0)
    content = Content([scenario], [small("CH3OH")])
    how = subject(HARMONIC, {"spring": -0.02})
    folder = run(how, content, tmp_path / "suite")
    (record,), (one,) = runs_of(folder).values(), analyze(folder.path)["runs"]
    assert record["reason"].startswith("in pieces") and record["steps"] < 2000
    assert one["cause"].startswith("bond") and one["stable_ps"] < 0.5e-3 * record["steps"]
    assert len(record["temperatures"]) == 1 + record["steps"] // 4
    sooner = run(how, content, tmp_path / "sooner", torn=1.0)
    (record_,), (one_,) = runs_of(sooner).values(), analyze(sooner.path)["runs"]
    assert record_["steps"] < record["steps"] and record_["key"] == record["key"]
    assert (one_["cause"], one_["stable_ps"]) == (one["cause"], one["stable_ps"])
    frames = read_trajectory(folder.trajectory(record["id"]))
    start = content.molecules[0]
    bonds = find_bonds(start.numbers, start.positions)
    lengths = bond_lengths(frames, bonds)
    torn = (lengths - lengths[0] > batch_module.TORN).any(axis=1)
    assert torn.nonzero()[0].tolist() == [len(frames) - 1]


def springs_that_fail(after: int, ps: float = 0.02) -> tuple[Subject, Content]:
    """Methanol on springs that raise an exception after so many calls."""
    scenario = Scenario("ladder", ("standard",), (300.0,), ps, interval=2.0)
    return subject(HARMONIC, {"fail_after": after}), Content([scenario], [small("CH3OH")])


def test_a_calculator_that_gives_up_on_the_way_says_nothing_of_the_potential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a broken run but a failed one, with its reason, that --retry does again."""
    how, content = springs_that_fail(20)
    folder = run(how, content, tmp_path / "suite")
    (record,) = runs_of(folder).values()
    assert record["lost"] and record["ending"] == "calculator"
    assert "SCF has not converged" in record["reason"] and record["steps"] > 0
    summary = analyze(folder.path)
    assert summary["missing"] == 1 and not summary["runs"] and not summary["groups"]
    (why,) = summary["failed"].values()
    assert why.startswith("ladder of CH3OH at 300 K: RuntimeError") and "SCF" in why
    monkeypatch.setattr(Harmonic, "repaired", True)
    run(how, content, tmp_path / "suite")  # not by itself
    assert runs_of(folder)[record["key"]] == record
    run(how, content, tmp_path / "suite", retry=True)
    again = runs_of(folder)[record["key"]]
    assert not again["lost"] and again["ending"] == again["reason"] == ""
    summary = analyze(folder.path)
    assert summary["missing"] == 0 and not summary["failed"]
    assert [g["sound"] for g in summary["groups"]] == [1]


def test_a_retry_begins_anew_where_a_kill_left_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how, content = springs_that_fail(21)  # no other test's, whose calls would count
    with monkeypatch.context() as killed:
        killed.setattr(stability, "_clear", lambda folder, done: None)
        folder = run(how, content, tmp_path / "suite")
    assert list((folder.path / "partial").glob("*.npz"))
    monkeypatch.setattr(Harmonic, "repaired", True)
    run(how, content, tmp_path / "suite", retry=True)
    (record,) = runs_of(folder).values()
    assert not record["lost"] and record["reason"] == ""


def test_a_calculator_that_fails_on_what_has_broken_is_a_broken_run(tmp_path: Path) -> None:
    """Soft springs push a bond apart by step 92, and the rest by 252."""
    _, content = springs_that_fail(0, 2.0)
    how = subject(HARMONIC, {"fail_after": 150, "spring": -0.02})
    folder = run(how, content, tmp_path / "suite")
    (record,), (one,) = runs_of(folder).values(), analyze(folder.path)["runs"]
    assert record["ending"] == "calculator"
    assert one["broke"] and one["cause"].startswith("bond") and one["explosion_ps"] is None
    assert not analyze(folder.path)["failed"]


@pytest.mark.parametrize("ensemble", ["nvt", "nve"])  # nve: lost while it warms up
def test_trouble_that_a_calculator_got_over_explains_no_explosion(
    tmp_path: Path, ensemble: Literal["nvt", "nve"]
) -> None:
    """It raised once while the start was relaxed; what came later is the potential's own."""
    scenario = Scenario("x", ("standard",), (300.0,), 0.02, ensemble=ensemble, interval=2.0)
    content = Content([scenario], [small("CH3OH")])
    how = subject(HARMONIC, {"fail_at": 3, "spring": -200.0})
    Harmonic.calls = 0
    folder = run(how, content, tmp_path / "suite")
    (record,) = runs_of(folder).values()
    assert record["lost"] and record["ending"] == "integrator"
    assert record["reason"].startswith("hotter than its thermostat")
    assert how.open().trouble == ""  # and it was there: else this test says nothing
    Harmonic.calls = 0
    batch_module.relax(how.open(), [content.molecules[0]])
    assert "SCF" in how.open().trouble


def test_how_a_run_ended_is_in_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the last state and the record loses no reason."""
    monkeypatch.setattr(stability, "_clear", lambda folder, done: None)
    how, content = springs_that_fail(20)
    folder = run(how, content, tmp_path / "suite")
    (planned,) = plan(content.scenarios, content.molecules)
    again = batch_module.run_batch(batch_module.Batch(how, (planned,), str(folder.path)))
    (record,) = runs_of(folder).values()
    assert without_times(again["records"][0]) == without_times(record)
    (state,) = (folder.path / "partial").iterdir()
    assert batch_module.runs_of_state(state) == {planned.key}


def test_a_calculator_that_cannot_start_is_a_failure_and_no_broken_run(tmp_path: Path) -> None:
    scenario = Scenario("ladder", ("standard",), (300.0,), 0.01, interval=1.0)
    content = Content([scenario], [small("H2O"), small("SiH4")])
    folder = run(subject("ase.calculators.emt:EMT"), content, tmp_path / "suite")
    summary = analyze(folder.path)
    assert summary["missing"] == 1 and len(summary["runs"]) == 1
    assert "SiH4" in " ".join(summary["failed"].values())
    again = run(subject("ase.calculators.emt:EMT"), content, tmp_path / "suite")  # not tried again
    assert analyze(again.path) == summary


def test_failures_of_what_nobody_asks_for_any_more_are_forgotten(tmp_path: Path) -> None:
    scenario = Scenario("ladder", ("standard",), (300.0,), 0.01, interval=1.0)
    content = Content([scenario], [small("H2O"), small("SiH4")])
    emt = subject("ase.calculators.emt:EMT")
    folder = run(emt, content, tmp_path / "suite")
    run(emt, content, tmp_path / "suite", only=["ladder"])  # still asked for
    assert len(analyze(folder.path)["failed"]) == 1
    run(emt, replace(content, molecules=[small("H2O")]), tmp_path / "suite")
    summary = analyze(folder.path)
    assert summary["failed"] == {} and summary["missing"] == 0
    run(emt, content, tmp_path / "suite")  # known to fail: not tried, but told
    assert len(analyze(folder.path)["failed"]) == 1


def test_foreign_elements_are_refused(soft: Subject, content: Content, tmp_path: Path) -> None:
    more = replace(content, molecules=[*content.molecules, small("CH3Cl")])
    folder = run(soft, more, tmp_path / "suite")
    summary = analyze(folder.path)
    assert "does not cover Cl" in summary["skipped"]["CH3Cl"]
    assert "CH3Cl" not in folder.suite().molecules
    assert {r["molecule"]: r["refused"] for r in summary["refusals"]} == dict.fromkeys(
        ("SiH4", "BF3", "NaCl", "AlCl3"), True
    )
    assert all("does not cover" in r["message"] for r in summary["refusals"])
    with pytest.raises(InputError, match="nothing to run.*does not cover Cl"):
        run(soft, replace(content, molecules=[small("CH3Cl")]), tmp_path / "none")
    assert not (tmp_path / "none").exists()


# --- beside stability ----------------------------------------------------------------------------


def test_structure_against_a_reference(harmonic: Subject, tmp_path: Path) -> None:
    own = small("CH3OH", "reference")
    rng = np.random.default_rng(0)
    frames = own.positions + 0.03 * rng.standard_normal((60, 6, 3))
    scenario = Scenario("reference", ("reference",), (1.0,), 0.05, 2, interval=1.0)
    content = Content([scenario], [own], references={"CH3OH": Reference(frames, 400.0, "made up")})
    folder = run(harmonic, content, tmp_path / "suite")
    assert {r["temperature"] for r in runs_of(folder).values()} == {400.0}  # the reference's
    (found,) = analyze(folder.path)["structure"]
    assert found["runs"] == 2 and found["frames"] == 60 and found["source"] == "made up"
    assert 0 < found["noise"]["hr_mae"] < found["errors"]["hr_mae"] < 2.0


def test_a_reference_is_judged_by_its_own_bonds(harmonic: Subject, tmp_path: Path) -> None:
    """Its first frame is hot, and its hydroxyl opens: neither makes a simulation break."""
    own = small("CH3OH", "reference")
    frames = np.repeat(own.positions[None], 40, axis=0)
    far = frames[0, 1] + 2.0 * (frames[0, 3] - frames[0, 1])  # O1-H3, twice as long
    frames[::4, 3] = far
    hot = replace(own, positions=own.positions.copy())
    hot.positions[0] += [0.0, 0.02, 0.0]
    scenario = Scenario("reference", ("reference",), (300.0,), 0.05, interval=1.0)
    references = {"CH3OH": Reference(frames, 300.0, "made up")}
    content = Content([scenario], [hot], references=references)
    summary = analyze(run(harmonic, content, tmp_path / "suite").path)
    assert summary["mobile"] == {"CH3OH": ["O1-H3"]}
    assert [r["broke"] for r in summary["runs"]] == [False]
    assert summary["lengths"] == {} and summary["provisional"] == 0
    long = frames.copy()
    long[:, 0] += 0.7 * (long[:, 0] - long[:, 1])  # C0-O1, that no simulation here has
    references = {"CH3OH": Reference(long, 300.0, "made up")}
    other = replace(content, references=references)
    (one,) = analyze(run(harmonic, other, tmp_path / "other").path)["runs"]
    assert one["broke"] and one["stable_ps"] == 0.0


def test_errors_are_those_of_the_model(soft: Subject, content: Content, tmp_path: Path) -> None:
    atoms = molecule("CH3OH")
    rng = np.random.default_rng(1)
    geometries = [atoms.positions + 0.05 * rng.standard_normal((6, 3)) for _ in range(12)]
    model = soft.open()
    results = [model(atoms.numbers, x) for x in geometries]
    records = [
        Record(atoms.numbers, x, energy=7.0 + r.energy + 0.01 * (-1) ** i, forces=r.forces + 0.02)
        for i, (x, r) in enumerate(zip(geometries, results, strict=True))
    ]
    whole = replace(content, accuracy={"mine": records})
    (found,) = analyze(run(soft, whole, tmp_path / "suite").path)["accuracy"]
    assert found["frames"] == 12
    assert found["energy_mae"] == pytest.approx(10.0, rel=0.02)  # the 7 eV are gone
    assert found["force_rmse"] == pytest.approx(20.0, rel=0.01)
    stored = next(r for r in Folder(tmp_path / "suite").records() if r["kind"] == "accuracy")
    assert np.shape(stored["forces"]) == (2, 12 * 18)
    energies, _ = predict(soft, records)
    np.testing.assert_allclose(energies, [r.energy for r in results], atol=1e-4)
    assert Accuracy(soft, "mine", tuple(records)).key != Accuracy(soft, "x", tuple(records)).key


# --- what is asked -------------------------------------------------------------------------------


def test_periodic_frames_are_computed_as_such(soft: Subject, harmonic: Subject) -> None:
    atoms = molecule("CH3OH")
    numbers = atoms.numbers.astype(np.int64)
    alone = Record(numbers, atoms.positions, energy=0.0)
    box = replace(alone, cell=np.eye(3) * 5.0, pbc=(True, True, True))
    energies, forces = predict(soft, [alone, box])
    atoms.set_cell(box.cell)
    atoms.pbc = True
    atoms.calc = MLPotCalculator(soft.model)
    assert energies[1] == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
    np.testing.assert_allclose(forces[1], atoms.get_forces(), atol=1e-5)
    assert np.abs(forces[1] - forces[0]).max() > 1e-3
    with pytest.raises(UnsupportedSystemError, match="frame 1 is periodic"):
        predict(harmonic, [alone, box])


def test_slopes_are_of_runs_that_hold_for_half_their_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "EQUILIBRATION", 0.05)
    scenario = Scenario(
        "nve", ("standard",), (300.0,), 0.2, 2, ensemble="nve", timestep=0.5, interval=2.0
    )
    folder = run(subject(HARMONIC), Content([scenario], [small("CH3OH")]), tmp_path / "suite")
    assert analyze(folder.path)["drift"][0]["counted"] == 2
    record = next(iter(runs_of(folder).values()))
    frames = read_trajectory(folder.trajectory(record["id"])).copy()
    frames[20:, 2] += 3.0  # an atom is gone after 40 of 200 fs
    write_trajectory(folder.trajectory(record["id"]), frames, 2.0)
    told = analyze(folder.path)["drift"][0]
    assert (told["runs"], told["broke"], told["counted"]) == (2, 1, 1)


def test_a_distorted_start_is_off_by_what_was_asked() -> None:
    ring = small("C6H6")
    still = ring.positions
    moved = distort(ring, still, 0.1, seed=5)
    assert np.std(moved - still) == pytest.approx(0.1, rel=0.3)
    bonds = find_bonds(ring.numbers, still)
    off = bond_lengths(np.stack([moved, still]), bonds)
    assert 0.1 < np.abs(off[0] - off[1]).max() <= 0.3
    np.testing.assert_array_equal(moved, distort(ring, still, 0.1, seed=5))
    assert np.abs(moved - distort(ring, still, 0.1, seed=6)).max() > 0.05


def test_a_start_that_cannot_be_distorted_is_an_error_and_not_left_as_it_was() -> None:
    ring = small("C6H6")
    with pytest.raises(UnsupportedSystemError, match="no start off by 9 Å"):
        distort(ring, ring.positions, 9.0, seed=5)


def test_hydrogen_may_be_distorted() -> None:
    """It is 0.74 Å long, shorter than atoms of other molecules may come together."""
    hydrogen = small("H2")
    moved = distort(hydrogen, hydrogen.positions, 0.05, seed=5)
    assert 0 < np.abs(moved - hydrogen.positions).max() < 0.3


def test_records_tell_what_a_start_was_off_by(
    soft: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run without such a start is a failure; those beside it in the batch go on."""
    scenario = Scenario("distorted", ("standard",), (300.0,), 0.02, distortion=0.1, interval=2.0)

    def picky(molecule: Any, positions: Any, spread: float, seed: int) -> Any:
        return distort(molecule, positions, 9.0 if molecule.name == "CH4" else spread, seed)

    monkeypatch.setattr(batch_module, "distort", picky)
    molecules = [small("C6H6"), small("CH4"), small("CH3OH")]
    folder = run(soft, Content([scenario], molecules), tmp_path / "suite")
    by = {r["molecule"]: r for r in runs_of(folder).values()}
    first = read_trajectory(folder.trajectory(by["C6H6"]["id"]))[0]
    batch = batch_module.relax(soft.open(), molecules[:1])
    off = np.sqrt(np.mean((first - batch[0]) ** 2))
    assert by["C6H6"]["displaced"] == pytest.approx(off, abs=0.005)  # XTC keeps 0.01 Å
    assert 0.05 < by["C6H6"]["displaced"] < 0.1 and by["CH4"]["displaced"] is None
    assert by["CH4"]["ending"] == "start" and by["CH4"]["steps"] == 0
    assert by["CH3OH"]["steps"] == 40
    summary = analyze(folder.path)
    (group,) = summary["groups"]
    displaced = [by[name]["displaced"] for name in ("C6H6", "CH3OH")]
    assert group["runs"] == 2 and group["displaced"] == pytest.approx(np.mean(displaced))
    assert summary["missing"] == 1 and "no start off by 9 Å" in str(summary["failed"])


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_every_part(mode: str) -> None:
    names = {scenario.name for scenario in MODES[mode]}
    assert names >= {"ladder", "ramp", "nve", "distorted", "groups", "large", "reference"}
    steps = {s.timestep for s in MODES[mode] if s.name == "nve"}
    assert len(steps) >= 2 and all(s.seeds >= 5 for s in MODES[mode] if s.name == "nve")
    # as tables say; a bond that opens and closes is seen in all of them or in none
    assert {s.interval for s in MODES[mode] if s.ensemble == "nvt"} == {20.0}
    assert {s.interval for s in MODES[mode] if s.ensemble == "nve"} == {10.0}
    for s in MODES[mode]:
        assert s.steps * s.timestep == pytest.approx(1000 * s.picoseconds)
        assert set(s.sets) <= set(SETS)


def test_keys_are_of_what_decides_a_run() -> None:
    scenario = MODES["dev"][0]
    (first, *_) = plan([scenario], [small()])
    (same, *_) = plan([replace(scenario, seeds=3, count=None)], [small(), small("H2O")])
    assert first.key == same.key and first.random == same.random
    for other in (replace(scenario, friction=1.0), replace(scenario, picoseconds=1.0)):
        assert plan([other], [small()])[0].key != first.key
    runs = plan(MODES["standard"], read_molecules(DEFAULT))
    assert len({p.random for p in runs}) == len({p.id for p in runs}) == len(runs) > 100


@pytest.mark.parametrize("options", [{"picoseconds": 0.0}, {"interval": 0.1}, {"seeds": 0}])
def test_senseless_scenarios_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="scenario x"):
        Scenario(
            **{"name": "x", "sets": (), "temperatures": (300.0,), "picoseconds": 1.0, **options}
        )


def test_molecules_of_the_user(tmp_path: Path) -> None:
    molecules = own_molecules(["CCO", ROOT / "examples" / "alanine-dipeptide.pdb", "CCO"])
    assert [m.name for m in molecules] == ["C2H6O", "alanine-dipeptide", "C2H6O-2"]
    assert {m.set for m in molecules} == {"own"}
    (tmp_path / "bare.xyz").write_text("1\n\nHe 0 0 0\n")
    with pytest.raises(InputError, match="name="):
        read_molecules(tmp_path / "bare.xyz")
    with pytest.raises(InputError, match="no molecules at"):
        read_molecules(tmp_path / "absent.xyz")


def test_unknown_subjects_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="gfn2-xtb"):
        subject("no-such-model")
    with pytest.raises(DataError, match="no suite.json"):
        analyze(tmp_path)


def test_a_model_is_found_from_wherever_a_worker_was_started(
    soft: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(str(soft.model))
    monkeypatch.chdir(path.parent)
    assert subject(path.name).model == str(path)


def test_precision_is_part_of_what_a_model_is(soft: Subject) -> None:
    double = subject(str(soft.model), dtype="float64")
    assert double.identity != soft.identity
    assert double.open().dtype == torch.float64
