"""Model files: what goes in comes out, and anything else is one clear error."""

import json
from pathlib import Path

import pytest
import torch
from ase.build import molecule
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from mlpot.errors import ModelFileError
from mlpot.models import checkpoint
from mlpot.models.checkpoint import ModelInfo, build, load, load_potential, save
from mlpot.models.potential import Denoiser, Potential
from mlpot.neighbors import build_graph

# numbers that float32 cannot hold
REFERENCES = {1: -13.587222780835477, 6: -1029.4889999263094, 8: -2041.8396277138045}


def description(kind: str = "potential", **more) -> ModelInfo:
    return ModelInfo(
        kind=kind,  # type: ignore[arg-type]
        name="tiny",
        config={"layers": 2, "channels": 16, "heads": 4, "radial": 8, "max_number": 10, **more},
        elements=sorted(REFERENCES),
        reference_energies=REFERENCES,
        scale=0.3,
        level="none",
        provenance={"seed": 0, "steps": [1, 2], "note": "ä"},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save(build(description()), description(), path)
    return path


@pytest.mark.parametrize("kind", ["potential", "denoiser"])
@pytest.mark.parametrize("lmax", [1, 2])
def test_round_trip_bit_for_bit(kind: str, lmax: int, tmp_path: Path) -> None:
    info = description(kind, lmax=lmax)
    model = build(info).eval()
    path = tmp_path / "new folder" / "tiny.safetensors"
    stored = save(model, info, path)
    again, read = load(path)
    assert type(again) is (Denoiser if kind == "denoiser" else Potential)
    assert not again.training
    assert read == stored
    assert read == info.model_copy(update={"sha256": stored.sha256})
    assert read.reference_energies == REFERENCES  # exactly, keys integers again
    old, new = model.state_dict(), again.state_dict()
    assert list(old) == list(new)
    for key in old:
        assert old[key].dtype == new[key].dtype
        assert torch.equal(old[key], new[key]), key
    if isinstance(again, Potential):
        for number, energy in REFERENCES.items():
            assert again.reference_energies[number].item() == energy


def test_saving_twice_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    model, info = load(saved)
    save(model, info, other)
    assert other.read_bytes() == saved.read_bytes()


def test_loaded_model_predicts_the_same(tmp_path: Path) -> None:
    info, atoms = description(), molecule("CH3CH2OH")
    model = build(info).eval()
    save(model, info, tmp_path / "m")
    graph = build_graph(atoms.numbers, atoms.positions, model.cutoff)
    old, new = model(graph), load_potential(tmp_path / "m")[0](graph)
    assert torch.equal(old.energy, new.energy)
    assert torch.equal(old.forces, new.forces)


def test_a_model_in_float64_is_stored_in_float32(tmp_path: Path) -> None:
    save(build(description()).double(), description(), tmp_path / "m")
    assert {t.dtype for t in load_file(tmp_path / "m").values()} == {torch.float32}


def test_truncated_files(saved: Path) -> None:
    content = saved.read_bytes()
    for size in (0, 4, 100, len(content) // 2, len(content) - 1):
        saved.write_bytes(content[:size])
        with pytest.raises(ModelFileError, match="truncated.*fetch or train it again"):
            load(saved)


def test_one_flipped_byte(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for position in (start, (start + len(content)) // 2, len(content) - 1):
        altered = content.copy()
        altered[position] ^= 1
        saved.write_bytes(altered)
        with pytest.raises(ModelFileError, match="damaged.*Fetch or train it again"):
            load(saved)


def test_one_digit_of_the_description_changed(saved: Path) -> None:
    """A reference energy or cutoff that was altered is as bad as an altered weight."""
    content = saved.read_bytes()
    altered = content.replace(b"-1029.4889999263094", b"-1029.4889999263095")
    assert altered != content and len(altered) == len(content)
    saved.write_bytes(altered)
    with pytest.raises(ModelFileError, match="damaged"):
        load(saved)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no model file at .*nothing.*mlpot models"):
        load(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match="no model file"):
        load(tmp_path)  # a folder


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ModelFileError, match="not one that mlpot wrote"):
        load(path)
    path.write_text("1\nH 0 0 0\n" * 100)
    with pytest.raises(ModelFileError, match="no mlpot weights file"):
        load(path)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(ModelFileError, match=r"another torch file.*must end in \.pt"):
        load(path)


def rewrite(path: Path, **changes) -> None:
    """Change the description, with a hash that is right for it, and leave the weights."""
    tensors = load_file(path)
    info = {**json.loads(load(path)[1].model_dump_json()), **changes}
    info["sha256"] = checkpoint._hash(tensors, info)
    info.update({k: v for k, v in changes.items() if k == "sha256"})
    save_file(tensors, path, metadata={"mlpot": json.dumps(info)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": checkpoint.FORMAT + 1}, "format .*Upgrade mlpot"),
        ({"format": 99, "unheard_of": 1}, "format 99.*Upgrade mlpot"),
        ({"format": "one"}, "description in its header is invalid"),
        ({"unheard_of": 1}, "description in its header is invalid"),
        ({"backbone": "schnet"}, "description in its header is invalid"),
        ({"charge": 1}, "description in its header is invalid"),
        ({"sha256": "0" * 64}, "damaged"),
        ({"kind": "denoiser"}, "does not fit its own description"),
    ],
)
def test_descriptions_that_do_not_fit(saved: Path, changes: dict, message: str) -> None:
    rewrite(saved, **changes)
    with pytest.raises(ModelFileError, match=message):
        load(saved)


SIZES = {"layers": 2, "channels": 16, "heads": 4, "radial": 8, "max_number": 10}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"config": {**SIZES, "layers": 3}}, id="layers"),
        pytest.param({"config": {**SIZES, "channels": 32}}, id="channels"),
        pytest.param({"config": {**SIZES, "chanels": 16}}, id="misspelt"),
        pytest.param({"config": {**SIZES, "channels": 15}}, id="indivisible"),
        pytest.param({"reference_energies": {}}, id="no elements"),
        pytest.param({"format": None}, id="null format"),
    ],
)
def test_configs_that_do_not_fit(saved: Path, changes: dict) -> None:
    rewrite(saved, **changes)
    with pytest.raises(ModelFileError, match="tiny.safetensors"):
        load(saved)


@pytest.mark.parametrize("header", ["", "{", "[]", "null", "1", '"text"'])
def test_headers_that_are_no_description(saved: Path, header: str) -> None:
    save_file(load_file(saved), saved, metadata={"mlpot": header})
    with pytest.raises(ModelFileError, match="header"):
        load(saved)


def test_a_denoiser_is_no_potential(tmp_path: Path) -> None:
    info = description("denoiser")
    save(build(info), info, tmp_path / "m")
    with pytest.raises(ModelFileError, match="without an energy head.*mlpot finetune"):
        load_potential(tmp_path / "m")


def test_info_refuses_unknown_keys() -> None:
    with pytest.raises(ValidationError):
        ModelInfo(nmae="x")  # type: ignore[call-arg]


def test_nothing_half_written_is_left(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved.read_bytes()
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]

    def disk_full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    model, info = load(saved)
    with pytest.raises(OSError, match="No space left"):
        save(model, info, saved)
    with pytest.raises(OSError, match="No space left"):
        save(model, info, saved.with_name("new.safetensors"))
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    assert saved.read_bytes() == content
