"""What the README shows is run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from mlpot.cli import app

ROOT = Path(__file__).resolve().parents[1]
MLPOT = str(Path(sys.executable).with_name("mlpot"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.S)
CONSOLE = re.findall(r"^\$ (.*?)\s*(?:#.*)?$", README, flags=re.M)


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
