"""The page: complete, in one file, and drawn by a browser without a complaint."""

import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import typer
from typer.testing import CliRunner

from mlpot.analysis.molecules import Molecule
from mlpot.analysis.records import Folder, Json, Suite, molecule_json, write_trajectory
from mlpot.analysis.report import make_page, sections, write_report
from mlpot.analysis.report_data import read_sides
from mlpot.analysis.report_figures import curve_traces, with_bars
from mlpot.analysis.report_frames import _facing, worst_frames
from mlpot.analysis.report_page import Figure, Section, Table, Viewer, finite, page
from mlpot.analysis.stability import Content, run
from mlpot.analysis.subjects import Subject
from mlpot.analysis.summary import analyze
from mlpot.cli.common import Group
from mlpot.cli.report import report
from mlpot.errors import DataError, InputError, MissingDependencyError
from tests.analysis.conftest import small

FRAMES, INTERVAL, TIMESTEP = 20, 10.0, 0.5  # frames after the first, fs, fs

EVIL = "<img src=x onerror=alert(1)> & </script>"


# --- a folder as a suite leaves it ---------------------------------------------------------------


class Made:
    """A suite of made-up runs, written as `mlpot stability` writes them."""

    def __init__(self, path: Path, model: str = "made-up", **more: Any):
        self.folder, self.records = Folder(path), list[Json]()
        self.molecules = {
            m.name: m for m in (small("CH3OH"), small("C2H6"), small("H2O", "groups"))
        }
        reference = small("C3H8")
        self.molecules["C3H8"] = Molecule(
            "C3H8", "reference", reference.numbers, reference.positions, "CCC"
        )
        self.model, self.more = model, more

    def run(self, scenario: str, name: str, kelvin: float = 300.0, **told: Any) -> None:
        """A run whose atoms rattle; ``breaks``: first frame at which the last atom is gone."""
        molecule, key = self.molecules[name], f"k{len(self.records)}"
        breaks = told.pop("breaks", None)
        rng = np.random.default_rng(len(self.records))
        x = molecule.positions + rng.normal(0, 0.03, (FRAMES + 1, len(molecule.numbers), 3))
        if breaks is not None:
            x[breaks:, -1] += 5.0
        record: Json = {
            "kind": "run", "id": key, "key": key, "scenario": scenario, "molecule": name,
            "set": molecule.set, "seed": 0, "temperature": kelvin, "end_temperature": None,
            "ensemble": "nvt", "timestep": TIMESTEP, "friction": 10.0, "distortion": 0.0,
            "picoseconds": FRAMES * INTERVAL / 1000, "interval": INTERVAL,
            "steps": round(FRAMES * INTERVAL / TIMESTEP), "lost": False, "reason": "",
            "last": None, "temperatures": [kelvin] * len(x), "thermostat": [kelvin] * len(x),
            "potential": rng.normal(0, 1e-3, len(x)).tolist(), "kinetic": [0.1] * len(x),
            "trajectory": f"{key}.xtc", "engine": "eager", "dtype": "float32", "cpu_seconds": 1.0,
        }  # fmt: skip
        self.records.append({**record, **told})
        self.folder.trajectory(key).parent.mkdir(parents=True, exist_ok=True)
        write_trajectory(self.folder.trajectory(key), x, INTERVAL)

    def write(self, others: list[Json]) -> Path:
        trajectories = self.folder.path / "trajectories"
        aside = trajectories.rename(self.folder.path.with_name(f"{self.folder.path.name}-x"))
        self.folder.path.rmdir()
        used = {r["molecule"] for r in self.records}
        told = {
            "mode": "dev",
            "identity": f"hash of {self.model}",
            "skipped": {"errors on nothing": EVIL},
            "machine": {"processor": "abacus", "mlpot": "0.0"},
            **self.more,
        }
        self.folder.begin(
            Suite(
                model=self.model,
                runs=[*(r["key"] for r in self.records), "not done"],
                others=[r["key"] for r in others],
                molecules={n: molecule_json(m) for n, m in self.molecules.items() if n in used},
                **told,
            )
        )
        for file in aside.iterdir():
            file.rename(trajectories / file.name)
        aside.rmdir()
        with self.folder.store() as store:
            for record in [*self.records, *others]:
                store.add(record["key"], {"records": [record]})
            store.fail("broken", "the SCF has not converged")
        return self.folder.path


def a_suite(path: Path, model: str = "made-up", first_break: int = 8, **more: Any) -> Path:
    """Every part of a report: broken, lost and whole runs; a ramp; NVE; a reference; accuracy."""
    made = Made(path, model, **more)
    for kelvin in (300.0, 1000.0):
        made.run("ladder", "CH3OH", kelvin)
        made.run("ladder", "C2H6", kelvin, breaks=first_break if kelvin > 500 else None)
    made.run("ramp", "CH3OH", end_temperature=3000.0, breaks=12)
    made.run("ramp", "C2H6", end_temperature=3000.0)
    for step in (0.5, 1.0):
        made.run("nve", "CH3OH", ensemble="nve", timestep=step, steps=round(200 / step))
    last = (made.molecules["H2O"].positions * 1.5).tolist()
    made.run("groups", "H2O", lost=True, steps=3, last=last, reason="a NaN")
    made.records[-1]["potential"][0] = None
    made.run("reference", "C3H8", 500.0)
    path = made.write([accuracy("a set"), accuracy("energies only", forces=None), refusal()])
    reference = made.molecules["C3H8"].positions
    rng = np.random.default_rng(0)
    np.savez_compressed(
        made.folder.reference("C3H8"),
        positions=(reference + rng.normal(0, 0.05, (50, *reference.shape))).astype(np.float32),
        temperature=500.0,
        source="made up",
    )
    return path


def accuracy(name: str, **more: Any) -> Json:
    pairs = [[-0.1, 0.0, 0.1], [-0.2, 0.0, 0.2]]
    told = {"kind": "accuracy", "key": f"accuracy-{name}", "name": name, "level": "", "frames": 3}
    errors = dict.fromkeys(("energy_mae", "energy_rmse", "force_mae", "force_rmse"), 66.7)
    return {**told, **errors, "energies": pairs, "forces": pairs, **more}


def refusal() -> Json:
    return {"kind": "refusal", "key": "refusal-SiH4", "molecule": "SiH4", "elements": ["Si"]} | {
        "refused": True,
        "message": "does not cover Si",
    }


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_suite(tmp_path_factory.mktemp("report") / "suite")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_suite(tmp_path_factory.mktemp("report") / "other", EVIL, first_break=3)


class Tags(HTMLParser):
    """Elements with their attributes, and the text outside of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.text += data


def figures_of(*folders: Path) -> list[Figure]:
    parts = [part for section in sections(read_sides(folders)) for part in section.parts]
    viewers = [figure for p in parts if isinstance(p, Viewer) for _, figure in p.choices]
    return [*(p for p in parts if isinstance(p, Figure)), *viewers]


def titled(figures: list[Figure], words: str) -> Figure:
    (found,) = [figure for figure in figures if words in figure.title]
    return found


# --- the page ------------------------------------------------------------------------------------


def test_the_page_is_one_file_and_asks_for_nothing(suite: Path, tmp_path: Path) -> None:
    out = write_report([suite], tmp_path / "deep" / "page.html")
    text = out.read_text(encoding="utf-8")
    assert os.listdir(out.parent) == ["page.html"]
    tags = Tags(text)
    for tag, attributes in tags.found:
        assert tag not in ("iframe", "object", "embed", "base")
        assert not (tag == "script" and "src" in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    policy = next(a for _, a in tags.found if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")
    assert text.count("plotly.js v") == 1 and len(text) < 6e6
    assert not re.search(r"<!--[A-Z]+-->", text.split("<script>")[0])


def test_the_page_holds_everything(suite: Path) -> None:
    text = make_page(read_sides([suite]))
    tags = Tags(text)
    for name in Folder(suite).suite().molecules:
        assert name in tags.text
    for words in (
        "hash of made-up", "abacus", "does not cover Si", "the SCF has not converged",
        "1 runs to be done", "errors on nothing", "energies only", "made up", "1 of 2",
    ):  # fmt: skip
        assert words in tags.text, words
    assert [tag for tag, _ in tags.found if re.fullmatch("h[12]", tag)].count("h1") == 1
    places = {f"#{a['id']}" for tag, a in tags.found if tag == "section"}
    assert {a["href"] for tag, a in tags.found if tag == "a"} == places
    viewport = next(a for _, a in tags.found if a.get("name") == "viewport")
    assert "width=device-width" in (viewport["content"] or "")


def test_a_viewer_takes_no_finger_before_a_tap(suite: Path) -> None:
    """It is as high as half a phone: whoever scrolls past it must not be held there."""
    text = make_page(read_sides([suite]))
    own = text.split("<script>")
    assert re.search(r'<div class="stage"><div class="plot tall"[^>]*></div></div>', own[0])
    assert ".stage.asleep .plot { pointer-events: none; }" in own[0]
    assert 'classList.add("asleep")' in own[-1] and 'classList.remove("asleep")' in own[-1]
    narrow = re.search(r"max-width: 40rem\) \{ \.plot\.tall \{ height: min\((\d+)vh", own[0])
    assert narrow and int(narrow[1]) <= 50


def test_plotly_accepts_every_figure(suite: Path, other: Path) -> None:
    """Its Python package knows all properties of its JavaScript, and refuses others."""
    for folders in ([suite], [suite, other]):
        figures = figures_of(*folders)
        assert len(figures) > 15
        for figure in figures:
            assert figure.data
            go.Figure(finite(figure.data), finite(figure.layout))


def test_several_models_are_in_one_figure(suite: Path, other: Path) -> None:
    figures = figures_of(suite, other)
    curves = titled(figures, "ladder 1000 K, 0.2 ps").data
    named = {t["name"]: t for t in curves if "name" in t}
    assert len(named) == 2 and len({t["line"]["color"] for t in named.values()}) == 2
    times = [min(t["x"][1:]) for t in named.values()]
    assert times == [pytest.approx(0.08), pytest.approx(0.03)]
    frames = worst_frames(read_sides([suite, other]))
    assert frames is not None and len(frames.choices) == 2 * 4


def test_models_of_one_name_are_told_apart(suite: Path, tmp_path: Path) -> None:
    twin = a_suite(tmp_path / "twin")
    assert [s.label for s in read_sides([suite, twin])] == ["made-up (suite)", "made-up (twin)"]
    again = a_suite(tmp_path / "there" / "twin")
    labels = [s.label for s in read_sides([twin, again])]
    assert len(set(labels)) == 2


def test_words_from_outside_are_words(other: Path) -> None:
    """The name of a model is no HTML, neither in the page nor in what plotly.js draws."""
    text = make_page(read_sides([other]))
    own = text.split("<script>")[0]  # plotly.js has elements of its own in strings
    assert EVIL in Tags(own).text
    assert "<img" not in own
    data = re.search(r'id="figures">(.*?)</script>', text, re.S)
    assert data and "<" not in data[1]
    assert all("<img" not in str(t.get("name")) for f in json.loads(data[1]) for t in f["data"])


# --- what the numbers become ---------------------------------------------------------------------


def test_survival_is_that_of_the_summary(suite: Path) -> None:
    summary = analyze(suite)
    group = next(
        g for g in summary["groups"] if (g["scenario"], g["temperature"]) == ("ladder", 1000.0)
    )
    curve = next(
        t for t in titled(figures_of(suite), "ladder, 0.2 ps").data if t.get("name") == "1000 K"
    )
    assert curve["x"] == group["survival"]["times"]
    assert curve["y"] == group["survival"]["probability"] and 0.5 in curve["y"]


def test_a_ramp_is_drawn_over_its_temperature(suite: Path) -> None:
    """Broke at frame 12 of 20 between 300 and 3000 K: at 1920 K; the other got to the end."""
    figures = figures_of(suite)
    strip = titled(figures, "Each molecule").data[0]
    assert strip["x"] == [pytest.approx(1920.0), pytest.approx(3000.0)]
    assert strip["marker"]["symbol"] == ["circle", "triangle-right-open"]
    curve = titled(figures, "while heated").data[2]
    assert curve["x"] == [300.0, pytest.approx(1920.0), pytest.approx(3000.0)]
    assert curve["y"] == [1.0, 0.5, 0.5]


def test_a_ramp_is_summed_up_by_the_curve_that_is_drawn(suite: Path) -> None:
    """One broke at 1920 K, one not at all: the mean of those that broke would be biased."""
    (ramp,) = analyze(suite)["ramp"]
    curve = titled(figures_of(suite), "while heated").data[2]
    assert (ramp["survival"]["times"], ramp["survival"]["probability"]) == (curve["x"], curve["y"])
    assert ramp["median"] == [pytest.approx(1920.0), pytest.approx(1920.0), None]
    assert "1920 (1920 to over 3000)" in Tags(make_page(read_sides([suite]))).text


def test_rules_one_by_one(suite: Path) -> None:
    """Of two runs one lost an atom; frame 8 of 20 at 10 fs each. No hydrogen of H2O came back."""
    groups = {(g["scenario"], g["temperature"]): g for g in analyze(suite)["groups"]}
    hot, lost = groups["ladder", 1000.0], groups["groups", 300.0]
    assert hot["bond_ps"][0] == pytest.approx((0.08 + 0.2) / 2)
    assert (hot["lost_hydrogen"], hot["exploded"], hot["over"]) == (1, 0, "molecules")
    assert (lost["lost_hydrogen"], lost["exploded"]) == (0, 1)  # a NaN
    (table,) = sections(read_sides([suite]))[0].parts
    assert isinstance(table, Table)
    row = next(row for row in table.rows if row[0] == "ladder 1000 K")
    assert dict(zip(table.columns, row, strict=True))["H lost"] == "1"
    assert [cell.endswith("†") for cell in row[5:7]] == [True, True] and "†" in table.note


def test_drift_says_what_broke(tmp_path: Path) -> None:
    """The part before a break may look as good as any."""
    made = Made(tmp_path / "suite")
    for name, breaks in (("CH3OH", None), ("C2H6", 12), ("C2H6", 1)):
        made.run("nve", name, ensemble="nve", breaks=breaks)
    climbing = made.records[1]["potential"]
    climbing[:] = [0.008 * i for i in range(len(climbing))]  # 8 atoms, 10 fs: 100 meV/atom/ps
    path = made.write([])
    (drift,) = analyze(path)["drift"]
    assert (drift["runs"], drift["broke"]) == (3, 2)
    assert drift["largest"] == {"molecule": "C2H6", "drift": pytest.approx(100.0)}
    text = Tags(make_page(read_sides([path]))).text
    assert "2 of 3" in text and "+1e+02 (C2H6)" in text


def test_why_a_run_was_taken_out_is_told(suite: Path) -> None:
    assert "integrator: a NaN" in Tags(make_page(read_sides([suite]))).text


def test_a_page_tells_what_is_not_judged(tmp_path: Path) -> None:
    """The hydroxyl of a reference that opens in it."""
    made = Made(tmp_path / "suite")
    reference = made.molecules["CH3OH"]
    made.molecules["CH3OH"] = replace(reference, set="reference")
    made.run("reference", "CH3OH")
    path = made.write([])
    frames = np.repeat(reference.positions[None], 8, axis=0)
    frames[::4, 3] += 2.0 * (frames[::4, 3] - frames[::4, 1])
    np.savez(made.folder.reference("CH3OH"), positions=frames, temperature=300.0, source="open")
    assert "not judged: bond O1-H3 of CH3OH" in Tags(make_page(read_sides([path]))).text


def test_worst_frames(suite: Path) -> None:
    """Broken runs first; the atom that left is where it went, and its bond is the red one."""
    found = worst_frames(read_sides([suite]))
    assert found is not None
    kinds = [kind for kind, _ in found.choices]
    assert kinds == sorted(kinds) == ["Broke"] * 3 + ["Whole"]
    figure = next(f for _, f in found.choices if f.title.startswith("C2H6"))
    _, red, balls = figure.data
    start, end, _ = np.stack([red[k] for k in "xyz"], axis=1)
    assert 4.0 < np.linalg.norm(end - start) < 10.0
    assert len(balls["x"]) == len(balls["text"]) == 8
    half = figure.layout["scene"]["xaxis"]["range"][1]
    assert max(np.abs(balls[k]).max() for k in "xyz") < half < 10.0  # nothing is cut off
    lost = next(f for _, f in found.choices if f.title.startswith("H2O"))
    assert "last sound step" in lost.title and "integrator" in lost.title


def test_a_molecule_is_turned_but_not_mirrored() -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        x = rng.normal(size=(6, 3)) * [1.0, 5.0, 3.0]
        turned = _facing(x)
        volume, after = (np.linalg.det(y[1:4] - y[0]) for y in (x, turned))
        assert after == pytest.approx(volume)
        assert np.all(np.diff(turned.std(axis=0)) < 0)
    assert np.isnan(_facing(np.full((2, 3), np.nan))).all()


def test_absent_bounds_and_numbers_that_are_none() -> None:
    bars = with_bars([(1.0, None, None), (2.0, 1.5, 3.0), (None, None, None)])
    assert bars["error_y"]["array"] == [None, 1.0, None]
    assert bars["error_y"]["arrayminus"] == [None, 0.5, None]
    never = {"times": [0.0, 1.0], "probability": [1.0, 1.0], "low": [None, None]}
    traces = curve_traces({**never, "high": [None, None], "at_risk": [3, 3]}, "whole", 0)
    text = page("t", [], [Section("s", [Figure("f", traces, {"x": math.nan}, "")])])
    assert '"layout":{"x":null}' in text
    assert finite([math.inf, {"a": (math.nan, 1)}]) == [None, {"a": [None, 1]}]


def test_a_run_that_broke_at_once(tmp_path: Path) -> None:
    """No sound frame, no energy, no line of drift: a page all the same."""
    made = Made(tmp_path / "suite")
    made.run("nve", "CH3OH", ensemble="nve", breaks=0)
    made.run("reference", "C3H8", breaks=0)
    path = made.write([])
    positions = np.repeat(made.molecules["C3H8"].positions[None], 4, axis=0)
    np.savez(made.folder.reference("C3H8"), positions=positions, temperature=300.0, source="same")
    text = make_page(read_sides([path]))
    assert "0 of 2 simulations" in text


def test_one_model_has_no_column_of_models(suite: Path, other: Path) -> None:
    one, two = (make_page(read_sides(f)) for f in ([suite], [suite, other]))
    assert '<th scope="col">model</th>' not in one
    assert '<th scope="col">model</th>' in two


def test_rows_are_as_long_as_their_heads(suite: Path, other: Path) -> None:
    for section in sections(read_sides([suite, other])):
        for table in (part for part in section.parts if isinstance(part, Table)):
            assert {len(row) for row in table.rows} == {len(table.columns)}, table.title


# --- errors --------------------------------------------------------------------------------------


def test_folders_that_are_none(suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    for path in (foreign, tmp_path / "nowhere", suite / "suite.json"):
        with pytest.raises(DataError, match="no suite.json"):
            write_report([path], out)
    old = shutil.copytree(suite, tmp_path / "old")
    told = json.loads((old / "suite.json").read_text())
    (old / "suite.json").write_text(json.dumps({**told, "version": 0}))
    with pytest.raises(DataError, match="layout 0"):
        write_report([old], out)
    with pytest.raises(InputError, match="each once"):
        write_report([suite, suite], out)
    with pytest.raises(InputError, match="each once"):
        write_report([], out)
    with pytest.raises(InputError, match="ending in .html"):
        write_report([suite], tmp_path / "page.pdf")
    assert not out.exists()


def test_nothing_is_done_yet_or_records_are_others(suite: Path, tmp_path: Path) -> None:
    begun = shutil.copytree(suite, tmp_path / "begun")
    (begun / "records.jsonl").unlink()
    with pytest.raises(DataError, match="no finished run"):
        read_sides([begun])
    damaged = shutil.copytree(suite, tmp_path / "damaged")
    text = (damaged / "records.jsonl").read_text()
    (damaged / "records.jsonl").write_text(text.replace('"cpu_seconds"', '"seconds"'))
    with pytest.raises(DataError, match="cpu_seconds"):
        read_sides([damaged])


def test_without_plotly(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingDependencyError, match=re.escape("mlpot[report]")):
        write_report([suite], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


# --- the command, on what a suite really leaves --------------------------------------------------

app = typer.Typer(cls=Group)
app.callback()(lambda: None)
app.command("report")(report)


def test_the_command_on_a_suite(
    soft: Subject, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(soft, content, tmp_path / "suite").path
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    assert "report.html" in result.output
    assert "8 simulations of 2 molecules" in (folder / "report.html").read_text()
    run(soft, content, folder)  # a page among its files is no reason to refuse the folder
    copy = shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["report", str(folder), str(copy)])
    assert result.exit_code == 0, result.output
    assert "soft (copy)" in Path("report.html").read_text()
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 1 and "no suite.json" in result.stderr


# --- a browser -----------------------------------------------------------------------------------

_NAMES = ("chrome-headless-shell", "chromium-headless-shell", "chromium", "chromium-browser")
_NAMES += ("google-chrome", "google-chrome-stable")

#: notes errors and refused requests on the page; then looks at every frame of the viewer
_WATCH = """<script>
const told = [];
const note = (what) => { told.push(what);
  document.documentElement.dataset.errors = JSON.stringify(told); };
addEventListener("error", (event) => note(event.message));
addEventListener("unhandledrejection", (event) => note(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => note("refused " + event.blockedURI));
console.error = (...words) => note(words.join(" "));
addEventListener("load", () => {
  dispatchEvent(new Event("beforeprint"));
  const select = document.querySelector("select");
  for (const option of select?.options ?? []) {
    select.value = option.value;
    select.dispatchEvent(new Event("change"));
  }
  const page = document.documentElement;
  page.dataset.width = innerWidth;
  if (page.scrollWidth > innerWidth) note(`${page.scrollWidth} pixels wide`);
  setTimeout(() => parent.postMessage(page.outerHTML, "*"), 25000);
});
</script>"""

#: windows are never narrower than 500 pixels, frames are; shows the page in it as text
_PHONE = """<!doctype html><script>
addEventListener("message", (event) => { document.body.textContent = event.data; });
</script><body><iframe src="page.html" style="width: {width}px; height: 900px; border: 0">"""


@pytest.fixture
def chrome() -> str:
    found = os.environ.get("CHROME") or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("needs Chrome or Chromium on PATH, or its path in CHROME")
    return found


def opened(chrome: str, text: str, tmp_path: Path, width: int) -> tuple[str, Tags]:
    """What went wrong, if anything, and the page as the browser has made it."""
    inside, path = tmp_path / "page.html", tmp_path / "phone.html"
    inside.write_text(text.replace("<title>", f"{_WATCH}<title>", 1), encoding="utf-8")
    path.write_text(_PHONE.replace("{width}", str(width)), encoding="utf-8")
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader"]
    words += ["--enable-unsafe-swiftshader", f"--user-data-dir={tmp_path / 'profile'}"]
    words += ["--window-size=1400,1000", "--virtual-time-budget=30000", "--dump-dom"]
    done = subprocess.run(
        [chrome, *words, path.as_uri()], capture_output=True, text=True, timeout=300
    )
    tags = Tags(html.unescape(done.stdout.split("<body>", 1)[1]))
    (root,) = [a for tag, a in tags.found if tag == "html"]
    assert root["data-width"] == str(width)
    return root.get("data-errors") or "", tags


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_it(
    chrome: str, suite: Path, other: Path, tmp_path: Path, width: int
) -> None:
    errors, tags = opened(chrome, make_page(read_sides([suite, other])), tmp_path, width)
    assert not errors
    plots = [a for _, a in tags.found if (a.get("class") or "").split()[:1] == ["plot"]]
    assert len(plots) > 15 and all("data-drawn" in a for a in plots)
    assert sum("main-svg" in (a.get("class") or "") for _, a in tags.found) >= len(plots)


def test_the_browser_would_tell(chrome: str, tmp_path: Path) -> None:
    """A request for something outside is refused by the page itself, and noted like an error."""
    text = page("t", [], [Section("s", [Figure("f", [{"x": [1], "y": [2]}], {})])])
    assert not opened(chrome, text, tmp_path, 390)[0]
    worse = '<img src="http://127.0.0.1:9/x.png"><script>absent();</script><hr style="width:999px">'
    errors, _ = opened(chrome, text.replace("</main>", f"{worse}</main>"), tmp_path, 390)
    assert "refused http" in errors and "absent" in errors and "pixels wide" in errors
