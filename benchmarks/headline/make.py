"""Frames of molecules, and labels, by GFN2-xTB: its own Langevin dynamics at several temperatures.

The dynamics is that of the stability suite (`mlpot.analysis.stability`) with the calculator in
place of a model, and the labels are those of `mlpot label`, so both go on after a kill. Frames to
learn from and frames to test on come from different runs.
"""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.headline.molecules import (
    ACAC,
    MADE,
    MOLECULES,
    ROOM,
    ROOT,
    made_file,
    part,
    problem,
)
from mlpot.analysis.criteria import bond_lengths
from mlpot.analysis.molecules import Molecule, read_molecules
from mlpot.analysis.records import Folder, Json, read_trajectory
from mlpot.analysis.scenarios import Scenario
from mlpot.analysis.stability import Content, run
from mlpot.analysis.subjects import subject
from mlpot.data.formats.extxyz import write_extxyz
from mlpot.data.label import label
from mlpot.data.labellers import labeller
from mlpot.data.record import Record
from mlpot.errors import DataError
from mlpot.models.checkpoint import write_atomically

LABELLER = "gfn2-xtb"
GEOMETRIES = ROOT / "benchmarks" / "stability" / "molecules"

#: ps of every run that are not used: it starts at a minimum
EQUILIBRATION = 0.4

#: 1 fs; frames are apart by about the time in which the thermostat (10 per ps) makes a velocity
#: forget half of itself; five and two runs, because frames of one run resemble each other
SCENARIOS = (
    Scenario("learn", ("own",), (ROOM,), 4.4, seeds=5, timestep=1.0, interval=40.0),
    Scenario("test", ("own",), (ROOM, 600.0, 1000.0), 1.4, seeds=2, timestep=1.0, interval=20.0),
)

#: digits after the point of stored coordinates and labels
DIGITS = 5


def make(
    name: str,
    state: Path,
    scenarios: tuple[Scenario, ...] = SCENARIOS,
    out: Path = MADE,
    workers: int = 0,
    report: Callable[[str], None] = print,
) -> Path:
    """Simulate, label and write one molecule's file, and say how in ``made.json``.

    Raises:
        MissingDependencyError: tblite is absent.
        DataError: a frame that GFN2-xTB cannot label, or a run that broke.
    """
    molecule = _molecule(name)
    content = Content(scenarios, [molecule])
    folder = run(subject(LABELLER), content, state / name, workers=workers)
    frames = _frames(folder, molecule)
    report(f"{name}: {len(frames)} frames, to be labelled")
    done = label(frames, labeller(LABELLER), state / f"{name}.labels.jsonl", workers=workers)
    if done.failed or len(done.records) != len(frames):
        raise DataError(f"{name}: {len(done.failed)} frames have no labels; look at them")
    records = [_rounded(record) for record in done.records]
    path = made_file(name, out)
    write_extxyz(path, records)
    _note(name, molecule, records, scenarios, out)
    report(f"wrote {path.name}: {path.stat().st_size / 1000:.0f} kB")
    return path


def names() -> list[str]:
    return [name for name in MOLECULES if name != ACAC]


def _molecule(name: str) -> Molecule:
    found = next(m for m in read_molecules(GEOMETRIES) if m.name == name)
    return Molecule(name, "own", found.numbers, found.positions, found.smiles, found.source)


def _frames(folder: Folder, molecule: Molecule) -> list[Record]:
    """Those after the equilibration, run by run in the order of the plan."""
    runs = {r["key"]: r for r in folder.records() if r["kind"] == "run"}
    found = []
    for key in folder.suite().runs:
        record = runs[key]
        if record["lost"]:
            raise DataError(f"{molecule.name}: GFN2-xTB itself broke in {record['id']}")
        skipped = round(1000 * EQUILIBRATION / record["interval"])
        for positions in read_trajectory(folder.trajectory(record["id"]))[skipped + 1 :]:
            found.append(
                Record(
                    molecule.numbers,
                    positions.astype(np.float64),
                    group=molecule.smiles,
                    subset=part(record["scenario"], record["temperature"]),
                )
            )
    return found


def _rounded(record: Record) -> Record:
    """Of a size that can be committed; 1e-5 is far below what any model errs by."""
    assert record.energy is not None and record.forces is not None
    return Record(
        record.numbers,
        np.round(record.positions, DIGITS),
        round(record.energy, DIGITS),
        np.round(record.forces, DIGITS),
        group=record.group,
        subset=record.subset,
        level=record.level,
    )


def _note(
    name: str,
    molecule: Molecule,
    records: list[Record],
    scenarios: tuple[Scenario, ...],
    out: Path,
) -> None:
    path = out / "made.json"
    told: Json = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    told[name] = {
        "smiles": molecule.smiles,
        "geometry": molecule.source,
        "labels": records[0].level,
        "program": f"tblite {version('tblite')}, default settings, energies in eV, forces in eV/Å",
        "dynamics": [_told(s) for s in scenarios],
        "seeds": "from molecule, scenario and temperature (mlpot.analysis.scenarios)",
        "mlpot": version("mlpot"),
        "ase": version("ase"),
        "frames": {p: sum(r.subset == p for r in records) for p in _parts(records)},
        "force_rms_eV_A": {p: _force_rms(records, p) for p in _parts(records)},
        "largest_bond_departure_A": _departures(name, records),
    }
    told = {n: told[n] for n in names() if n in told}
    write_atomically(path, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())


def _told(s: Scenario) -> str:
    kelvin = ", ".join(f"{t:g}" for t in s.temperatures)
    return (
        f"{s.name}: Langevin middle, {kelvin} K, {s.timestep:g} fs, friction {s.friction:g}/ps, "
        f"{s.seeds} runs of {s.picoseconds:g} ps, the first {EQUILIBRATION:g} ps left out, a frame "
        f"every {s.interval:g} fs (coordinates to 0.01 Å)"
    )


def _parts(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(r.subset for r in records))


def _force_rms(records: list[Record], which: str) -> float:
    forces: list[Any] = [r.forces for r in records if r.subset == which]
    return round(float(np.sqrt(np.mean(np.square(forces)))), 3)


def _departures(name: str, records: list[Record]) -> dict[str, float]:
    """How far GFN2-xTB itself moves a bond from its mean at 300 K."""
    parts = {p: [r for r in records if r.subset == p] for p in _parts(records)}
    known = problem(name, parts[part("learn", ROOM)], {})
    found = {}
    for key, frames in parts.items():
        lengths = bond_lengths(np.array([r.positions for r in frames]), known.bonds)
        found[key] = round(float(np.abs(lengths - known.lengths).max()), 3)
    return found
