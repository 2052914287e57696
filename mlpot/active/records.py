"""What a refinement keeps on disk. Every file appears whole, and the last one of a stage says that
the stage is done, so a killed run starts the stage it was in, and no earlier one, again."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from filelock import FileLock, Timeout

from mlpot.data.formats.common import replacing
from mlpot.errors import DataError, InputError
from mlpot.models.checkpoint import write_atomically

ROUNDS = "rounds.json"
MODEL = "model.safetensors"
LOCK = ".lock"

#: what older journals do not say of what was asked
_LATER = {"forces"}


class RoundFiles:
    """Names of the files of one round.

    Attributes:
        explored: JSON, what the simulations showed; the last file of that stage.
        candidates, rejected: frames of the simulations; absent where there is none.
        chosen: frames to label; the last file of that stage.
        labels: labelled frames, in SPICE's layout.
        labelled: JSON, which frames have no label; the last file of that stage.
        training: folder of the training.
    """

    def __init__(self, out: Path, number: int):
        self.folder = folder = out / f"round_{number:02d}"
        self.explored = folder / "md" / "run.json"
        self.candidates = folder / "md" / "candidates.xyz"
        self.rejected = folder / "md" / "rejected.xyz"
        self.chosen = folder / "flagged.xyz"
        self.labels = folder / "labels.h5"
        self.labelled = folder / "labels.json"
        self.training = folder / "model"

    @property
    def model(self) -> Path:
        """The model that this round trains."""
        return self.training / MODEL


class Journal:
    """``out/rounds.json``: what was asked for, a row a round, and how it ended.

    Args:
        out: folder of the refinement; made if it is absent.
        asked: all that decides the results, as JSON.
        start: name and hash of the start model, level of theory: for the reader.

    Raises:
        InputError: the folder holds another refinement; mixing two would teach nonsense.
        DataError: the journal is damaged.
    """

    def __init__(self, out: Path, asked: dict[str, Any], start: dict[str, Any]):
        self.path = out / ROUNDS
        self.rows: list[dict[str, Any]] = []
        self.outcome = ""
        self._head = {"start": start, "asked": json.loads(json.dumps(asked))}
        if not self.path.is_file():
            if out.is_file() or (out / MODEL).exists():
                raise InputError(
                    f"{out} holds other results. Choose a new folder for the refinement with --out"
                )
            self._write()
            return
        kept = read_json(self.path)
        for name in _LATER & set(self._head["asked"]):
            kept.get("asked", {}).setdefault(name, self._head["asked"][name])
        if kept.get("asked") != self._head["asked"]:
            raise InputError(
                f"{out} holds a refinement with other options ({self._changed(kept)}). Give the "
                "same to go on with it, or choose another folder with --out"
            )
        self.rows, self.outcome = kept["rounds"], kept["outcome"]

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, in the place of one that said how the run ended before."""
        self.rows = [r for r in self.rows if r["round"] < row["round"]] + [row]
        self._write()

    def end(self, outcome: str) -> None:
        """Keep how it ended; an empty word opens it again."""
        if outcome != self.outcome:
            self.outcome = outcome
            self._write()

    def told(self) -> dict[str, Any]:
        """All of it, as in the file."""
        return {**self._head, "rounds": self.rows, "outcome": self.outcome}

    def _write(self) -> None:
        write_json(self.path, self.told())

    def _changed(self, kept: dict[str, Any]) -> str:
        old, new = (_flat(d) for d in (kept.get("asked", {}), self._head["asked"]))
        names = [n for n in [*new, *old] if old.get(n) != new.get(n)]
        name = names[0] if names else "unknown"
        return f"{name}: {old.get(name)!s:.80} there, {new.get(name)!s:.80} here"


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Nobody else works in a folder. The system lifts it when the process ends, however it ends.

    Raises:
        InputError: another process does.
    """
    made = not out.exists()
    if out.is_file():
        raise InputError(f"{out} is a file. Choose a folder for the refinement with --out")
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK, timeout=0)
    _take(lock, out)
    try:
        yield
    finally:
        # it stays in a folder that is used: who waits for a file that is gone locks another one
        unused = made and {path.name for path in out.iterdir()} <= {LOCK}
        lock.release()
        if unused:
            (out / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # somebody else has begun in it
                out.rmdir()


def _take(lock: FileLock, out: Path) -> None:
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"{out}: another process refines there. Wait until it has finished, or choose another "
            "folder with --out"
        ) from error
    except (OSError, NotImplementedError) as error:  # Lustre without flock, some NFS
        warnings.warn(
            f"{out}: this file system cannot lock files ({error}), so a second process that "
            "refines there would not be noticed. Do not start one",
            stacklevel=4,
        )


def write_json(path: Path, content: Any) -> None:
    """All or nothing."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        DataError: it was altered.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} is damaged ({error}). "
            + (
                "Restore it, or refine in a new folder with --out; labels.store of this one can be "
                "copied there, so that nothing is labelled twice"
                if path.name == ROUNDS
                else "Remove this file to do that stage again"
            )
        ) from error


def write_frames(path: Path, frames: Sequence[Atoms]) -> None:
    """Extended XYZ, all or nothing; no frames, no file."""
    if frames:
        with replacing(path) as temporary:
            ase.io.write(temporary, list(frames), format="extxyz")
    else:
        path.unlink(missing_ok=True)


def read_frames(path: Path) -> list[Atoms]:
    """What `write_frames` wrote."""
    if not path.is_file():
        return []
    found: Any = ase.io.read(path, index=":", format="extxyz")
    return found


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
