"""The models that come with mlpot are whole, described, and small."""

import re
import shutil
from pathlib import Path

import pytest

from mlpot import available_models, load
from mlpot import zoo as zoo_module
from mlpot.errors import ModelFileError, UnknownModelError
from mlpot.models import checkpoint
from mlpot.zoo import resolve
from tests.helpers import ethanol, save_random_model


@pytest.mark.parametrize("name", sorted(available_models()))
def test_every_entry(name: str) -> None:
    entry = available_models()[name]
    assert resolve(name) == entry.path
    assert name in entry.card_path.read_text(encoding="utf-8")
    info = checkpoint.load(entry.path)[1]
    if info.kind == "potential":
        load(name)
    else:
        with pytest.raises(ModelFileError, match="mlpot finetune"):
            load(name)
    assert info.name == name and info.level and info.elements
    told = info.model_dump_json()
    assert not re.search(r"/(home|root|work|tmp|Users)/", told), "a path of somebody's machine"


def test_size_of_the_zoo() -> None:
    files = [p for p in Path(zoo_module.__file__).parent.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files if p.suffix != ".pyc") < 25e6


@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "missing"])
def test_a_damaged_zoo_file_is_refused(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = available_models()["pretrained-visnet"]
    shutil.copy(entry.path, tmp_path)
    shutil.copy(entry.path.parent / "registry.json", tmp_path)
    copy = tmp_path / entry.file
    content = bytearray(copy.read_bytes())
    if damage == "flipped byte":
        content[len(content) // 2] ^= 1
    copy.write_bytes(content[: -100 if damage == "truncated" else None])
    if damage == "missing":
        copy.unlink()
    monkeypatch.setattr(zoo_module, "_HERE", tmp_path)
    with pytest.raises(ModelFileError, match="install mlpot again"):
        resolve("pretrained-visnet")


def test_names_paths_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="pretrained-visnet"):
        resolve("pretrained-visnte")
    with pytest.raises(UnknownModelError, match="no model file"):
        resolve(tmp_path / "absent.safetensors")
    file = save_random_model(tmp_path / "model.safetensors")
    assert resolve(tmp_path) == file  # the folder of a training run


def test_the_shipped_model_knows_chemistry() -> None:
    """Bounds that a broken or mixed-up file would miss: equilibrium forces, a bond's strength."""
    from ase.build import molecule

    model = load("pretrained-visnet")
    for name in ("CH4", "H2O", "NH3", "C2H6", "CH3OH", "C6H6"):
        atoms = molecule(name)  # MP2 geometries of the G2 set
        result = model(atoms.numbers, atoms.positions)
        assert abs(result.forces).max() < 0.8, name
    atoms = ethanol()
    start = model(atoms.numbers, atoms.positions).energy
    stretched = atoms.copy()
    stretched.set_distance(0, 1, atoms.get_distance(0, 1) + 0.4, fix=0)
    assert 0.5 < model(stretched.numbers, stretched.positions).energy - start < 6.0
