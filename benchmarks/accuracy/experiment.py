"""What the experiments of this folder share: data, state, results, and how long a step takes.

Every experiment is a script with two commands. `run` is expensive and resumable: its state goes
to ``.state/<name>``, its numbers to ``results/<name>.json`` as soon as they are known. `render`
is cheap: it turns the stored numbers into ``results/<name>.md`` and ``.png``.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import typer

from mlpot.analysis.stability import processor
from mlpot.data.record import Record
from mlpot.data.splits import split_held_out
from mlpot.errors import InputError
from mlpot.models.checkpoint import write_atomically

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
WEIGHTS = ROOT.parent / "shared" / "weights"
DRUGLIKE = "druglike_aimnet2/frames.h5"
TRAINED_ON = [
    DRUGLIKE,
    "spice_des_monomers_aimnet2.h5",
    "spice_solvated_amino_acids_aimnet2.h5",
    "spice_water60_aimnet2.h5",
]
HELD_OUT = ROOT / "mlpot" / "zoo" / "recipes" / "held_out.json"
#: of the test part until training was found to have them under another spelling (`left_out` in
#: that file). They stay where molecules are drawn, so that a seed goes on to draw the same ones
SPELT_OTHERWISE = frozenset(
    {
        "C1COCO1",
        "Fc1cc(F)c(c(c1F)F)F",
        "Fc1cccc(F)c1",
        "N#Cc1ccccc1.c1ccccc1",
        "c1ccccc1.Cc1ccco1",
        "c1ccccc1.N#Cc1ccsc1",
        "c1ncon1.c1ccccc1",
    }
)
SHIPPED = "pretrained-visnet"
LEVEL = "AIMNet2 (wB97M-D3(BJ)/def2-TZVPP teacher), four-member ensemble mean"
RESULTS = Path(__file__).parent / "results"
STATE = ROOT / ".state"

#: steps of the runs that time a step: compile, start, start and measure
TIMED = (10, 10, 110)


def quiet(*_: Any) -> None:
    """A `report` that says nothing."""


def stored(name: str) -> dict[str, Any]:
    """Results so far; empty if there are none."""
    return read_results(RESULTS / f"{name}.json")


def store(name: str, result: dict[str, Any]) -> None:
    write_results(RESULTS / f"{name}.json", result)


def of_model(experiment: str, model: str) -> str:
    """Name of an experiment's results for one model: the plain one for the model that mlpot is
    named after, so that those of others lie beside it."""
    return experiment if model == SHIPPED else f"{experiment}-{model}"


def read_results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_results(path: Path, result: dict[str, Any]) -> None:
    """JSON with a list of numbers on a line of its own, or thousands of lines would be."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    text = re.sub(r"\[[-+.,eE\d\s]*\]", lambda found: " ".join(found[0].split()), text)
    write_atomically(path, text.encode())


def begun(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Results to go on with: those of the same settings, or new ones.

    Raises:
        InputError: stored results are of other settings; one table would mix two experiments.
    """
    return begun_at(RESULTS / f"{name}.json", settings)


def begun_at(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """`begun`, of any file of results."""
    found = read_results(path)
    if found and found["settings"] != settings:
        changed = [k for k in settings if settings[k] != found["settings"].get(k)]
        raise InputError(
            f"{path.name} was begun with another {', '.join(changed)} "
            f"({', '.join(_brief(found['settings'].get(k)) for k in changed)}); one table would "
            "mix two experiments. Give the same options, or move that file, and the folder of its "
            "runs, away to start anew"
        )
    here = {"commit": commit(), "machine": machine()}
    if not found:
        return {"settings": settings, **here}
    if here != {k: found.get(k) for k in here} and here not in found.get("went_on", []):
        found.setdefault("went_on", []).append(here)
    return found


def made_at(result: dict[str, Any]) -> str:
    """Where an experiment was begun, and where it went on: 'Commit 1a2b3c4; AMD EPYC.'"""
    text = f"Commit {result['commit']}; {result['machine']}."
    rest = [f"{one['commit']} ({one['machine']})" for one in result.get("went_on", [])]
    return f"{text} Gone on with at {', '.join(rest)}." if rest else text


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:60]}..."


def commit() -> str:
    """Short hash of the code that measured; '+' where files differ from it."""
    return _git("describe", "--always", "--dirty=+", "--exclude=*")


def last_commit(path: Path) -> str:
    """Short hash of the commit that brought a file as it is, if it was committed."""
    if _git("status", "--porcelain", "--", str(path)) != "unknown":
        return "none yet"
    return _git("log", "-1", "--format=%h", "--", str(path))


def content_at(commit: str, path: Path) -> bytes:
    """A file as it was in a commit."""
    where = f"{commit}:{path.relative_to(ROOT)}"
    return subprocess.run(["git", "show", where], cwd=ROOT, capture_output=True, check=True).stdout


def _git(*words: str) -> str:
    try:
        told = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip() or "unknown"


def machine() -> str:
    return f"{processor()}, torch {torch.__version__}"


def empty_folder(*parts: str) -> Path:
    """A folder under the state, emptied: a run that was cut off starts anew."""
    folder = STATE.joinpath(*parts)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def seconds_per_step(train: Callable[[int, Path], Any], *parts: str) -> float:
    """Wall time of a training step, from runs of different lengths.

    Args:
        train: ``train(steps, folder)``.
        parts: of the folder's name, under the state.
    """
    seconds = []
    for steps in TIMED:
        folder = empty_folder(*parts)
        begin = time.perf_counter()
        train(steps, folder)
        seconds.append(time.perf_counter() - begin)
    found = (seconds[-1] - seconds[-2]) / (TIMED[-1] - TIMED[-2])
    # on a busy machine the short run may take as long as the long one; no step is that fast
    return max(found, 0.1 * seconds[-1] / TIMED[-1])


class Parts(NamedTuple):
    """Frames to train on, and of molecules held out."""

    train: list[Record]
    validation: list[Record]
    test: list[Record]

    def chosen(self, frames: int, seed: int, held: int) -> list[Record]:
        """So many to train on, and up to ``held`` of each held-out part, always the same."""
        order = np.random.default_rng(seed).permutation(len(self.train))
        rest = [_spread(part, held) for part in (self.validation, self.test)]
        return [self.train[i] for i in order[:frames]] + rest[0] + rest[1]


def _spread(records: list[Record], count: int) -> list[Record]:
    at = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[i] for i in at]


def divide(records: Sequence[Record], elements: frozenset[int], held_out: Path = HELD_OUT) -> Parts:
    """The split of a file of molecules, of those frames that hold these elements only."""
    records = [r for r in records if elements.issuperset(r.numbers.tolist())]
    split = split_held_out(records, held_out)
    return Parts(*([records[i] for i in getattr(split, part)] for part in Parts._fields))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean, and half the range where there are several: '61.2 ± 0.8'."""
    told = f"{np.mean(values):.{digits}f}"
    return f"{told} ± {np.ptp(values) / 2:.{digits}f}" if len(values) > 1 else told


def millis(errors: dict[str, float]) -> dict[str, float]:
    """meV and meV/Å of eV and eV/Å."""
    return {k: 1e3 * v for k, v in errors.items() if k != "loss"}


def write_page(name: str, text: str) -> Path:
    path = RESULTS / f"{name}.md"
    write_atomically(path, (text.rstrip() + "\n").encode())
    return path


def fill(path: Path, start: str, text: str, end: str) -> bool:
    """Replace what a file has between two markers; False where it has none."""
    content = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.S)
    if not pattern.search(content):
        return False
    filled = pattern.sub(lambda _: f"{start}\n{text}\n{end}", content, count=1)
    path.write_text(filled, encoding="utf-8")
    return True


def known(mode: str, modes: Iterable[str]) -> str:
    """The mode, if it is one; else an error for the command line."""
    if mode not in (names := list(modes)):
        raise typer.BadParameter(f"--mode must be {', '.join(names)}, got {mode!r}")
    return mode


def save_plot(figure: Any, name: str) -> Path:
    path = RESULTS / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    return path
