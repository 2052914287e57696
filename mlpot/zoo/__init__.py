"""The zoo: models that come with mlpot, by name. No network, no cache: the files are here."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from mlpot.errors import ModelFileError, UnknownModelError

_HERE = Path(__file__).parent


class ZooEntry(NamedTuple):
    """One model of the zoo; the registry is ``registry.json`` in this folder."""

    name: str
    file: str
    sha256: str
    card: str
    summary: str

    @property
    def path(self) -> Path:
        return _HERE / self.file

    @property
    def card_path(self) -> Path:
        return _HERE / self.card


def available_models() -> dict[str, ZooEntry]:
    """All models of the zoo by name."""
    rows = json.loads((_HERE / "registry.json").read_text())
    return {name: ZooEntry(name=name, **row) for name, row in rows.items()}


def resolve(model: str | Path) -> Path:
    """The file of a zoo name; or the path itself, or the model in the folder of a training run.

    Raises:
        UnknownModelError: neither; the message lists the names there are.
        ModelFileError: the file in the zoo is not the one that was released.
    """
    zoo = available_models()
    if isinstance(model, str) and model in zoo:
        entry = zoo[model]
        _verify(entry)
        return entry.path
    path = Path(model)
    if path.is_dir() and (path / "model.safetensors").is_file():
        return path / "model.safetensors"  # the folder of a training run
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise UnknownModelError(f"no model file at {path}; check the path, or see `mlpot models`")
    raise UnknownModelError(
        f"no model is named {str(model)!r}; there are: {', '.join(sorted(zoo))}. Or give the path "
        "of a .safetensors, .pt or .pt2 file"
    )


def _verify(entry: ZooEntry) -> None:
    if not entry.path.is_file():
        raise ModelFileError(f"{entry.path} is missing from this installation; install mlpot again")
    if hashlib.sha256(entry.path.read_bytes()).hexdigest() != entry.sha256:
        raise ModelFileError(
            f"{entry.path} is truncated or altered (its SHA-256 is not the released one); install "
            "mlpot again"
        )
