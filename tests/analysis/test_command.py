"""The command, and the benchmark around it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks.stability import __main__ as script
from benchmarks.stability import content as benchmark
from benchmarks.stability.__main__ import label_of
from benchmarks.stability.brief import beside, brief
from benchmarks.stability.goals import goals
from benchmarks.stability.make_molecules import GROUPS, LARGE, LARGEST, STANDARD
from benchmarks.stability.tables import END, PEERS, START, markdown, write_block
from mlpot.analysis.criteria import bond_lengths
from mlpot.analysis.elsewhere import Elsewhere
from mlpot.analysis.molecules import DEFAULT, read_molecules
from mlpot.analysis.records import Folder
from mlpot.analysis.stability import Content, run
from mlpot.analysis.subjects import Subject, subject
from mlpot.analysis.summary import analyze
from mlpot.cli.common import Group
from mlpot.cli.stability import _content, _labelled, _reference, show, stability
from mlpot.errors import DataError
from tests.analysis.conftest import HARMONIC, ROOT

Bench = Callable[..., dict[str, Any]]

app = typer.Typer(cls=Group)
app.callback()(lambda: None)
app.command("stability")(stability)


def call(*words: object) -> str:
    result = CliRunner().invoke(app, ["stability", *map(str, words)], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    return result.output


def error(*words: object) -> str:
    result = CliRunner().invoke(app, ["stability", *map(str, words)])
    assert result.exit_code == 1 and "Traceback" not in result.output, result.output
    return result.stderr


def test_a_molecule_of_the_user(
    soft: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any data set: a table, and a folder from which it can be made again."""
    monkeypatch.setattr("mlpot.analysis.batch.EQUILIBRATION", 0.01)
    own = tmp_path / "mine.xyz"
    own.write_text((ROOT / "benchmarks/speed/systems/ethanol.xyz").read_text())
    words = (soft.model, "--out", tmp_path / "out", "--engine", "eager", "--workers", 0)
    text = call(*words, "--mode", "dev", "-m", own, "-m", "O")
    assert "ladder 1000 K" in text and "ramp to 3000 K" in text
    assert "refused before the first step: SiH4" in text
    assert "core-hours" in text and "summary.json" in text
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    names = {name for group in summary["groups"] for name in group["molecules"]}
    assert names == {"mine", "H2O"}
    assert {g["scenario"] for g in summary["groups"]} == {"ladder", "ramp", "nve", "distorted"}
    again = call(soft.model, "--out", tmp_path / "out", "--analyze")
    assert again.splitlines() == text.splitlines()[1:]


def test_errors_are_one_line(soft: Subject, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out", "--workers", 0)
    assert "does not cover Cl" in error(soft.model, *out, "-m", "CCl")
    assert "neither a file nor a valid SMILES" in error(soft.model, *out, "-m", "C(")
    assert "no model is named" in error("nonsense", *out)
    assert "no suite.json" in error(soft.model, *out, "--analyze")
    assert not (tmp_path / "out").exists()


def test_a_reference_and_labelled_frames(tmp_path: Path) -> None:
    frames = ROOT / "examples" / "aspirin_60_frames.xyz"
    labelled = _labelled(subject("pretrained-visnet", engine="eager"), [frames], {})
    content = _content("dev", ["CCO"], frames, 500.0, labelled)
    (name,) = content.references or {}
    assert [m.name for m in content.molecules if m.set == "reference"] == [name]
    assert (content.references or {})[name].temperature == 500.0
    assert len((content.accuracy or {})["aspirin_60_frames.xyz"]) == 60


def test_labelled_frames_that_would_give_meaningless_errors(soft: Subject, tmp_path: Path) -> None:
    def write(name: str, key: str = "energy", unit: float = 1.0, **more: Any) -> Path:
        frames = ase.io.read(ROOT / "examples" / "aspirin_60_frames.xyz", ":5")
        for i, atoms in enumerate(frames):
            told = atoms.calc.results
            atoms.calc = None
            atoms.info |= {key: unit * told["energy"], **more}
            atoms.positions += 0.01 * i
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        ase.io.write(path, frames)
        return path

    out = ("--out", tmp_path / "out", "--workers", 0)
    for path, says in (
        (write("ion.xyz", charge=-1), "charge"),
        (write("named.xyz", key="REF_energy"), "--energy-key"),
    ):
        assert says in error(soft.model, *out, "--data", path)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="Hartree|hartree"):
        _labelled(subject("pretrained-visnet", engine="eager"), [write("h.xyz", unit=1 / 27.2)], {})
    same = [write("a/test.xyz"), write("b/test.xyz"), write("c/other.xyz")]
    found = _labelled(soft, same, {})
    assert list(found) == [str(same[0]), str(same[1]), "other.xyz"]
    with pytest.raises(DataError, match=r"ion\.xyz: "):  # of several files, which one
        _labelled(soft, [same[0], tmp_path / "ion.xyz"], {})
    ase.io.write(
        tmp_path / "foreign.xyz", ase.Atoms("SiH", [[0, 0, 0], [0, 0, 1.5]], info={"energy": 1.0})
    )
    assert "foreign.xyz" in _labelled(soft, [tmp_path / "foreign.xyz"], {})  # left out later
    named = _labelled(soft, [tmp_path / "named.xyz"], {"energy_key": "REF_energy"})
    assert named["named.xyz"][0].energy is not None


def test_a_reference_in_a_box_is_refused(tmp_path: Path) -> None:
    """Wrapped frames have no bonds where they leave the box, and the model would be blamed."""
    frames = ase.io.read(ROOT / "examples" / "aspirin_60_frames.xyz", ":2")
    for atoms in frames:
        atoms.set_cell([12.0] * 3)
        atoms.pbc = True
    ase.io.write(tmp_path / "box.xyz", frames)
    with pytest.raises(DataError, match="without a box"):
        _reference(tmp_path / "box.xyz", 300.0)


def test_molecules_that_come_with_mlpot() -> None:
    molecules = read_molecules(DEFAULT)
    assert {m.set for m in molecules} == {"standard", "large", "groups"}
    assert all(m.smiles and m.source for m in molecules)


# --- the benchmark -------------------------------------------------------------------------------


def test_standard_molecules_are_held_out() -> None:
    held_out = json.loads((ROOT / "mlpot/zoo/recipes/held_out.json").read_text())["test"]
    molecules = read_molecules(benchmark.MOLECULES)
    standard = [m for m in molecules if m.set == "standard"]
    assert len(standard) == len(STANDARD) == 20
    assert {m.smiles for m in standard} <= set(held_out)
    assert not any("." in m.smiles for m in standard)  # pairs are of molecules that were seen
    assert sum(m.name.startswith("ac-") for m in standard) == 5
    large = [m for m in molecules if m.set == "large"]
    assert {m.name for m in large} == set(LARGE) and min(len(m.numbers) for m in large) > LARGEST
    assert {m.name for m in molecules if m.set == "groups"} == set(GROUPS)


def test_absent_data_are_told(tmp_path: Path) -> None:
    found = benchmark.content("dev", tmp_path)
    assert not found.references and not found.accuracy
    assert len(found.skipped or {}) == len(benchmark.REFERENCES) + len(benchmark.ACCURACY)
    assert all("not part of a clone" in why for why in (found.skipped or {}).values())


def test_data_beside_the_clone_are_used(shared: Path) -> None:
    found = benchmark.content("dev")
    assert not found.skipped
    references = found.references or {}
    assert {r.temperature for r in references.values()} == {300.0, 500.0, 600.0}
    sets = found.accuracy or {}
    assert len(sets["acac dihedral scan"]) == 45 and len(sets["acac H transfer"]) == 15
    assert all(np.isfinite(r.energy) for records in sets.values() for r in records)


def test_tables_of_a_summary(soft: Subject, content: Content, tmp_path: Path) -> None:
    summary = analyze(run(soft, content, tmp_path / "suite").path)
    found = goals(summary)
    assert [goal.met for goal in found] == [None] * 6 + [True]  # 20 fs prove nothing
    summary["goals"] = [goal._asdict() | {"met": goal.met} for goal in found]
    text = markdown([summary, {**summary, "model": "peer"}])
    rows = [line for line in text.splitlines() if line.startswith("| ladder 300 K, 0.5 fs")]
    assert [row.split("|")[3].strip() for row in rows] == [summary["model"], "peer"]
    assert "not measured" in text
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    assert write_block(readme, text)
    written = readme.read_text()
    assert written.startswith("before\n") and written.endswith("after\n")
    assert text in written and "\nold\n" not in written
    readme.write_text("no markers")
    assert not write_block(readme, text)


def test_the_brief_table_has_a_column_for_each_temperature() -> None:
    """Of groups as a summary has them: models side by side, blanks where nothing was run."""
    base = {"ensemble": "nvt", "end_temperature": None, "picoseconds": 20.0, "distortion": 0.0}

    def group(scenario: str, kelvin: float, sound: int, **more: float) -> dict:
        told = {"scenario": scenario, "temperature": kelvin, "sound": sound, "runs": 60}
        return {**base, **told, **more}

    ramp = {"from": 300.0, "to": 3000.0, "picoseconds": 10.0, "broke": {"one": 2100.0}, "runs": 20}
    ramp["median"] = [2100.0, 1900.0, None]
    goal = {"text": "runs hold", "limit": 0.95, "value": 0.9, "met": False, "runs": 60}
    rows = [group("ladder", 1000.0, 57), group("ladder", 300.0, 60)]
    rows += [group("distorted", 300.0, 59, distortion=0.1), group("nve", 300.0, 5, ensemble="nve")]
    drift = {
        "drift": [0.001, -0.002, 0.004],
        "timestep": 0.5,
        "temperature": 300.0,
        "runs": 5,
        "broke": 2,
    }
    structure = {"temperature": 500.0, "source": "DFT", "errors": {"hr_mae": 0.0312}}
    summary = {"model": "mine", "groups": rows, "ramp": [ramp], "goals": [goal]}
    few, none = (
        {**goal, "text": t, "value": None, "met": None, "runs": n}
        for t, n in (("few", 7), ("none", 0))
    )
    summary["goals"] += [few, none]
    summary["drift"] = [drift | {"dtype": "float32", "counted": 4}, {"drift": None}]
    summary["structure"] = [structure | {"noise": {"hr_mae": 0.01}}]
    summary |= {"missing": 3, "core_hours": {"total": 12.34}}
    lost = {"broke": True, "ensemble": "nvt", "end_temperature": None, "temperature": 300.0}
    at_once = {**lost, "molecule": "one", "cause": "bond S5-Cl8", "stable_ps": 0.0}
    late = {**lost, "molecule": "two", "cause": "bond O1-H2", "stable_ps": 1.0}
    ramped = {**late, "molecule": "three", "end_temperature": 3000.0}
    summary["runs"] = [at_once, late, {**late, "temperature": 1000.0}, at_once, ramped]
    peer = {"model": "peer", "groups": [group("ladder", 300.0, 1)], "ramp": [], "goals": []}
    peer["runs"] = []
    text = brief([summary, peer]).splitlines()
    assert text[0] == "| runs whole to their end | ps | of | 300 K | 1000 K |"
    assert "| molecules that training has not | 20 | mine | 60 of 60 | 57 of 60 |" in text
    assert "| molecules that training has not | 20 | peer | 1 of 60 | – |" in text
    assert "| starts off by 0.1 Å | 20 | mine | 59 of 60 | – |" in text
    assert not any("nve" in line for line in text)
    assert any("1 of 20 break, half of them by 2100 (1900 to over 3000) K" in t for t in text)
    assert "- Goal: runs hold, 95 % of them: missed (90 %, interval 79.9 to 95.3 %, of 60)." in text
    assert (
        "- Broken, mine: one (2 times: bond S5-Cl8, before the first step), "
        "two (2 times: bond O1-H2, 300 K, 1000 K)."
    ) in text
    assert "- Goal: few, 95 % of them: too few to tell, 7 so far." in text
    assert "- Goal: none, 95 % of them: not measured yet." in text
    assert (
        "- Drift at 300 K, meV/atom/ps, float32: +0.001 (-0.002 to +0.004) at 0.5 fs "
        "(broke: 2 of 5, drift of 4)."
    ) in text
    assert any("at 500 K against DFT: h(r) is off by 0.031; two halves" in t for t in text)
    assert text[-1] == "- So far: 12.3 core-hours; 3 runs are still to be done."
    both = beside([summary, peer | {"core_hours": {"total": 0.5}}]).splitlines()
    assert both[:5] == text[:5] and both[-1] == "- Core-hours: mine 12, peer 0.5."
    assert any(t.startswith("- Heated") and "mine: 1 of 20 break" in t for t in both)


def test_peers_are_set_beside_the_shipped_model_in_the_readme(
    soft: Subject, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    summary = analyze(run(soft, content, tmp_path / "suite").path) | {"goals": []}
    readme = tmp_path / "README.md"
    for name in ("a-peer", "pretrained-visnet"):
        told = json.dumps({**summary, "model": name})
        (tmp_path / f"{name}-fast.json").write_text(told)
    readme.write_text(f"{START}\nof another mode\n{END}\n{PEERS}\nold\n{END}\n")
    words = ["render", "--mode", "fast", "--readme", str(readme)]
    result = CliRunner().invoke(script.app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text = readme.read_text()
    assert "of another mode" in text and "\nold\n" not in text
    assert text.index("| pretrained-visnet |") < text.index("| a-peer |")  # the shipped one first
    readme.write_text("no markers")
    result = CliRunner().invoke(script.app, words)
    assert result.exit_code == 0 and "no place for peers" in result.output


def test_tables_tell_what_failed_and_what_is_not_judged(
    soft: Subject, content: Content, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = analyze(run(soft, content, tmp_path / "suite").path)
    told = "ladder of CH3OH at 300 K: RuntimeError: the SCF has not converged"
    odd = {"failed": {"k": told}, "mobile": {"acac": ["O3-H11"]}, "provisional": 2, "goals": []}
    broken = {"broke": True, "cause": "integrator", "reason": "a NaN of its own"}
    odd["runs"] = [{**summary["runs"][0], **broken}]
    show({**summary, **odd, "missing": 1})
    text = capsys.readouterr().out
    for words in (told, "bond O3-H11 of acac", "2 runs", "a NaN of its own", "with --retry"):
        assert words in text, words
    text = markdown([{**summary, **odd}])
    for words in (told, "bond O3-H11 of acac", "2 runs", "H lost", "bonds hold, ps", "MDsim"):
        assert words in text, words


def test_another_machine_goes_on_from_the_file_of_runs(
    harmonic: Subject, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both halves are in it in the end, whoever did them; other weights do not get it."""
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    model, path = "m", script.runs_file("standard", "m", None)
    assert script.kept_runs("standard", model, None, harmonic.identity).runs == ()
    here = run(harmonic, content, tmp_path / "here", elsewhere=())
    summary = json.loads(json.dumps(analyze(here.path)))
    first = {**summary, "runs": summary["runs"][:2]}
    script.keep_runs(path, harmonic.identity, Elsewhere(), first)
    kept = script.kept_runs("standard", model, None, harmonic.identity)
    assert [r["key"] for r in kept.runs] == [r["key"] for r in first["runs"]]
    assert kept.lengths == {"CH3OH": summary["lengths"]["CH3OH"]}  # of what is in the file
    assert kept.rules == summary["rules"]
    script.keep_runs(path, harmonic.identity, kept, {**summary, "runs": summary["runs"][1:]})
    kept = script.kept_runs("standard", model, None, harmonic.identity)
    assert sorted(r["key"] for r in kept.runs) == sorted(r["key"] for r in summary["runs"])
    assert kept.lengths == summary["lengths"]
    assert script.kept_runs("dev", model, None, harmonic.identity).runs == ()
    with pytest.raises(SystemExit, match="other weights"):
        script.kept_runs("standard", model, None, "other")


@pytest.fixture
def bench(content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The command `run --mode standard` on small content, and the results that it writes."""
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    ramp = replace(content.scenarios[0], name="ramp", temperatures=(300.0,), end_temperature=400.0)
    more = replace(content, scenarios=[*content.scenarios, ramp])
    monkeypatch.setattr(benchmark, "content", lambda mode: replace(more, mode=mode))

    def done(*words: Any) -> dict[str, Any]:
        given = ["run", "--mode", "standard", "--model", HARMONIC, "--label", "springs", *words]
        result = CliRunner().invoke(script.app, [*map(str, given)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        found = json.loads((tmp_path / "results" / "springs-standard.json").read_text())
        return {**found, "output": result.output}

    return done


def test_the_benchmark_runs_and_goes_on_without_its_folder(bench: Bench, tmp_path: Path) -> None:
    """As a command. The second time the folder is gone, and only the refusals are done again."""
    first = bench("--out", tmp_path / "one")
    assert first["missing"] == 0 and sum(g["runs"] for g in first["groups"]) == 12
    again = bench("--out", tmp_path / "two")
    assert not list((tmp_path / "two" / "trajectories").iterdir())
    assert [g["runs"] for g in again["groups"]] == [g["runs"] for g in first["groups"]]
    assert again["missing"] == 0 and len(again["refusals"]) == len(first["refusals"]) > 0


def test_what_was_judged_by_the_input_geometry_is_not_kept(bench: Bench, tmp_path: Path) -> None:
    """A ramp before the ladder has no mean lengths: neither it nor they are final."""
    file = tmp_path / "results" / "springs-standard-runs.json"
    here = ("--out", tmp_path / "one", "--only")
    ramp = bench(*here, "ramp")
    assert ramp["provisional"] == 4 and "4 runs are judged by the input" in ramp["output"]
    kept = json.loads(file.read_text())
    assert kept["runs"] == [] and kept["lengths"] == {}
    elsewhere = bench("--out", tmp_path / "two", "--only", "ramp")
    assert sum(g["runs"] for g in elsewhere["groups"]) == 4  # simulated there again
    ladder = bench(*here, "ladder")
    assert ladder["provisional"] == 0 and "input geometry" not in ladder["output"]
    kept = json.loads(file.read_text())
    assert len(kept["runs"]) == 12 and set(kept["lengths"]) == {"CH3OH", "H2O"}
    given = {
        name: bond_lengths(np.array(m["positions"])[None], np.array(m["bonds"]))[0]
        for name, m in Folder(tmp_path / "one").suite().molecules.items()
    }
    for name, lengths in kept["lengths"].items():
        assert 1e-6 < np.abs(np.array(lengths) - given[name]).max() < 0.1


def test_render_writes_the_page_and_never_of_the_dev_mode_the_readme(
    bench: Bench, tmp_path: Path
) -> None:
    bench("--out", tmp_path / "one")
    readme, empty = tmp_path / "README.md", f"{START}\n{END}\n"
    readme.write_text(empty)

    def render(mode: str) -> str:
        words = ["render", "--mode", mode, "--readme", str(readme)]
        result = CliRunner().invoke(script.app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return (tmp_path / "results" / f"{mode}.md").read_text()

    results = tmp_path / "results"
    (results / "springs-dev.json").write_text((results / "springs-standard.json").read_text())
    assert "ladder" in render("dev") and readme.read_text() == empty
    page = render("standard")
    assert "core-hours" in page and "| runs whole to their end |" in readme.read_text()


def test_goals_count_only_what_is_long_enough() -> None:
    def summary(share: float, ps: float, runs: int) -> dict:
        group: dict = {"scenario": "ladder", "temperature": 1000.0, "picoseconds": ps, "runs": runs}
        group |= {"ensemble": "nvt", "end_temperature": None, "fraction": [share, 0.0, 1.0]}
        return {"groups": [group], "refusals": [], "runs": []}

    def met(*of: float) -> bool | None:
        return goals(summary(*of))[2].met  # type: ignore[arg-type]

    assert met(0.95, 20.0, 60) is True
    assert met(0.94, 20.0, 60) is False
    assert met(1.0, 1.0, 60) is None and met(1.0, 20.0, 3) is None


@pytest.mark.parametrize(("name", "label"), [("a:B", "a-B"), ("pretrained-visnet",) * 2])
def test_results_have_names_of_files(name: str, label: str) -> None:
    assert label_of(name, None) == label


def test_results_of_training_runs_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run calls its model model.safetensors."""
    from mlpot.cli.stability import _safe

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path / "one")
    assert _safe("model.safetensors") == "one"
    assert _safe("../two/model.safetensors") == _safe(str(tmp_path / "two")) == "two"
    assert _safe("pretrained-visnet") == "pretrained-visnet"
    assert _safe("a.b:C") == "a.b-C"
