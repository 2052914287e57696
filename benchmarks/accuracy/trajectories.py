"""Molecules drawn for dynamics, their trajectories on disk, and the criterion of a broken bond."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import NDArray

from mlpot.data.record import Record
from mlpot.md.replicas import Replicas

#: how many molecules of which subsets
KINDS = {
    "drug-like": (20, ("moses", "chembl")),
    "peptide": (10, ("peptide",)),
    "dimer": (10, ("dimer",)),
}
BROKEN = 0.5  # Å from the mean of a bond
BONDED = 1.25  # sums of covalent radii; at 1000 K bonds reach that
CHUNK = 2000  # steps


class Molecule(NamedTuple):
    name: str  # SMILES
    kind: str
    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]  # [N, 3] Å


def choose(records: Sequence[Record], seed: int, passed: Collection[str] = ()) -> list[Molecule]:
    """Test molecules of every kind, at random; those of a kind by size.

    Args:
        records: to draw from.
        seed: of the draw.
        passed: names that are passed over when they are drawn; the next one takes the place.
    """
    frames: dict[str, Record] = {}
    for record in records:
        best = frames.get(record.group)
        if best is None or (record.energy or 0.0) < (best.energy or 0.0):
            frames[record.group] = record
    rng, chosen = np.random.default_rng(seed), []
    for kind, (count, subsets) in KINDS.items():
        names = sorted(name for name, record in frames.items() if record.subset in subsets)
        taken = [name for name in rng.permutation(names) if name not in passed][:count]
        drawn = [frames[name] for name in taken]
        chosen += [
            Molecule(r.group, kind, r.numbers, np.asarray(r.positions, dtype=np.float64))
            for r in sorted(drawn, key=lambda r: len(r.numbers))
        ]
    return chosen


def for_long_runs(molecules: Sequence[Molecule], count: int) -> list[Molecule]:
    """So many, of every kind in turn, from the middle of its sizes."""
    picked: list[Molecule] = []
    for i in range(min(count, len(molecules))):
        left = [m for m in molecules if m.name not in {p.name for p in picked}]
        kind = list(KINDS)[i % len(KINDS)]
        same = [m for m in left if m.kind == kind] or left
        picked.append(same[len(same) // 2])
    return picked


def bonds_of(numbers: NDArray[np.int64], positions: NDArray[np.floating]) -> NDArray[np.int64]:
    """Covalent bonds [K, 2] by distance; contacts between molecules are longer."""
    radii = covalent_radii[numbers]
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    near = np.triu(distance < BONDED * (radii[:, None] + radii[None]), 1)
    return np.argwhere(near)


# --- trajectories ----------------------------------------------------------------------------


class Trajectory(NamedTuple):
    """What a batch of molecules did."""

    frames: list[NDArray[np.float32]]  # of each molecule [F, N, 3] Å
    temperature: NDArray[np.float64]  # [F, molecules] K
    lost: dict[int, int]  # molecule -> its number of sound steps


def simulate(
    replicas: Replicas, steps: int, interval: int, folder: Path, relax: int = 200
) -> Trajectory:
    """Integrate in chunks that are kept; goes on where it was cut off.

    Args:
        replicas: fresh, of the same systems and options each time.
        steps: of the whole run, a multiple of ``interval``.
        interval: steps between stored frames.
        folder: for chunks and state.
        relax: iterations of the minimiser before the first step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state.npz"
    if state.is_file():
        replicas.load_state_dict(dict(np.load(state)))
    else:
        replicas.minimize(relax)
    chunk = max(1, CHUNK // interval) * interval
    while replicas.steps < steps and replicas.alive.any():
        first = replicas.steps
        positions, heat = [], []
        for _ in range(min(chunk, steps - first) // interval):
            replicas.step(interval)
            positions.append(np.concatenate(replicas.positions).astype(np.float32))
            heat.append(replicas.temperature)
        _write(folder / f"chunk-{first:09d}.npz", positions=positions, temperature=heat)
        # after its chunk: what lies beyond the state is done again
        _write(state, **replicas.state_dict())
    return read_trajectory(folder, replicas, interval)


def _write(path: Path, **arrays: Any) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)


def read_trajectory(folder: Path, replicas: Replicas, interval: int) -> Trajectory:
    """All chunks; frames after the loss of a molecule are left out of it."""
    chunks = [np.load(path) for path in sorted(folder.glob("chunk-*.npz"))]
    positions = np.concatenate([chunk["positions"] for chunk in chunks])
    first = replicas.systems.first
    frames = []
    for r in range(len(replicas)):
        sound = replicas.lost.get(r, replicas.steps) // interval
        frames.append(positions[:sound, first[r] : first[r + 1]])
    return Trajectory(
        frames, np.concatenate([c["temperature"] for c in chunks]), dict(replicas.lost)
    )


# --- what came of them -----------------------------------------------------------------------


def lengths(frames: NDArray[np.floating], bonds: NDArray[np.int64]) -> NDArray[np.float64]:
    """[F, K] Å"""
    ends = frames[:, bonds[:, 0]].astype(np.float64) - frames[:, bonds[:, 1]]
    return np.linalg.norm(ends, axis=2)


def first_break(length: NDArray[np.float64], mean: NDArray[np.float64]) -> tuple[int, int] | None:
    """The criterion: (frame, bond) where a bond is first off its mean by too much."""
    broken = np.abs(length - mean) > BROKEN
    if not broken.any():
        return None
    frame = int(broken.any(axis=1).argmax())
    return frame, int(broken[frame].argmax())


def judged(
    molecule: Molecule,
    frames: NDArray[np.float32],
    mean: NDArray[np.float64] | None,
    frame_ps: float,
    lost: bool,
) -> dict[str, Any]:
    """Stable time and worst bond of one molecule in one run."""
    bonds = bonds_of(molecule.numbers, molecule.positions)
    length = lengths(frames, bonds)
    row: dict[str, Any] = {
        "name": molecule.name,
        "kind": molecule.kind,
        "atoms": len(molecule.numbers),
        "bonds": len(bonds),
        "lost": lost,  # NaN or explosion
        "stable_ps": round(len(frames) * frame_ps, 4),
        "largest_deviation": None,
        "broke": "",
    }
    if mean is None or not len(frames):  # lost at 300 K before there was a frame
        return {**row, "stable_ps": 0.0}
    row["largest_deviation"] = round(float(np.abs(length - mean).max()), 3)
    if found := first_break(length, mean):
        i, j = bonds[found[1]]
        symbols = [chemical_symbols[molecule.numbers[a]] for a in (i, j)]
        row["broke"] = f"{symbols[0]}{i}-{symbols[1]}{j}"
        row["stable_ps"] = round(found[0] * frame_ps, 4)
    return row


def sound(row: dict[str, Any]) -> bool:
    return not row["lost"] and not row["broke"]
