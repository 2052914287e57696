"""The rules of `mlpot.analysis.criteria` on every run of a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlpot.analysis.criteria import FAILURES, INTEGRATOR, Verdict, bond_lengths, judge
from mlpot.analysis.lengths import Lengths, of_own, of_reference
from mlpot.analysis.records import Folder, Json, Suite, read_trajectory
from mlpot.errors import DataError

#: K, at which mean bond lengths are those that bonds are compared with
ROOM = 300.0

#: ps that a distorted start has to get its bonds right
SETTLING = 0.1


@dataclass(frozen=True, eq=False)
class Judged:
    """A run with its frames and what came of it."""

    record: Json
    positions: NDArray[np.float32]  # [F, N, 3] Å
    verdict: Verdict
    final: bool  # False: by the geometry as it was given, see `Lengths`
    flag: Json | None = None  # of the record, with ``departure`` in place of positions

    @property
    def failed(self) -> bool:
        """Did it end for a reason that says nothing of the potential, before that had broken?"""
        return not self.verdict.broke and self.verdict.cause in FAILURES

    @property
    def times(self) -> NDArray[np.float64]:
        """[F] ps"""
        return times_of(self.record, len(self.positions))

    @property
    def sound(self) -> slice:
        """Frames before the first rule was broken."""
        frames = len(self.positions)
        if self.verdict.broke:
            frames = int(np.searchsorted(self.times, self.verdict.stable_ps))
        return slice(0, frames)


def judge_runs(
    folder: Folder, suite: Suite, records: Sequence[Json], known: Mapping[str, Sequence[float]]
) -> tuple[list[Judged], dict[str, Lengths]]:
    """Runs with their verdicts, and what bonds of each molecule were compared with.

    That is a reference trajectory where the molecule has one; else the lengths ``known`` from
    another machine; else the model's own mean at 300 K.

    Raises:
        DataError: a trajectory is missing.
    """
    found, compared = [], {}
    for name, molecule in suite.molecules.items():
        mine = [record for record in records if record["molecule"] == name]
        frames = [_frames(folder, record) for record in mine]
        compared[name] = lengths = _lengths(folder, name, molecule, mine, frames, known)
        numbers = np.array(molecule["numbers"])
        for record, positions in zip(mine, frames, strict=True):
            verdict = _verdict(record, numbers, positions, lengths)
            flag = measured(record.get("flag"), lengths.bonds, lengths.mean)
            found.append(Judged(record, positions, verdict, lengths.final, flag))
    return found, compared


def times_of(record: Json, frames: int) -> NDArray[np.float64]:
    """[frames] ps"""
    return np.arange(frames) * record["interval"] / 1000


def _verdict(
    record: Json, numbers: NDArray[np.int64], positions: NDArray[np.float32], lengths: Lengths
) -> Verdict:
    last = record["last"]
    return judge(
        numbers,
        lengths.bonds,
        lengths.mean,
        positions,
        np.array(record["temperatures"], dtype=np.float64),
        np.array(record["thermostat"]),
        times_of(record, len(positions)),
        end=record["steps"] * record["timestep"] / 1000,
        lost=record["lost"],
        settled=SETTLING if record["distortion"] else 0.0,
        ending=record.get("ending") or INTEGRATOR,  # older records do not say
        last=None if last is None else np.array(last, dtype=np.float64),
    )


def measured(
    flag: Json | None, bonds: NDArray[np.int64], lengths: NDArray[np.float64]
) -> Json | None:
    """A record's flag with ``departure`` in place of positions: how far the bond that was furthest
    off then, of these, was off its length, Å."""
    if flag is None:
        return None
    now = bond_lengths(np.array(flag["positions"])[None], bonds)[0]
    off = float(np.abs(now - lengths).max()) if len(now) else 0.0
    return {k: v for k, v in flag.items() if k != "positions"} | {"departure": round(off, 4)}


def _frames(folder: Folder, record: Json) -> NDArray[np.float32]:
    path = folder.trajectory(record["id"])
    if not path.is_file():
        raise DataError(
            f"{path} is missing, and {folder.records_file.name} has a record of it. Put it back, "
            "or run the suite again in another folder"
        )
    positions = read_trajectory(path)
    if len(positions) != len(record["temperatures"]):
        raise DataError(
            f"{path} has {len(positions)} frames, and its record {len(record['temperatures'])}: it "
            "was cut or altered. Put it back, or run the suite again in another folder"
        )
    return positions


def _lengths(
    folder: Folder,
    name: str,
    molecule: Json,
    records: Sequence[Json],
    frames: Sequence[NDArray[np.float32]],
    known: Mapping[str, Sequence[float]],
) -> Lengths:
    bonds = np.array(molecule["bonds"], dtype=np.int64).reshape(-1, 2)
    if molecule["set"] == "reference" and folder.reference(name).is_file():
        with np.load(folder.reference(name)) as file:
            return of_reference(np.array(molecule["numbers"]), bonds, file["positions"])
    if name in known:
        return Lengths(bonds, np.array(known[name]), [], True)
    given = bond_lengths(np.array(molecule["positions"])[None], bonds)[0]
    at_room = [x for record, x in zip(records, frames, strict=True) if gives_lengths(record)]
    return of_own(bonds, at_room, given)


def gives_lengths(record: Json) -> bool:
    """Is a run one of those that bonds of its molecule are compared with?"""
    still = record["temperature"] == ROOM and record["end_temperature"] is None
    return still and not record["distortion"] and record["ensemble"] == "nvt"
