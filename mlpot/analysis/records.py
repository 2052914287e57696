"""What a suite leaves on disk, and how to read it.

    FOLDER/
      suite.json             what was asked: see `Suite`
      records.jsonl          what was done: one line a batch (`mlpot.data.store`), grown only
      molecules/NAME.pdb     topology of the trajectories of a molecule
      trajectories/ID.xtc    frames of one run, as mdtraj reads them: nm, ps, to 0.01 Å
      references/NAME.npz    positions [F, N, 3] Å of a reference trajectory
      partial/               states of batches on their way; gone when all is done
      summary.json           what came of it: made from the above by `mlpot.analysis.summary`

Records are JSON objects with a ``kind``:

run        one simulation. ``id``, ``key`` (hash of all that decides it, but the model),
           ``scenario``, ``molecule``, ``set``, ``seed``, ``temperature`` and ``end_temperature``
           (K; None unless a ramp), ``ensemble``, ``timestep`` (fs), ``friction`` (1/ps),
           ``distortion`` (Å) and ``picoseconds`` asked for, ``displaced`` (Å, root mean square of
           what a distorted start is off by in a coordinate; None for others), ``interval`` (fs
           between frames; frame i is at i * interval), ``steps`` done soundly, ``lost`` (it was
           taken out after these), ``ending`` (what for: see `mlpot.analysis.criteria`; "" if not
           lost) and ``reason`` (the same in words), ``last`` ([N][3] Å of that last sound step,
           which falls between frames; None if not lost), series of one value a frame:
           ``temperatures`` (K, of the motion), ``thermostat`` (K), ``potential`` and ``kinetic``
           (eV; None in the first frame of a run that was lost at once); ``trajectory`` (file),
           ``guarded`` (whether the model's guard looked on; it ended nothing) and ``flag`` (its
           first: ``ps``, ``atom``, ``grade``, ``reason``, ``positions``; None if it raised none),
           ``engine``, ``dtype``, ``cpu_seconds`` (its share of the batch's CPU time).
accuracy   errors on one set of labelled frames: see `mlpot.analysis.accuracy`; with pairs of
           reference and prediction to draw a parity plot from.
refusal    ``molecule``, ``elements`` (symbols that the model does not cover), ``refused``
           (True where it did; None where the calculator covers them), ``message``.

Numbers of atoms, bonds and start geometries are those of ``suite.json``. With these, what a
report shows can be drawn without the model: survival curves and drift from ``summary.json``,
series from the records, worst frames (``summary["runs"][...]["worst_frame"]``) from trajectories.
"""

import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mdtraj
import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mlpot.analysis.criteria import find_bonds
from mlpot.analysis.molecules import Molecule
from mlpot.analysis.scenarios import VERSION
from mlpot.data.store import Store
from mlpot.errors import DataError, InputError
from mlpot.units import ANGSTROM_TO_NM, NM_TO_ANGSTROM

Json = dict[str, Any]

#: folders in that of a suite
_PARTS = ("molecules", "trajectories", "references", "partial")


@dataclass(frozen=True)
class Suite:
    """``suite.json``: what was asked, and what is known before the first step.

    Attributes:
        model, identity: name of what is tested, and what makes it the same one.
        mode: dev, fast, standard, or ``own``.
        runs: keys of the runs that belong to it; others in the records are older.
        others: keys of accuracy and refusal records.
        jobs: keys of the jobs that were still to be done when the suite was last run; None where
            that is not known.
        names: key of a run -> name of its molecule; None where that is not known. A record has the
            name of its time, and keys do not depend on it.
        molecules: name -> set, smiles, source, numbers [N], positions [N][3] Å, bonds [B][2].
        skipped: what -> why it is not run.
        machine: processor, threads, versions.
        version: of this layout.
    """

    model: str
    identity: str
    mode: str
    runs: list[str]
    others: list[str]
    molecules: dict[str, Json]
    skipped: dict[str, str]
    machine: Json = field(default_factory=dict)
    jobs: list[str] | None = None
    names: dict[str, str] | None = None
    version: int = VERSION


class Folder:
    """Paths and files of a suite; layout above."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.suite_file = self.path / "suite.json"
        self.summary_file = self.path / "summary.json"
        self.records_file = self.path / "records.jsonl"

    def suite(self) -> Suite:
        """Raises DataError where there is none, or one of another version."""
        if not self.suite_file.is_file():
            raise DataError(
                f"{self.path} holds no results of a stability suite (no suite.json). Check the "
                "path, or run `mlpot stability MODEL` first"
            )
        try:
            told = json.loads(self.suite_file.read_text(encoding="utf-8"))
            if told["version"] != VERSION:
                raise DataError(
                    f"{self.path} has layout {told['version']}, and this mlpot reads {VERSION}. "
                    "Run the suite again, in another folder"
                )
            return Suite(**told)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{self.suite_file} cannot be read ({error}). Run the suite again"
            ) from error

    def check(self, identity: str) -> None:
        """Return if the folder is free, or of the same model; nothing is written.

        Raises:
            InputError: it holds results of another model, or files that are not of a suite.
        """
        if self.suite_file.is_file():
            old = self.suite()
            if old.identity != identity:
                raise InputError(
                    f"{self.path} holds results of another model ({old.model}; or its file, "
                    "options or precision have changed). Choose another folder with --out"
                )
        elif self.path.exists() and not (self.path.is_dir() and self._fresh()):
            raise InputError(f"{self.path} holds something else. Choose another folder with --out")

    def _fresh(self) -> bool:
        """Empty, or as a kill in the first moments leaves it."""
        for path in self.path.iterdir():
            ours = path.name in _PARTS and path.is_dir() and not any(path.iterdir())
            if not ours and path.name not in (self.records_file.name, f".{self.suite_file.name}"):
                return False
        return True

    def begin(self, suite: Suite) -> None:
        """Make the folder and write ``suite.json``. Raises as `check`."""
        self.check(suite.identity)
        for name in _PARTS:
            (self.path / name).mkdir(parents=True, exist_ok=True)
        write_json(self.suite_file, asdict(suite))

    def store(self) -> Store:
        return Store(self.records_file)

    def records(self) -> list[Json]:
        """All records, of this suite and of earlier ones in the same folder."""
        if not self.records_file.is_file():
            return []
        return list(records_of(self.records_file))

    def records_of(self, suite: Suite) -> dict[str, Json]:
        """Key -> latest record, in the order of the suite; older ones are left out. Molecules have
        the names of the suite."""
        latest = {record.get("key"): record for record in self.records()}
        found = {key: latest[key] for key in [*suite.runs, *suite.others] if key in latest}
        for key, name in (suite.names or {}).items():
            if key in found:
                found[key] = {**found[key], "molecule": name}
        return found

    def trajectory(self, id: str) -> Path:
        return self.path / "trajectories" / f"{id}.xtc"

    def partial(self, key: str) -> Path:
        return self.path / "partial" / f"{key}.npz"

    def reference(self, molecule: str) -> Path:
        return self.path / "references" / f"{molecule}.npz"

    def topology(self, molecule: str) -> Path:
        return self.path / "molecules" / f"{molecule}.pdb"


def _entries(path: Path) -> Iterator[Json]:
    """Lines of a file; what a kill has left of a last one is passed over.

    Not through `Store`, which would lock the file: one may look at a suite that is running.
    """
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            yield entry


def records_of(path: Path) -> Iterator[Json]:
    """Records of a file."""
    for entry in _entries(path):
        yield from entry.get("result", {}).get("records", [])


def failures_of(path: Path, jobs: Collection[str] | None = None) -> dict[str, str]:
    """Key of a job -> why it failed, for those that have not been done since.

    Args:
        path: of the records.
        jobs: keys of those that count; None takes all, also of jobs that nobody asks for any more.
    """
    failed: dict[str, str] = {}
    if not path.is_file():
        return failed
    for entry in _entries(path):
        if "failed" in entry:
            failed[entry["key"]] = entry["failed"]
        else:
            failed.pop(entry.get("key", ""), None)
    wanted = set(failed if jobs is None else jobs)
    return {key: reason for key, reason in failed.items() if key in wanted}


def molecule_json(molecule: Molecule) -> Json:
    """A molecule as ``suite.json`` has it."""
    return {
        "set": molecule.set,
        "smiles": molecule.smiles,
        "source": molecule.source,
        "numbers": molecule.numbers.tolist(),
        "positions": np.round(molecule.positions, 5).tolist(),
        "bonds": find_bonds(molecule.numbers, molecule.positions).tolist(),
    }


def topology_of(numbers: NDArray[np.int64], bonds: NDArray[np.int64]) -> mdtraj.Topology:
    """One residue of atoms named C0, C1, H2, ...: element and index."""
    topology = mdtraj.Topology()
    residue = topology.add_residue("MOL", topology.add_chain())
    for i, z in enumerate(numbers):
        symbol = chemical_symbols[z]
        topology.add_atom(f"{symbol}{i}", mdtraj.element.get_by_symbol(symbol), residue)
    atoms = list(topology.atoms)
    for i, j in bonds:
        topology.add_bond(atoms[i], atoms[j])
    return topology


def write_topology(path: Path, molecule: Molecule) -> None:
    """PDB, as a whole or not at all."""
    bonds = find_bonds(molecule.numbers, molecule.positions)
    xyz = (molecule.positions * ANGSTROM_TO_NM).astype(np.float32)[None]
    temporary = path.with_name(f".{path.name}")
    mdtraj.Trajectory(xyz, topology_of(molecule.numbers, bonds)).save_pdb(str(temporary))
    temporary.replace(path)


def write_trajectory(path: Path, positions: NDArray[np.floating], interval: float) -> None:
    """Positions [F, N, 3] Å, a frame every ``interval`` fs, at once: a cut file never exists."""
    time = (np.arange(len(positions)) * interval / 1000).astype(np.float32)
    xyz = np.ascontiguousarray(positions * ANGSTROM_TO_NM, dtype=np.float32)
    temporary = path.with_name(f".{path.name}")
    with _ascii(temporary) as place:
        with mdtraj.formats.XTCTrajectoryFile(place, "w", force_overwrite=True) as file:
            file.write(xyz, time=time, step=np.arange(len(positions), dtype=np.int32))
        if place != str(temporary):
            shutil.copyfile(place, temporary)
    temporary.replace(path)


def read_trajectory(path: Path) -> NDArray[np.float32]:
    """[F, N, 3] Å. Raises DataError where it cannot be read."""
    try:
        with _ascii(path) as place:
            if place != str(path):
                shutil.copyfile(path, place)
            with mdtraj.formats.XTCTrajectoryFile(place) as file:
                return file.read()[0] * np.float32(NM_TO_ANGSTROM)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). Put a whole copy back, or run the suite again in "
            "another folder"
        ) from error


@contextmanager
def _ascii(path: Path) -> Iterator[str]:
    """A path that mdtraj's XTC can open: it knows no other letters."""
    if str(path).isascii():
        yield str(path)
        return
    with TemporaryDirectory() as folder:
        yield str(Path(folder) / f"frames{path.suffix}")


def write_json(path: Path, content: Any) -> None:
    """As a whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
