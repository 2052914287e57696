"""Labelling: right numbers, nothing twice, nothing lost to a kill, failures with their reason."""

import errno
import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, FileIOCalculator
from ase.calculators.emt import EMT
from ase.calculators.test import calculate_numerical_forces
from ase.io import read as ase_read
from typer.testing import CliRunner

from mlpot import units
from mlpot.cli.jobs import parse_options, progress_bar
from mlpot.data import calculators, jobs
from mlpot.data.formats import read, read_all
from mlpot.data.formats.extxyz import write_extxyz
from mlpot.data.formats.labelled import read_extra, write_labelled
from mlpot.data.jobs import DIED
from mlpot.data.label import Labelled, calculate, frame_key
from mlpot.data.label import label as label_in_processes
from mlpot.data.labellers import LABELLERS, Labeller, labeller
from mlpot.data.record import Record
from mlpot.data.store import Store
from mlpot.errors import DataError, InputError, MissingDependencyError, UnsupportedSystemError

FILES = Path(__file__).parent / "files"
ROOT = Path(__file__).resolve().parents[2]
EMT_PATH = "ase.calculators.emt:EMT"


class Odd(Calculator):
    """EMT with a member for every way in which a calculation ends badly, by number of atoms."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, committee: str = "", sleep: float = 0.0):
        super().__init__()
        self.committee, self.sleep = committee, sleep

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = ()):
        super().calculate(atoms, properties, system_changes)
        n = len(atoms)
        if told := os.environ.get("MLPOT_TEST_TOLD"):  # who was asked, across processes
            with open(told, "a") as file:
                file.write(f"{n}\n")
        time.sleep(self.sleep)
        if n == 2:
            raise RuntimeError("no convergence\nin 50 cycles")
        if n == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        copy = atoms.copy()
        copy.calc = EMT()
        self.results = {"energy": copy.get_potential_energy(), "forces": copy.get_forces()}
        if n == 4:
            self.results["forces"][0, 0] = np.nan
        if self.committee == "std":
            self.results |= {"energy_std": 0.25, "forces_std": np.full((n, 3), 0.5)}
        if self.committee == "members":  # MACE's names
            members = np.stack([self.results["forces"] - 0.1, self.results["forces"] + 0.1])
            self.results |= {"energy_var": 0.04, "forces_comm": members}


ODD = "tests.data.test_label:Odd"


class Program(FileIOCalculator):
    """A program that is told by files in its folder: EMT, slowly enough to be overtaken."""

    implemented_properties: ClassVar = ["energy", "forces"]
    script = (
        "import time; from ase.io import read, write; from ase.calculators.emt import EMT\n"
        "atoms = read('input.xyz'); time.sleep(0.1); atoms.calc = EMT(); atoms.get_forces()\n"
        "write('output.xyz', atoms)"
    )

    def __init__(self, **options: Any):
        super().__init__(command=f'{sys.executable} -c "{self.script}"', **options)

    def write_input(self, atoms: Any, properties: Any = None, system_changes: Any = None) -> None:
        super().write_input(atoms, properties, system_changes)
        atoms = atoms.copy()
        atoms.write(Path(self.directory) / "input.xyz")

    def read_results(self) -> None:
        done = ase_read(Path(self.directory) / "output.xyz")
        self.results = {"energy": done.get_potential_energy(), "forces": done.get_forces()}


PROGRAM = "tests.data.test_label:Program"


class Scaled(Odd):
    """EMT times the number in a file, which is opened where the calculator is made."""

    def __init__(self, file: str):
        super().__init__()
        self.scale = float(Path(file).read_text())

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = ()):
        super().calculate(atoms, properties, system_changes)
        self.results = {name: self.scale * value for name, value in self.results.items()}


SCALED = "tests.data.test_label:Scaled"


def label(*args: Any, workers: int = 0, **options: Any) -> Labelled:
    """In this process unless a test is about others: they take a second to start."""
    return label_in_processes(*args, workers=workers, **options)


def chain(n: int, shift: float = 0.0, **fields: Any) -> Record:
    """n copper atoms in a row, 2.5 Å apart."""
    positions = np.zeros((n, 3))
    positions[:, 0] = 2.5 * np.arange(n) + shift * np.arange(n)
    return Record(**{"numbers": np.full(n, 29), "positions": positions, "group": f"Cu{n}"} | fields)


def chains(number: int, n: int = 5) -> list[Record]:
    return [chain(n, 0.01 * i) for i in range(number)]


def water(**fields: Any) -> Record:
    atoms = molecule("H2O")
    return Record(**{"numbers": atoms.numbers, "positions": atoms.positions, "group": "O"} | fields)


def emt(record: Record) -> Atoms:
    atoms = Atoms(record.numbers, record.positions, calculator=EMT())
    return atoms


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "results.store"


# --- numbers ----------------------------------------------------------------------------------


def test_labels_are_those_of_the_calculator_in_the_order_of_the_input(store: Path) -> None:
    records = [chain(n) for n in (7, 1, 5)] + chains(4, 6)[1:]
    out = label(records, labeller(EMT_PATH), store, workers=2)
    assert [len(r.numbers) for r in out.records] == [7, 1, 5, 6, 6, 6]
    for before, after in zip(records, out.records, strict=True):
        assert after.energy == emt(before).get_potential_energy()  # to the last bit
        assert after.forces is not None
        np.testing.assert_array_equal(after.forces, emt(before).get_forces())
        assert (after.group, after.level) == (before.group, EMT_PATH)
    assert (out.computed, out.known, out.failed, out.duplicates) == (6, 0, {}, 0)


def test_old_labels_are_replaced(store: Path) -> None:
    old = chain(5, energy=1.0, forces=np.ones((5, 3)), level="another")
    (new,) = label([old], labeller(EMT_PATH), store).records
    assert new.energy == emt(old).get_potential_energy() and new.level == EMT_PATH


@pytest.mark.parametrize(
    ("committee", "energy", "force"), [("std", 0.25, 0.5), ("members", 0.2, 0.1)]
)
def test_the_committee_is_stored_where_there_is_one(
    store: Path, tmp_path: Path, committee: str, energy: float, force: float
) -> None:
    out = label(chains(2), labeller(ODD, {"committee": committee}), store)
    assert out.extras["committee_energy_std"] == pytest.approx([energy] * 2)
    assert out.extras["committee_force_std"] == pytest.approx([force] * 2)
    write_labelled(tmp_path / "out.h5", out.records, out.extras)
    with h5py.File(tmp_path / "out.h5") as file:
        group = file["Cu5"]
        assert group["committee_energy_std"].attrs["units"] == "hartree"
        stored = group["committee_energy_std"][:] * units.HARTREE_TO_EV
        assert stored == pytest.approx([energy] * 2)
        stored = group["committee_force_std"][:] * units.HARTREE_TO_EV / units.BOHR_TO_ANGSTROM
        assert stored == pytest.approx([force] * 2)
    write_labelled(tmp_path / "out.xyz", out.records, out.extras)
    assert f"committee_force_std={force:.1f}" in (tmp_path / "out.xyz").read_text()
    assert label(chains(2), labeller(EMT_PATH), store).extras == {}


# --- nothing twice, nothing lost ----------------------------------------------------------------


def told(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with one line for every calculation of `Odd`, in whatever process."""
    path = tmp_path / "asked"
    monkeypatch.setenv("MLPOT_TEST_TOLD", str(path))
    return path


def test_nothing_is_computed_twice(store: Path, asked: Path) -> None:
    records = chains(4)
    odd = labeller(ODD)
    first = label([*records[:2], records[0]], odd, store)
    assert (first.computed, first.duplicates, len(first.records)) == (2, 1, 2)
    again = label([records[3], *records], odd, store)
    assert (again.computed, again.known, again.duplicates) == (2, 2, 1)
    assert len(told(asked)) == 4
    wanted = [emt(records[i]).get_potential_energy() for i in (3, 0, 1, 2)]
    assert [r.energy for r in again.records] == wanted


def test_what_a_frame_is_told_by() -> None:
    one, how = water(), labeller(EMT_PATH)
    same = [
        replace(one, group="other", subset="s", energy=1.0),
        replace(one, positions=one.positions + 1e-9),
        replace(one, positions=one.positions - 0.0),
    ]
    assert {frame_key(r, how) for r in same} == {frame_key(one, how)}
    box = 9 * np.eye(3)
    others = [
        replace(one, charge=2),
        replace(one, positions=one.positions + 2e-5),
        replace(one, numbers=np.array([16, 1, 1])),
        replace(one, cell=box, pbc=(True,) * 3),
        replace(one, cell=box + 1, pbc=(True,) * 3),
    ]
    assert len({frame_key(r, how) for r in [one, *others]}) == 6
    hows = [
        labeller(EMT_PATH, {"asap_cutoff": True}),
        labeller(EMT_PATH, level="other"),
        labeller("gfn2-xtb"),
        labeller("gfn2-xtb", {"accuracy": 0.1}),
    ]
    assert len({frame_key(one, h) for h in [how, *hows]}) == 5
    # how fast, not what
    assert frame_key(one, labeller(EMT_PATH, {"device": "cuda"})) == frame_key(one, how)


def test_a_moved_file_is_the_same_labeller_and_a_changed_one_is_not(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("m.jpt", "moved/m.jpt", "changed/m.jpt"))
    for path, content in ((one, "a"), (two, "a"), (three, "b")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    keys = {p: labeller("aimnet2", {"model": str(p)}).identity for p in (one, two, three)}
    assert keys[one] == keys[two] != keys[three]
    assert labeller("aimnet2", {"model": str(one)}).level == "AIMNet2 m"


def test_files_are_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlpot.cli.jobs import labeller_of

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/model.safetensors").write_text("weights")
    (tmp_path / "scale.txt").write_text("2.0")
    (tmp_path / "link.txt").symlink_to("scale.txt")
    monkeypatch.chdir(tmp_path)
    how = labeller(SCALED, {"file": "scale.txt"})
    whole = labeller(SCALED, {"file": str(tmp_path / "scale.txt")})
    # results in stores made with the name alone stay valid
    digest = hashlib.sha256(b"2.0").hexdigest()
    assert json.loads(how.identity) == [SCALED, f"{SCALED} file=scale", {"file": digest}]
    assert how == whole and how.level == f"{SCALED} file=scale"
    # a link keeps its name: loaders go by the suffix, and what it points to may have none
    assert labeller(SCALED, {"file": Path("link.txt")}).options == (
        ("file", str(tmp_path / "link.txt")),
    )
    for name in ("mine", "mine/model.safetensors"):  # what --with takes
        model = dict(labeller_of(name, None, "").options)["model"]
        assert model == str(tmp_path / "mine/model.safetensors")
    # no file: left alone; and no default of the table is taken for one
    assert labeller(SCALED, {"file": "absent"}).options == (("file", "absent"),)
    (tmp_path / "GFN2-xTB").write_text("notes")
    assert dict(labeller("gfn2-xtb").options)["method"] == "GFN2-xTB"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert how.build().scale == 2.0


@pytest.mark.parametrize("keep", [0.999, 0.6, 0.35, 0.02, 0.0])
def test_a_store_cut_anywhere_goes_on(store: Path, asked: Path, keep: float) -> None:
    records, odd = chains(5), labeller(ODD)
    whole = label(records, odd, store)
    content = store.read_bytes()
    store.write_bytes(content[: int(keep * len(content))])
    lines = max(0, store.read_bytes().count(b"\n") - 1)  # without the header
    asked.unlink()
    after = label(records, odd, store)
    assert (after.known, after.computed) == (lines, 5 - lines)
    assert len(told(asked)) == 5 - lines
    assert [r.energy for r in after.records] == [r.energy for r in whole.records]
    assert label(records, odd, store).computed == 0
    assert all(json.loads(line) for line in store.read_text().splitlines())


def test_a_damaged_line_is_computed_again(store: Path) -> None:
    records, how = chains(3), labeller(EMT_PATH)
    label(records, how, store)
    lines = store.read_bytes().splitlines(keepends=True)
    store.write_bytes(b"".join([lines[0], lines[1], b"\0" * 40 + b"\n", lines[3]]))
    out = label(records, how, store)
    assert (out.known, out.computed, len(out.records)) == (2, 1, 3)


def test_every_prefix_of_a_store_can_be_opened(store: Path) -> None:
    with Store(store) as results:
        results.add("a", {"x": 0.1})
        results.fail("b", "why")
        results.add("b", {"x": [1 / 3]})
        assert results["b"] == {"x": [1 / 3]} and not results.failed
    content = store.read_bytes()
    for end in range(len(content)):
        store.write_bytes(content[:end])
        with Store(store) as results:
            results.add("c", {"x": 1e-300})
        with Store(store) as results:
            assert results["c"] == {"x": 1e-300}
            if "a" in results:
                assert results["a"] == {"x": 0.1}


def test_copies_in_float32_are_known_and_those_of_text_nearly_always() -> None:
    rng, how = np.random.default_rng(0), labeller(EMT_PATH)
    frames = [chain(30, positions=rng.uniform(-8, 8, (30, 3))) for _ in range(200)]
    keys = [frame_key(r, how) for r in frames]
    single = [replace(r, positions=r.positions.astype(np.float32)) for r in frames]
    assert [frame_key(r, how) for r in single] == keys
    text = [replace(r, positions=np.round(r.positions, 8)) for r in frames]
    assert sum(frame_key(r, how) != k for r, k in zip(text, keys, strict=True)) < 20


@pytest.mark.parametrize("named", [False, True])
def test_programs_that_write_files_do_not_read_those_of_others(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """Workers share the current folder: in it, one would read the output of another."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = {"directory": str(tmp_path / "work")} if named else {}
    records = chains(8)
    out = label(records, labeller(PROGRAM, options), store, workers=2)
    assert out.failed == {}
    wanted = [emt(r).get_potential_energy() for r in records]
    assert [r.energy for r in out.records] == pytest.approx(wanted, abs=1e-6)
    assert not list((tmp_path / "here").iterdir())
    assert len(list(tmp_path.glob("work/worker-*/output.xyz"))) == (2 if named else 0)


def test_a_temporary_folder_goes_with_its_calculator() -> None:
    made = labeller(PROGRAM).build()
    folder = Path(made.directory)
    assert folder.is_dir() and folder != Path.cwd()
    del made
    gc.collect()
    assert not folder.exists()
    new = labeller("ase.calculators.orca:ORCA", {"profile": SimpleNamespace()}).build()
    assert isinstance(new.directory, Path) and new.directory.is_dir()


def test_a_file_system_without_locks_is_told_and_used(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("mlpot.data.store.fcntl.flock", unsupported)
    with pytest.warns(UserWarning, match="cannot lock files"), Store(store) as results:
        results.add("a", {"x": 1})
    assert b'"a"' in store.read_bytes()


def test_a_store_has_one_writer_and_is_not_any_file(store: Path) -> None:
    with Store(store), pytest.raises(DataError, match="another process is writing"):
        Store(store)
    store.write_text("notes of mine\n")
    with pytest.raises(DataError, match="not a store of mlpot"):
        Store(store)
    assert store.read_text() == "notes of mine\n"
    store.unlink()
    with Store(store):
        pass
    assert not store.exists()


def test_a_killed_run_loses_nothing_and_leaves_nobody_behind(tmp_path: Path) -> None:
    write_extxyz(tmp_path / "in.xyz", chains(30))
    asked = tmp_path / "asked"
    script = (
        "from mlpot.data.formats import read\n"
        "from mlpot.data.label import label\n"
        "from mlpot.data.labellers import labeller\n"
        "if __name__ == '__main__':\n"
        f"    how = labeller({ODD!r}, dict(sleep=0.1))\n"
        "    label(read('in.xyz'), how, 'store', workers=2)\n"
    )
    (tmp_path / "run.py").write_text(script)
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"MLPOT_TEST_TOLD": str(asked), "PYTHONPATH": str(root)}
    run = subprocess.Popen([sys.executable, "run.py"], cwd=tmp_path, env=environment)
    while run.poll() is None and len(told(asked)) < 6:
        time.sleep(0.02)
    run.kill()
    run.wait()
    time.sleep(0.5)  # a calculation that was under way may end
    count = len(told(asked))
    assert count < 30
    time.sleep(0.5)
    assert len(told(asked)) == count, "workers go on without their parent"
    out = label(read(tmp_path / "in.xyz"), labeller(ODD, {"sleep": 0.1}), tmp_path / "store")
    assert out.known >= count - 4 and out.known + out.computed == 30
    assert len(out.records) == 30
    keys = [json.loads(line).get("key") for line in (tmp_path / "store").open()]
    assert len(keys) == len(set(keys)) == 31


# --- failures -----------------------------------------------------------------------------------


def test_failures_have_reasons_and_are_tried_again_only_when_asked(
    store: Path, asked: Path
) -> None:
    records = [chain(5), chain(2), chain(6), chain(4), chain(2), chain(7)]
    odd = labeller(ODD)
    out = label(records, odd, store)
    assert [len(r.numbers) for r in out.records] == [5, 6, 7]
    assert out.failed[1] == out.failed[4] == "RuntimeError: no convergence in 50 cycles"
    assert "not finite" in out.failed[3]
    asked.unlink()
    again = label(records, odd, store)
    assert (again.computed, again.known, told(asked)) == (0, 5, [])
    assert again.failed == out.failed
    retried = label(records, odd, store, retry=True)
    assert (retried.computed, retried.known) == (2, 3)
    assert sorted(told(asked)) == ["2", "4"]


def test_a_dying_worker_takes_only_its_own_frame(store: Path) -> None:
    records = [chain(3, 0.01 * i) if i % 3 == 1 else chain(5, 0.01 * i) for i in range(6)]
    out = label(records, labeller(ODD), store, workers=2)
    assert set(out.failed) == {1, 4} and set(out.failed.values()) == {DIED}
    assert len(out.records) == 4


def test_an_odd_number_of_electrons_is_a_failure_of_closed_shell_labellers() -> None:
    how = Labeller("x", EMT_PATH, (), "x", "x", closed_shell=True)
    with pytest.raises(UnsupportedSystemError, match="odd number of electrons"):
        calculate(how, chain(1))
    assert calculate(how, chain(2))["energy"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gfn3", {}, "unknown labeller 'gfn3'. Known: gfn2-xtb"),
        ("aimnet2", {}, "needs the option model"),
        ("no_such_module_here:f", {}, "cannot be imported"),
        ("ase.calculators.emt:No", {}, "has no 'No'"),
        ("ase.calculators.emt:EMT", {"colour": 1}, "cannot be set up|cannot be computed"),
        ("builtins:dict", {}, "no ASE calculator"),
        ("aimnet2", {"model": "absent.jpt"}, "no such file"),
    ],
)
def test_a_labeller_that_cannot_be_made_is_one_error(
    store: Path, name: str, options: dict, message: str
) -> None:
    if options == {"colour": 1}:
        name = ODD
    with pytest.raises((InputError, MissingDependencyError), match=message):
        label(chains(2), labeller(name, options), store)
    assert not store.exists()


def test_no_scheduler_answers(store: Path) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed: mlpot[dask]")
    with pytest.raises(InputError, match="no dask scheduler answers at nonsense"):
        label(chains(2), labeller(EMT_PATH), store, scheduler="nonsense://x:1")


# --- dask ---------------------------------------------------------------------------------------


def test_a_dask_cluster_does_the_same(store: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip(
        "distributed", reason="dask.distributed is not installed: mlpot[dask]"
    )
    records = [*chains(6), chain(2)]
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        out = label(records, labeller(ODD), store, scheduler=cluster.scheduler_address)
    assert out.failed == {6: "RuntimeError: no convergence in 50 cycles"}
    local = label(records, labeller(ODD), tmp_path / "local")
    assert [r.energy for r in out.records] == [r.energy for r in local.records]


def test_a_dask_worker_in_another_folder_finds_the_file(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip(
        "distributed", reason="dask.distributed is not installed: mlpot[dask]"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        monkeypatch.chdir(tmp_path)
        Path("scale.txt").write_text("2.0")
        with distributed.Client(cluster, set_as_default=False) as client:
            assert client.submit(os.path.isfile, "scale.txt").result() is False
        how = labeller(SCALED, {"file": "scale.txt"})
        out = label(chains(2), how, store, scheduler=cluster.scheduler_address)
    assert [r.energy for r in out.records] == [2 * emt(r).get_potential_energy() for r in chains(2)]


class KilledWorker(Exception):
    """What dask says of a task on whose workers it has given up, guilty or not."""


class Unlucky(jobs._Here):
    """A cluster that loses the jobs of three atoms, and at first all of five atoms."""

    mourned: ClassVar[set[float]] = set()

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        record = args[-1] if args and isinstance(args[-1], Record) else chain(6)
        n, place = len(record.numbers), float(record.positions[1, 0])
        if n == 3 or (n == 5 and place not in self.mourned):
            self.mourned.add(place)
            lost: Future = Future()
            lost.set_exception(KilledWorker("3 workers died"))
            return lost
        return super().submit(function, *args, **kwargs)


def test_who_died_beside_the_guilty_is_tried_alone(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_cluster", lambda address: Unlucky)
    frames = [*chains(3), chain(6), chain(3), chain(3, 0.1)]
    out = label(frames, labeller(ODD), store, scheduler="tcp://lost")
    assert out.failed == {4: DIED, 5: DIED}
    assert [len(r.numbers) for r in out.records] == [5, 5, 5, 6]


def test_a_result_is_kept_before_the_next_job_begins(store: Path) -> None:
    """In this process too: what a kill costs is one job."""
    kept: list[int] = []

    def task(job: int) -> dict[str, Any]:
        kept.append(len(found))
        return {"job": job}

    with Store(store) as found:
        jobs.run(task, {str(i): i for i in range(4)}, found, workers=0)
    assert kept == [0, 1, 2, 3]


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.h5", "out.xyz", "out.xyz.gz"])
def test_what_is_written_is_read_back(store: Path, tmp_path: Path, name: str) -> None:
    records = [water(charge=2, subset="ions", group="[OH2+2]"), *chains(3)]
    records = [r if r.subset else replace(r, subset="metal") for r in records]
    charges = [2, 0, 0, 0]
    fake = [
        replace(r, energy=-1e4 / 3 + i, forces=np.random.rand(len(r.numbers), 3), level="L/b")
        for i, r in enumerate(records)
    ]
    write_labelled(tmp_path / name, fake, {"committee_force_std": np.array([0.1, np.nan, 0, 1])})
    exact = {"rtol": 1e-14, "atol": 1e-14} if name == "out.h5" else {"rtol": 0, "atol": 1e-8}
    back = read_all([tmp_path / name])
    assert [r.charge for r in back] == charges
    for one, two in zip(fake, back, strict=True):
        np.testing.assert_array_equal(one.numbers, two.numbers)
        np.testing.assert_allclose(one.positions, two.positions, **exact)
        np.testing.assert_allclose(one.forces, two.forces, **exact)
        assert one.energy == pytest.approx(two.energy, abs=1e-8)
        assert (one.group, one.subset, one.level) == (two.group, two.subset, two.level)


@pytest.mark.parametrize(("name", "out"), [("a.h5", "b.xyz"), ("a.xyz.gz", "b.h5")])
def test_the_sampling_temperature_goes_with_its_frame(tmp_path: Path, name: str, out: str) -> None:
    """Through a failure, an equal frame, the order of HDF5 groups, and a file without any."""
    first = [chain(n, shift, subset="s") for n, shift in [(6, 0), (5, 0), (2, 0), (6, 0), (6, 0.1)]]
    known = {"sampling_temperature": np.array([300.0, 0.0, 400, 500, 600])}
    old = known | {"committee_energy_std": np.ones(5)}  # of labels that are replaced
    write_labelled(tmp_path / name, first, old)
    write_extxyz(tmp_path / "none.xyz", [chain(7, subset="s"), chain(5, 0.2, subset="s")])
    files = [tmp_path / name, tmp_path / "none.xyz"]
    run = mlpot("label", *files, "--with", ODD, "--out", tmp_path / out, "--workers", 0)
    assert run.exit_code == 0, run.output
    assert "1 failed" in run.stdout and "1 frame equal to others" in run.stdout
    records = read(tmp_path / out)
    found = read_extra(tmp_path / out, "sampling_temperature", len(records))
    steps = [(len(r.numbers), round(float(r.positions[1, 0]) - 2.5, 3)) for r in records]
    told = dict(zip(steps, found.tolist(), strict=True))
    assert np.isnan(told.pop((7, 0))) and np.isnan(told.pop((5, 0.2)))
    assert told == {(6, 0): 300.0, (5, 0): 0.0, (6, 0.1): 600.0}
    assert np.isnan(read_extra(tmp_path / out, "committee_energy_std", 5)).all()


@pytest.mark.parametrize("name", ["out.h5", "out.xyz"])
def test_extras_are_read_as_they_were_written(tmp_path: Path, name: str) -> None:
    extras = {
        "committee_energy_std": np.array([0.25, np.nan, 0.5]),
        "committee_force_std": np.array([np.nan, 1e-3, 2.0]),
        "sampling_temperature": np.array([300.0, 1000.0, np.nan]),
    }
    write_labelled(tmp_path / name, chains(3), extras)
    for extra, values in extras.items():
        np.testing.assert_allclose(read_extra(tmp_path / name, extra, 3), values, rtol=1e-14)


def test_extras_that_are_absent_or_unusable(tmp_path: Path) -> None:
    name = "sampling_temperature"
    for path in (FILES / "md17_ethanol_3.npz", FILES / "concatenated_3.h5"):
        n = len(read(path))
        assert read_extra(path, name, n).shape == (n,) and np.isnan(read_extra(path, name, n)).all()
    write_labelled(tmp_path / "a.h5", chains(3))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["Cu5"][name] = np.ones(2)
    with pytest.raises(DataError, match=r"a.h5: .*sampling_temperature' must have shape \[3\]"):
        read_extra(tmp_path / "a.h5", name, 3)
    write_labelled(tmp_path / "a.xyz", chains(1), {name: np.array([300.0])})
    text = (tmp_path / "a.xyz").read_text().replace("300.0", "hot")
    (tmp_path / "a.xyz").write_text(text)
    with pytest.raises(DataError, match="a.xyz"):
        read_extra(tmp_path / "a.xyz", name, 1)


def test_what_a_file_cannot_hold_is_refused_before_the_work(tmp_path: Path) -> None:
    write_extxyz(tmp_path / "in.xyz", [chain(4, group="x"), chain(5, group="x")])
    run = mlpot("label", tmp_path / "in.xyz", "--with", EMT_PATH, "--out", tmp_path / "out.h5")
    assert run.exit_code == 1 and "Write extended XYZ instead" in run.stderr
    run = mlpot("label", tmp_path / "in.xyz", "--with", EMT_PATH, "--out", tmp_path / "out.npz")
    assert run.exit_code == 1 and "no format that mlpot writes" in run.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in.xyz"]


# --- command line ---------------------------------------------------------------------------------


def mlpot(*args: object) -> Any:
    import typer

    from mlpot.cli.common import Group
    from mlpot.cli.data import conformers
    from mlpot.cli.data import label as verb

    app = typer.Typer(cls=Group)
    app.command("label")(verb)
    app.command("conformers")(conformers)
    return CliRunner().invoke(app, [str(a) for a in args])


def test_the_command_line(tmp_path: Path) -> None:
    write_extxyz(tmp_path / "in.xyz", [*chains(3), chain(2), chain(2)])
    out = tmp_path / "out.xyz"
    command = ["label", tmp_path / "in.xyz", "--with", ODD, "-o", "committee=std", "--out", out]
    run = mlpot(*command, "--level", "mine")
    assert run.exit_code == 0, run.output
    assert "no convergence in 50 cycles" in run.stdout
    assert "4 frames computed, 0 known before, 2 failed" in run.stdout
    assert {r.level for r in read(out)} == {"mine"} and len(read(out)) == 3
    run = mlpot(*command, "--level", "mine")
    assert run.exit_code == 0, run.output
    assert "0 frames computed, 4 known before, 2 failed" in run.stdout


def test_all_frames_failing_is_an_error(tmp_path: Path) -> None:
    write_extxyz(tmp_path / "in.xyz", [chain(2), chain(2, 0.1)])
    out = tmp_path / "out.xyz"
    run = mlpot("label", tmp_path / "in.xyz", "--with", ODD, "--out", out, "--workers", 0)
    assert run.exit_code == 1 and not out.exists()
    assert "every frame has failed; the most frequent reason: RuntimeError" in run.stderr
    run = mlpot("label", tmp_path / "in.xyz", "--with", "pretrained-visne", "--out", out)
    assert run.exit_code == 1 and "gfn2-xtb" in run.stderr


# --- programs -------------------------------------------------------------------------------------


def test_mmff_forces_are_the_gradient_of_its_energy() -> None:
    pytest.importorskip("rdkit", reason="RDKit is not installed: mlpot[chem]")
    from mlpot.data.sampling import _embed, _minimise, _random

    atoms = _minimise(_embed("CC(=O)N", _random("CC(=O)N", 0)), None)
    for seed in range(2):  # RDKit's gradient once came from the geometry before
        atoms.rattle(0.05, seed=seed)
        forces = atoms.get_forces()
        np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, 1e-4), atol=1e-4)


@pytest.fixture(scope="module")
def gfn2(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    pytest.importorskip("tblite", reason="tblite is not installed: mlpot[xtb]")
    radical = replace(water(), numbers=np.array([7, 1, 1]), group="[NH2]")
    hydroxide = Record(
        np.array([8, 1]), np.array([[0, 0, 0], [0, 0, 0.97]]), charge=-1, group="[OH-]"
    )
    unknown = replace(water(), numbers=np.array([110, 1, 1]), group="Ds")
    store = tmp_path_factory.mktemp("gfn2") / "store"
    return label([water(), radical, hydroxide, unknown], labeller("gfn2-xtb"), store)


def test_gfn2_energy_of_water(gfn2: Labelled) -> None:
    # eV, from the documentation of tblite.ase for this geometry
    water = gfn2.records[0]
    assert water.energy == pytest.approx(-137.96777625, abs=1e-5)
    assert water.level == "GFN2-xTB"


def test_gfn2_knows_the_charge(gfn2: Labelled) -> None:
    from tblite.ase import TBLite

    hydroxide = gfn2.records[1]
    atoms = Atoms("OH", hydroxide.positions, calculator=TBLite(charge=-1, verbosity=0))
    assert hydroxide.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)


def test_gfn2_failures_are_recorded(gfn2: Labelled) -> None:
    assert set(gfn2.failed) == {1, 3}
    assert "odd number of electrons" in gfn2.failed[1]


def test_gfn2_does_not_depend_on_the_frame_before(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("tblite", reason="tblite is not installed: mlpot[xtb]")
    # The guess from another frame changed forces by 1e-4 eV/Å.
    start = molecule("CH3CONH2")
    records = []
    for seed in range(4):
        start.rattle(0.03, seed=seed)
        records.append(Record(start.numbers.copy(), start.positions.copy(), group="CC(N)=O"))
    one = label(records, labeller("gfn2-xtb"), store).records
    two = label(records[::-1], labeller("gfn2-xtb"), tmp_path / "other", workers=2).records[::-1]
    for a, b in zip(one, two, strict=True):
        assert a.energy == b.energy
        np.testing.assert_array_equal(a.forces, b.forces)


def test_pyscf_forces_are_the_gradient_of_its_energy() -> None:
    pytest.importorskip("pyscf", reason="PySCF is not installed: mlpot[pyscf]")
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=1)
    atoms.calc = calculators.PySCF("hf", "sto-3g")
    # Szabo and Ostlund: RHF/STO-3G water near its minimum is at -74.96 hartree
    assert atoms.get_potential_energy() == pytest.approx(-74.95 * units.HARTREE_TO_EV, abs=0.8)
    np.testing.assert_allclose(
        atoms.get_forces(), calculate_numerical_forces(atoms, 1e-3), atol=2e-3
    )


def torchscript(path: Path, *told: str) -> Path:
    """A file with AIMNet2's inputs and outputs: atoms on springs of Z eV/Å² at the origin."""
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.told = ["energy", *told]

        def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            x, z = data["coord"], data["numbers"].to(data["coord"].dtype)
            energy = 0.5 * (z * (x * x).sum(-1)).sum(-1) + data["charge"]
            every = {
                "energy": energy,
                "energy_std": 0.1 * torch.ones_like(energy),
                "forces": -z.unsqueeze(-1) * x,
                "forces_std": torch.abs(x),
            }
            out = dict(data)
            for name in self.told:
                out[name] = every[name]
            return out

    torch.jit.save(torch.jit.script(Network()), str(path))
    return path


@pytest.mark.parametrize(
    "told",
    [(), ("energy_std", "forces", "forces_std"), ("forces", "forces_std"), ("energy_std",)],
)
def test_aimnet2_gives_what_its_file_returns(
    store: Path, tmp_path: Path, told: tuple[str, ...]
) -> None:
    hydroxide = replace(water(), numbers=np.array([8, 1, 9]), charge=-2)
    records = [water(), hydroxide, chain(2), chain(3)]
    how = labeller("aimnet2", {"model": str(torchscript(tmp_path / "stub.jpt", *told))})
    out = label(records, how, store)
    assert "does not know the elements [29]" in out.failed[2]
    assert "odd number of electrons" in out.failed[3]
    for before, after in zip(records, out.records, strict=False):
        z, x = before.numbers[:, None], before.positions
        energy = 0.5 * (z * x**2).sum() + before.charge
        assert after.energy == pytest.approx(energy, rel=1e-6) and after.level == "AIMNet2 stub"
        np.testing.assert_allclose(after.forces, -z * x, rtol=1e-6)
    wanted = {}
    if "energy_std" in told:
        wanted["committee_energy_std"] = pytest.approx([0.1, 0.1])
    if "forces_std" in told:
        wanted["committee_force_std"] = pytest.approx([abs(water().positions).max()] * 2)
    assert out.extras == wanted


def test_a_truncated_aimnet2_file_is_one_error(tmp_path: Path) -> None:
    path = torchscript(tmp_path / "stub.jpt")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"stub.jpt is no TorchScript file.*Download it again"):
        labeller("aimnet2", {"model": str(path)}).build()


def test_so3lr_is_asked_as_its_package_wants(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for so3krates-torch 0.2.1, which is not installed with the tests."""
    name = "so3krates_torch.calculator.so3"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install mlpot\[so3lr\]"):
        labeller("so3lr").build()

    class SO3LRCalculator(Odd):
        def __init__(self, device: str = "cpu", default_dtype: str = ""):
            super().__init__(committee="members")
            assert (device, default_dtype) == ("cpu", "float32")

    module = types.ModuleType(name)
    module.SO3LRCalculator = SO3LRCalculator  # type: ignore[attr-defined]
    for parent in ("so3krates_torch", "so3krates_torch.calculator"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    out = label([chain(6), chain(5)], labeller("so3lr"), store)
    assert "so3lr labels closed shells only" in out.failed[1]
    (record,) = out.records
    assert record.level == "SO3LR" and record.energy == emt(record).get_potential_energy()
    assert out.extras["committee_force_std"] == pytest.approx([0.1])


def test_every_known_labeller_has_a_level() -> None:
    needs = {"aimnet2": {"model": "m.jpt"}, "pyscf": {"basis": "def2-svp"}}
    levels = {name: labeller(name, needs.get(name)).level for name in LABELLERS}
    assert levels["pyscf"] == "b3lyp/def2-svp"
    assert len(set(levels.values())) == len(LABELLERS)
    assert labeller("gfn2-xtb", {"accuracy": 0.1}).level == "GFN2-xTB accuracy=0.1"


# --- the command line's own -----------------------------------------------------------------------


def test_words_of_options_are_values() -> None:
    """ "false" as text would switch on what it is meant to switch off."""
    given = ["a=false", "b=True", "c=none", "d=3", "e=b3lyp", "f='false'"]
    wanted = {"a": False, "b": True, "c": None, "d": 3, "e": "b3lyp", "f": "false"}
    assert parse_options(given) == wanted


def test_without_a_terminal_there_is_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is seen in the log of a cluster's job."""
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr("mlpot.cli.jobs.time", SimpleNamespace(monotonic=lambda: next(clock)))
    for quiet in (False, True):
        with progress_bar("labelling", quiet, tmp_path) as bar:
            bar["on_start"](100, 90)
            for good in (True, False, True):
                bar["on_result"](good)
        told = capsys.readouterr()
        lines = (told.out + told.err).split("\n")
        wanted = [] if quiet else ["labelling, 1 failed: 93 of 100"]
        assert [line for line in lines if line.startswith("labelling")] == wanted
