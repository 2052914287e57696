"""The speed benchmark measures what it says. No clock is asserted, except one made of paper."""

import dataclasses
import itertools
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.speed import __main__ as command
from benchmarks.speed import bound, candidates, geometries, memory, ours, report, results, timing
from benchmarks.speed.candidates import Candidate, NotInstalled, NotSupported
from benchmarks.speed.peers import ani, pyg, torchmdnet
from benchmarks.speed.peers import candidates as peer_candidates

BRIEF = timing.Effort(rounds=2, block=1e-9, slowest=60.0, systems=("ethanol",), slow_setup=False)


# --- systems -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", geometries.SYSTEMS)
def test_stored_geometries_are_what_the_table_says(name: str) -> None:
    system, atoms = geometries.SYSTEMS[name], geometries.load(name)
    assert len(atoms) == system.atoms
    assert atoms.pbc.all() == bool(system.repeat)
    assert sum(atoms.numbers) % 2 == 0  # closed shell
    if system.repeat:
        assert (
            np.bincount(atoms.numbers, minlength=9)[[1, 8]] * 3 == [2 * len(atoms), len(atoms)]
        ).all()
        density = atoms.get_masses().sum() / atoms.get_volume() * 1.66054  # amu/Å^3 -> g/cm^3
        assert 0.9 < density < 1.1
        assert atoms.cell.lengths().min() > 10.0  # torchmd-net: twice the cutoff


def test_molecules_have_the_bonds_of_their_smiles() -> None:
    from ase.data import covalent_radii
    from rdkit import Chem

    for name, system in geometries.SYSTEMS.items():
        if system.repeat:
            continue
        atoms = geometries.load(name)
        mol = Chem.MolFromSmiles(system.smiles) or Chem.Mol()
        if system.sequence:
            mol = Chem.MolFromSequence(system.sequence)
        radii = covalent_radii[atoms.numbers]
        near = atoms.get_all_distances() < 1.25 * (radii[:, None] + radii)
        assert np.triu(near, 1).sum() == Chem.AddHs(mol).GetNumBonds(), name


# --- the models are what they are called -----------------------------------------------------


def test_every_mlpot_engine_is_a_candidate_by_every_route() -> None:
    from mlpot.deploy.engines import ENGINES

    found = {(c.name, c.route) for c in ours.candidates()}
    for engine in ENGINES:
        assert {(f"mlpot {engine}", "direct"), (f"mlpot {engine}", "ASE")} <= found
    assert {("mlpot torchforce", "OpenMM"), ("mlpot compiled", "OpenMM")} <= found


@pytest.mark.parametrize("system", ["ethanol", "water-300"])
def test_the_evaluator_gives_what_the_calculator_gives(system: str) -> None:
    from mlpot import MLPotCalculator

    atoms = geometries.load(system)
    energy, forces = ours.evaluator("eager", atoms)(atoms.positions)
    atoms.calc = MLPotCalculator(ours.MODEL, engine="eager")
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-4)


def finite_difference(evaluate: candidates.Evaluate, positions: np.ndarray) -> float:
    """Largest disagreement of three force components with the energy, relative to the forces."""
    _, forces = evaluate(positions)
    worst, step = 0.0, 5e-3
    for atom, axis in ((0, 0), (3, 1), (7, 2)):
        shift = np.zeros_like(positions)
        shift[atom, axis] = step
        up, down = evaluate(positions + shift)[0], evaluate(positions - shift)[0]
        worst = max(worst, abs(-(up - down) / (2 * step) - forces[atom, axis]))
    return worst / np.abs(forces).max()


def test_pyg_gets_the_shipped_models_hyper_parameters_and_its_own_numbers() -> None:
    pytest.importorskip("torch_geometric")
    from mlpot.models.checkpoint import load_potential
    from mlpot.zoo import resolve

    config = load_potential(resolve(ours.MODEL))[1].config
    net = pyg.model(config)
    block = net.representation_model
    assert len(block.vis_mp_layers) + 1 == config["layers"] or block.num_layers == config["layers"]
    assert (block.hidden_channels, block.cutoff) == (config["channels"], config["cutoff"])
    atoms = geometries.load("ethanol")
    evaluate = pyg.PEER.evaluator(atoms)
    assert finite_difference(evaluate, atoms.positions) < 0.05
    # rotation leaves the energy alone: the vectors that PyG is given are the right ones
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    assert evaluate(atoms.positions @ turn)[0] == pytest.approx(
        evaluate(atoms.positions)[0], rel=1e-4
    )


@pytest.mark.filterwarnings("ignore:Unknown hyperparameter")  # torchmd-net's own calculator
@pytest.mark.parametrize("name", torchmdnet.ARGS)
def test_torchmdnet_evaluates_its_model_at_the_stated_size(name: str) -> None:
    pytest.importorskip("torchmdnet")
    net = torchmdnet.model(name)
    layers, channels = map(int, re.findall(r"(\d+)x(\d+)", name)[0])
    block = net.representation_model
    assert (block.num_layers, block.hidden_channels) == (layers, channels)
    atoms = geometries.load("ethanol")
    peer = next(p for p in torchmdnet.PEERS if name in p.name)
    energy, forces = peer.evaluator(atoms)(atoms.positions)
    assert forces.shape == (9, 3) and np.abs(forces).max() > 0
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-4 * np.abs(forces).max() * 9)
    calculated = peer.calculator(atoms)  # ASE's route reads a checkpoint: the same weights
    moved = atoms.copy()
    moved.calc = calculated
    assert moved.get_potential_energy() == pytest.approx(energy, rel=1e-4, abs=1e-5)


def test_a_peer_says_what_to_install_and_what_it_cannot_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchani", None)
    with pytest.raises(NotInstalled, match="pip install torchani==2.2.4"):
        ani.PEERS[0].evaluator(geometries.load("ethanol"))
    chlorine = geometries.load("ethanol")
    chlorine.numbers[0] = 17
    with pytest.raises(NotSupported, match="H, C, N, O"):
        ani.PEERS[0].evaluator(chlorine)
    with pytest.raises(NotSupported, match="periodic"):
        Candidate("x", "direct", lambda a, t: print, periodic=False).check(
            geometries.load("water-300")
        )
    with pytest.raises(NotSupported, match="above 8 atoms"):
        Candidate("x", "direct", lambda a, t: print, largest=8).check(geometries.load("ethanol"))


def test_every_peer_of_the_table_is_there_by_a_direct_and_an_openmm_route() -> None:
    found = {(c.name, c.route) for c in peer_candidates()}
    for name in ("TorchMD-ET 6x64", "TensorNet 2x64"):
        assert {(f"torchmd-net {name}", r) for r in ("direct", "ASE", "OpenMM")} <= found
    for start in ("PyG ViSNet", "AIMNet2", "MACE", "ANI-1x", "SO3LR", "GFN2-xTB"):
        routes = {route for name, route in found if name.startswith(start)}
        assert {"direct", "OpenMM"} <= routes, start


# --- routes ----------------------------------------------------------------------------------


def test_the_direct_route_never_sees_the_same_positions_twice_in_a_row() -> None:
    atoms, seen = geometries.load("ethanol"), []
    step = candidates.direct(lambda x: seen.append(x) or (0.0, x), atoms)
    for _ in range(5):
        step()
    assert all((a != b).any() for a, b in itertools.pairwise(seen))
    assert all(np.abs(x - atoms.positions).max() < 0.01 for x in seen)


def test_openmm_moves_atoms_by_the_evaluators_forces_and_reset_puts_them_back() -> None:
    from openmm import unit

    atoms, pull = geometries.load("ethanol"), 1.0  # eV/Å on every atom along x

    def evaluate(positions: np.ndarray) -> tuple[float, np.ndarray]:
        forces = np.zeros_like(positions)
        forces[:, 0] = pull
        return -pull * positions[:, 0].sum(), forces

    step = candidates.through_openmm(evaluate, atoms, threads=1)
    state = step._context.getState(getForces=True, getEnergy=True)
    kilojoule = unit.kilojoule_per_mole
    force = state.getForces(asNumpy=True).value_in_unit(kilojoule / unit.nanometer)
    np.testing.assert_allclose(force[:, 0], 964.853, rtol=1e-5)  # 1 eV/Å in kJ/mol/nm
    assert state.getPotentialEnergy().value_in_unit(kilojoule) == pytest.approx(
        -96.4853 * atoms.positions[:, 0].sum(), rel=1e-5
    )
    step()
    positions = step._context.getState(getPositions=True).getPositions(asNumpy=True)
    assert np.abs(positions._value * 10 - atoms.positions).max() > 1e-5
    step.reset()
    positions = step._context.getState(getPositions=True).getPositions(asNumpy=True)
    np.testing.assert_allclose(positions._value * 10, atoms.positions, atol=1e-5)


def test_mlpot_runs_in_openmm_with_the_box() -> None:
    atoms = geometries.load("water-300")
    step = ours._openmm("python")(atoms, 1)
    step()
    system = step._context.getSystem()
    assert system.usesPeriodicBoundaryConditions() and system.getNumParticles() == 300


# --- timing ----------------------------------------------------------------------------------


class PaperClock:
    """A clock that only advances when a step says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def step(self, seconds: float) -> candidates.Step:
        def advance() -> None:
            self.now += seconds * self.speed

        return advance

    speed = 1.0


def test_ratios_survive_a_machine_whose_speed_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = PaperClock()
    monkeypatch.setattr(timing, "time", clock)
    rows = [timing.Row("a", "direct", 1), timing.Row("b", "direct", 1)]
    steps = [(rows[0], clock.step(0.001)), (rows[1], clock.step(0.004))]
    for speed in (1.0, 3.0, 0.5):
        clock.speed = speed
        timing.alternate(steps, rounds=1, block=0.02)
    assert [round(t, 6) for t in rows[0].ms] == [1.0, 3.0, 0.5]
    assert timing.ratio(*rows) == pytest.approx(0.25)
    assert rows[1].median == pytest.approx(4.0)


def test_a_round_times_everyone_once_and_sets_their_threads() -> None:
    calls: list[tuple[str, int]] = []

    def made(name: str) -> Candidate:
        return Candidate(
            name, "direct", lambda a, t: lambda: calls.append((name, torch.get_num_threads()))
        )

    atoms = geometries.load("ethanol")
    rows = timing.time_all([made("a"), made("b")], atoms, 2, BRIEF)
    assert [(r.name, r.threads, len(r.ms)) for r in rows] == [
        ("a", 1, 2),
        ("a", 2, 2),
        ("b", 1, 2),
        ("b", 2, 2),
    ]
    assert {threads for _, threads in calls} == {1, 2}
    assert len(calls) == 4 * (2 + 2 * 2)  # a block of no length: one call warm, one timed


def test_large_systems_get_fewer_rounds_as_many_for_everyone() -> None:
    many = dataclasses.replace(BRIEF, rounds=timing.FEW + 3)
    chosen = [Candidate(n, "direct", lambda a, t: lambda: None, fixed_threads=True) for n in "ab"]
    for name, rounds in (("ethanol", timing.FEW + 3), ("water-1500", timing.FEW)):
        rows = timing.time_all(chosen, geometries.load(name), 1, many)
        assert [len(row.ms) for row in rows] == [rounds, rounds]


def test_a_peer_that_is_absent_slow_or_broken_is_a_row_that_says_so() -> None:
    def absent(atoms: object, threads: int) -> candidates.Step:
        raise NotInstalled("not installed: pip install it")

    def broken(atoms: object, threads: int) -> candidates.Step:
        raise ValueError("no such thing\nsecond line")

    later = iter(range(4))

    def breaks_later(atoms: object, threads: int) -> candidates.Step:
        return lambda: next(later)

    chosen = [
        Candidate("absent", "direct", absent, fixed_threads=True),
        Candidate("broken", "direct", broken, fixed_threads=True),
        Candidate("later", "direct", breaks_later, fixed_threads=True),
        Candidate("fine", "direct", lambda a, t: lambda: None, fixed_threads=True),
        Candidate("compiles", "direct", broken, slow_setup=True),
    ]
    said: list[str] = []
    rows = timing.time_all(chosen, geometries.load("ethanol"), 1, BRIEF, said.append)
    status = {row.name: row.status for row in rows}
    assert status == {"absent": "absent", "broken": "failed", "later": "failed", "fine": "timed"}
    assert rows[1].reason == "ValueError: no such thing"
    assert len(said) == 2 and "pip install it" in said[0]
    slow = timing.time_all(
        [Candidate("slow", "direct", lambda a, t: lambda: None, fixed_threads=True)],
        geometries.load("ethanol"),
        1,
        dataclasses.replace(BRIEF, slowest=-1.0),
        said.append,
    )
    assert slow[0].status == "slow" and len(slow[0].ms) == 1


def test_rows_survive_json() -> None:
    row = timing.Row("a", "direct", 2, setup_s=1.5, ms=[1.0, 2.0, 3.0, 4.0])
    stored = json.loads(json.dumps(row.to_json()))
    assert stored["median_ms"] == 2.5 and stored["iqr_ms"] == pytest.approx(1.5)
    assert timing.row_of(stored) == row


# --- bound -----------------------------------------------------------------------------------


def test_the_recorder_sees_forward_and_backward_products() -> None:
    weight, x = torch.randn(5, 7), torch.randn(3, 5, requires_grad=True)
    batched = torch.randn(2, 3, 4)
    with bound.Recorder() as recorder:
        hidden = torch.nn.functional.linear(x, weight.T, torch.zeros(7))  # addmm
        torch.autograd.grad(hidden.sum(), x)  # mm
        torch.bmm(batched, batched.mT)
    shapes = [(p.a, p.b) for p in recorder.products]
    assert shapes == [((3, 5), (5, 7)), ((3, 7), (7, 5)), ((2, 3, 4), (2, 4, 3))]
    assert [p.flops for p in recorder.products] == [210, 210, 144]


def test_the_products_are_run_with_their_shapes_and_layouts() -> None:
    products = bound.record(geometries.load("ethanol"))
    assert len(products) > 20
    run = bound.Products(products)
    with bound.Recorder() as recorder:
        for a, b, _ in run._jobs:
            torch.mm(a, b) if a.dim() == 2 else torch.bmm(a, b)
    assert recorder.products == products
    run()
    for a, b, out in run._jobs[-1:]:
        torch.testing.assert_close(out, a @ b)


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_the_box_and_not_of_the_libraries() -> None:
    found = memory.measure("water-300", "eager", 1)
    assert 1 < found["kB_per_atom"] < 2000
    assert found["baseline_MB"] < found["peak_MB"]
    wrong = memory.measure("water-300", "no-such-engine", 1)
    assert "engine must be" in wrong["failed"]


# --- results ---------------------------------------------------------------------------------


def stored(name: str, route: str, ms: float, threads: int = 1) -> dict:
    return timing.Row(name, route, threads, ms=[ms, 1.1 * ms, 0.9 * ms]).to_json()


@pytest.fixture
def result() -> dict:
    """Made-up times whose answers are known."""
    small = [
        stored("mlpot eager", "direct", 6.0),
        stored("mlpot torchscript", "direct", 3.0),
        stored("mlpot torchforce", "OpenMM", 4.0),
        stored("mlpot torchforce", "OpenMM", 2.0, threads=2),
        stored("torchmd-net TorchMD-ET 6x64", "OpenMM", 10.0),
        stored("AIMNet2", "OpenMM", 3.0),
        timing.Row("SO3LR", "OpenMM", 1, "absent", "not installed: pip install it").to_json(),
        timing.Row("MACE", "OpenMM", 1, "slow", "9 s a call", ms=[9000.0]).to_json(),
        stored(bound.NAME, "bound", 1.0),
    ]
    box = [stored("mlpot eager", "direct", 60.0)]
    return {
        "mode": "standard",
        "threads": 2,
        "rounds": 3,
        "machine": {
            "cpu": "a processor",
            "cores": 4,
            "cores_allowed": 2,
            "python": "3",
            "versions": {"torch": "2"},
        },
        "load_average": [0.1, 2.0],
        "systems": {n: geometries.SYSTEMS[n].atoms for n in ("aspirin", "water-300", "water-6000")},
        "times": {
            "aspirin": small,
            "water-300": box,
            "water-6000": [stored("mlpot eager", "direct", 1200.0)],
        },
        "replicas": [
            {
                "engine": "eager",
                "threads": 1,
                "status": "timed",
                "one_ms": 4.0,
                "many_ms": 16.0,
                "gain": 8.0,
            }
        ],
        "training": [{"trainer": "eager", "threads": 2, "status": "timed", "molecules_per_s": 150}],
        "memory": {"water-6000": {"eager": {"kB_per_atom": 50.0}, "torchscript": {"failed": "x"}}},
    }


def test_each_side_of_a_ratio_is_at_its_fastest(result: dict) -> None:
    assert results.against(result, "aspirin", "torchmd-net TorchMD-ET") == pytest.approx(0.2)
    assert results.against(result, "aspirin", "SO3LR") is None  # absent
    assert results.against(result, "aspirin", "MACE") is None  # called once only
    assert results.worst(result, "aspirin") == pytest.approx(2 / 3)
    assert results.to_bound(result, "aspirin") == pytest.approx(3.0)
    assert results.exponent(result, "water-300", "water-6000") == pytest.approx(1.0)
    assert results.memory(result, "water-6000") == 50.0
    assert results.gain(result) == pytest.approx(8.0)


@pytest.mark.filterwarnings("ignore:You are trying to .self.log")  # a step without a Trainer
def test_an_engine_that_cannot_run_leaves_the_others_their_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlpot.deploy.load  # noqa: F401  (before the patch: it copies the names of the engines)
    from benchmarks.speed import throughput

    monkeypatch.setattr("mlpot.deploy.engines.ENGINES", ("eager", "no-such-engine"))
    monkeypatch.setattr(throughput, "TRAIN_FRAMES", 2)
    monkeypatch.setattr(throughput, "TRAINERS", {"eager": "no", "broken": "perhaps"})
    eager, missing = throughput.replicas(1, BRIEF)
    assert eager["gain"] == pytest.approx(32 * eager["one_ms"] / eager["many_ms"], rel=0.5)
    assert "engine must be" in missing["status"] and missing["gain"] is None
    trained, broken, denoised, _ = throughput.training(1, BRIEF)
    assert trained["molecules_per_s"] > 0 and "ValidationError" in broken["status"]
    assert denoised["task"] == "denoising" and denoised["molecules_per_s"] > 0


def test_goals_say_met_missed_or_not_measured(result: dict) -> None:
    met = {goal.text: goal.met for goal in results.goals(result)}
    assert met["aspirin in OpenMM, time / time of torchmd-net TorchMD-ET"] is True
    assert met["aspirin in OpenMM, time / time of AIMNet2"] is False  # 0.67, wanted 0.5
    assert met["aspirin in OpenMM, time / time of GFN2-xTB"] is None
    assert met["water, 6,000 atoms: kB an atom"] is False
    assert met["32 replicas of ethanol: aggregate evaluations/s of one"] is True


def test_the_table_holds_what_was_measured_and_nothing_else(result: dict) -> None:
    text = report.markdown(result)
    assert re.search(r"\| mlpot torchforce \| 2 \| – \| – \|", text)  # the faster thread count
    assert re.search(r"\| MACE \| \(9,000\) \|", text)
    assert "SO3LR" not in text.split("goal")[0].replace("goals", "")
    assert not re.search(r"\bnan\b|None", text)
    assert all(math.isfinite(float(n)) for n in re.findall(r"\| (\d[\d.]*) \|", text))


def test_render_is_idempotent_and_says_when_markers_are_missing(
    result: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    (tmp_path / "standard.json").write_text(json.dumps(result))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.START}\nold\n{report.END}\nafter {report.END}\n")

    def render() -> str:
        done = CliRunner().invoke(command.app, ["render", "--readme", str(readme)])
        assert done.exit_code == 0, done.output
        return readme.read_text()

    first = render()
    assert first.startswith("before\n") and first.endswith(f"after {report.END}\n")
    assert "old" not in first and "mlpot torchforce" in first
    assert "one call, " not in first and "MACE" in first
    page = (tmp_path / "standard.md").read_text()
    assert "replicas of ethanol in one call" in page and "time of mlpot / time of" in page
    assert render() == first
    assert (tmp_path / "standard.png").stat().st_size > 10_000
    readme.write_text("no markers here")
    failed = CliRunner().invoke(command.app, ["render", "--readme", str(readme)])
    assert failed.exit_code != 0 and readme.read_text() == "no markers here"


def test_a_run_is_stored_whole_with_machine_and_absent_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.speed import peers, throughput

    def absent(atoms: object, threads: int) -> candidates.Step:
        raise NotInstalled("not installed: pip install it")

    eager = [c for c in ours.candidates() if (c.name, c.route) == ("mlpot eager", "direct")]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # put back afterwards: run() sets it
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "efforts", lambda: {"dev": BRIEF})
    monkeypatch.setattr(ours, "candidates", lambda: eager)
    monkeypatch.setattr(peers, "candidates", lambda: [Candidate("peer", "direct", absent)])
    monkeypatch.setattr(throughput, "TRAIN_FRAMES", 2)
    # compiling takes minutes
    monkeypatch.setattr("mlpot.deploy.engines.ENGINES", ("eager", "torchscript"))
    monkeypatch.setattr(throughput, "TRAINERS", {"eager": "no"})
    done = CliRunner().invoke(command.app, ["run", "--mode", "dev", "--threads", "1"])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "dev.json").read_text())
    rows = {row["name"]: row for row in result["times"]["ethanol"]}
    assert {n: r["status"] for n, r in rows.items()} == {
        "mlpot eager": "timed",
        "peer": "absent",
        bound.NAME: "timed",
    }
    assert rows["mlpot eager"]["median_ms"] > rows[bound.NAME]["median_ms"]  # it is a bound
    assert result["machine"]["versions"]["torch"] and result["replicas"] and result["training"]
    assert not list(tmp_path.glob("*.part"))
    assert CliRunner().invoke(command.app, ["show"]).exit_code == 0
    wrong = CliRunner().invoke(command.app, ["run", "--mode", "quick"])
    assert wrong.exit_code != 0 and len(list(tmp_path.iterdir())) == 1


def test_only_standard_results_go_into_the_readme(tmp_path: Path) -> None:
    done = CliRunner().invoke(command.app, ["render", "--mode", "dev"])
    assert done.exit_code != 0


@pytest.mark.parametrize("path", sorted(command.RESULTS.glob("*.json")), ids=lambda p: p.stem)
def test_stored_results_can_be_read_and_name_no_host(path: Path) -> None:
    import platform

    result = json.loads(path.read_text())
    if path.stem == "training":
        assert all(row["molecules_per_s"] > 0 for row in result["training"])
    else:
        assert report.markdown(result)
        assert result["rounds"] == command.efforts()[result["mode"]].rounds
    node = platform.node()
    assert not node or node not in path.read_text()


def test_training_measured_alone_takes_the_place_of_what_a_run_measured(
    result: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.speed import throughput

    row = {"task": "denoising", "trainer": "eager", "threads": 1, "status": "timed"}
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(throughput, "training", lambda *_: [{**row, "molecules_per_s": 77.0}])
    (tmp_path / "standard.json").write_text(json.dumps(result))
    assert "150 molecules/s" in report.markdown(command.for_readme())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the command sets it
    done = CliRunner().invoke(command.app, ["training", "--threads", "1"], catch_exceptions=False)
    assert done.exit_code == 0 and "77.0 molecules/s" in done.output
    told = report.markdown(command.for_readme())
    assert "denoising, eager, 1 thread: 77 molecules/s" in told and "150 molecules/s" not in told


def test_the_readme_holds_what_was_measured() -> None:
    """Not a number in its table is typed."""
    text = (command.ROOT / "README.md").read_text(encoding="utf-8")
    assert report.brief(command.for_readme()) in text
    page = (command.RESULTS / "standard.md").read_text(encoding="utf-8")
    assert report.markdown(command.for_readme()) in page
