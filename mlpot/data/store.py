"""Store: results by key in a file that only grows, so that a kill at any moment loses one line.

One JSON object a line: {"key": ..., "result": {...}} or {"key": ..., "failed": "why"}. A later
line of a key replaces an earlier one. A line that a kill has cut is removed at the next opening.
"""

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mlpot.errors import DataError

try:
    import fcntl
except ImportError:  # Windows: two writers at once are not noticed there
    fcntl = None  # type: ignore[assignment]

_HEADER = b'{"mlpot store": 1}\n'


class Store:
    """Append-only results on disk; only their places in the file are held in memory.

    Use it as a context manager. What `add` has written survives SIGKILL of the process; a power
    failure can lose what the operating system had not written yet, and those are computed again.

    Args:
        path: the file; made if it is absent.

    Raises:
        DataError: the file is something else, or another process is writing to it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.failed: dict[str, str] = {}  # key -> reason
        self._at: dict[str, int] = {}  # key of a result -> where its line begins
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = open(self.path, "a+b")  # noqa: SIM115 (closed by close)
        try:
            self._lock()
            self._open()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return key in self._at

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """The result of a key. Raises KeyError without one."""
        self._file.seek(self._at[key])
        return json.loads(self._file.readline())["result"]

    def add(self, key: str, result: dict[str, Any]) -> None:
        """Keep a result; what it holds must be JSON. Floats come back with the same bits."""
        self._at[key] = self._append({"key": key, "result": result})
        self.failed.pop(key, None)

    def fail(self, key: str, reason: str) -> None:
        """Keep why there is no result."""
        self._append({"key": key, "failed": reason})
        self.failed[key] = reason

    def close(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())
            if not (self._at or self.failed):  # nothing came of it
                self.path.unlink(missing_ok=True)
            self._file.close()

    def _append(self, line: dict[str, Any]) -> int:
        # allow_nan: NaN is no JSON; whoever adds a result has to check it.
        content = json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        at = self._file.seek(0, os.SEEK_END)
        self._file.write(content)
        self._file.flush()
        return at

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:  # released by the system when the process ends, however it ends
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{self.path}: another process is writing to it. Wait until it has finished, or "
                "name another output"
            ) from error
        except OSError as error:  # Lustre without flock, some NFS
            warnings.warn(
                f"{self.path}: this file system cannot lock files ({error.strerror}), so a second "
                "process that writes to it would not be noticed. Do not start one",
                stacklevel=3,
            )

    def _open(self) -> None:
        """Read what is there, and leave a file that ends with a whole line."""
        end = 0
        for start, line in self._lines():
            if start == 0 and line != _HEADER and not _HEADER.startswith(line):
                raise DataError(
                    f"{self.path}: it is not a store of mlpot, and nothing is written into it. "
                    "Name another file, or move this one away"
                )
            if not line.endswith(b"\n"):
                break
            end = start + len(line)
            self._index(start, line)
        self._file.truncate(end)
        if end == 0:
            self._file.write(_HEADER)
            self._file.flush()

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(0)
        start = 0
        for line in self._file:
            yield start, line
            start += len(line)

    def _index(self, start: int, line: bytes) -> None:
        try:
            entry = json.loads(line)
        except ValueError:  # a damaged block of the disk: computed again
            return
        key = entry.get("key") if isinstance(entry, dict) else None
        if key is None:
            return
        if "result" in entry:
            self._at[key] = start
            self.failed.pop(key, None)
        elif "failed" in entry:
            self.failed[key] = entry["failed"]
