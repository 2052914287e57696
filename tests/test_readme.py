"""What the README shows is run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from mlpot.cli import app

ROOT = Path(__file__).resolve().parents[1]
MLPOT = str(Path(sys.executable).with_name("mlpot"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.S)
CONSOLE = re.findall(r"^\$ (.*?)\s*(?:#.*)?$", README, flags=re.M)


def stability_block(folder: Path) -> str:
    from benchmarks.stability.__main__ import read_results
    from benchmarks.stability.brief import brief

    return brief(read_results("standard"))


def headline_block(folder: Path) -> str:
    from benchmarks.headline.tables import block

    return block(json.loads((folder / "standard.json").read_text()))


def refine_block(folder: Path) -> str:
    from benchmarks.refine.tables import block

    return block(json.loads((folder / "standard.json").read_text()))


def peers_block(folder: Path) -> str:
    from benchmarks.stability.__main__ import read_results
    from benchmarks.stability.brief import beside

    return beside(read_results("fast"))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("stability", stability_block),
        ("stability of peers", peers_block),
        ("headline", headline_block),
        ("refine", refine_block),
    ],
)
def test_tables_are_those_of_the_results(name: str, written: Callable[[Path], str]) -> None:
    shown = README.split(f"<!-- {name}: generated -->\n")[1].split("\n<!-- end -->")[0]
    assert shown == written(ROOT / "benchmarks" / name / "results")


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(code: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    if "DCDReporter" in code:
        assert (tmp_path / "trajectory.dcd").stat().st_size > 1000


def test_the_two_commands_come_first() -> None:
    assert CONSOLE[:2] == ["make demo", "make test"]


@pytest.mark.parametrize(
    "command", sorted({c.split()[1] for c in CONSOLE if c.startswith("mlpot")})
)
def test_verbs_exist(command: str) -> None:
    done = subprocess.run([MLPOT, command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_options_shown_exist() -> None:
    for command in CONSOLE:
        if not command.startswith("mlpot"):
            continue
        verb = command.split()[1]
        text = subprocess.run(
            [MLPOT, verb, "--help"],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "200"},
        ).stdout
        for option in re.findall(r"--[a-z-]+", command):
            assert option in text, f"{verb} has no {option}"


@pytest.mark.parametrize("command", [c for c in CONSOLE if c.startswith("mlpot")])
def test_commands_shown_have_all_that_they_need(command: str) -> None:
    """They parse: no option is missing, and none has a value that cannot be."""
    verb, *words = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    with group.make_context("mlpot", [verb]) as context:
        found = group.get_command(context, verb)
        assert found is not None
        found.make_context(verb, words, parent=context)


def test_no_placeholder_and_no_dead_link() -> None:
    assert not re.findall(r"@[A-Z]+@", README)
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
