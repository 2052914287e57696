"""Statistics of a training set as tensors of a model file, in a few kB.

Tables of small integers are told by what they differ in, as bytes that zlib squeezes: covariances
to a fifth of float32's room, and tables of lengths, where most is zero or a straight line, to a
twentieth of theirs.
"""

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlpot.models.extrapolation import Extrapolation, ExtrapolationInfo

#: squeezed
_STEPS, _GAPS = "whitening.steps", "pairs.gaps"

#: powers of two; and in float16, which it has been rounded to
_SCALE, _BASIS = "whitening.scale", "whitening.basis"

#: of files up to format 4: matrices in float32, and bytes as they are
_OLD = "whiten"


def to_tensors(extrapolation: Extrapolation) -> dict[str, Tensor]:
    """By name, on the CPU; all but covariances, which are rounded already, in float32."""
    made = {k: v.detach().cpu() for k, v in extrapolation.state_dict().items()}
    squeezed = {_STEPS: _squeezed(made[_STEPS].numpy())}
    if _GAPS in made:
        squeezed[_GAPS] = _squeezed(np.diff(made[_GAPS].numpy().astype(np.int32), prepend=0))
    plain = {k: v.float() for k, v in made.items() if k not in squeezed}
    return plain | squeezed | {_BASIS: made[_BASIS].half()}


def from_tensors(info: ExtrapolationInfo, tensors: dict[str, Tensor]) -> Extrapolation:
    """The reverse, in float32; of older formats too.

    Raises:
        ValueError, RuntimeError: the tensors are not those that the description asks for.
    """
    _check(info, tensors)
    made = Extrapolation(info)
    state, told = made.state_dict(), dict(tensors)
    old = told.pop(_OLD, None)
    if old is None:
        told[_STEPS] = torch.from_numpy(_values(told[_STEPS], state[_STEPS].shape))
        if _GAPS in state:
            differences = _values(told[_GAPS], state[_GAPS].shape)
            gaps = differences.cumsum(1)
            if gaps.min() < 0 or gaps.max() > 255:
                raise ValueError(f"{_GAPS} are no bytes")
            told[_GAPS] = torch.from_numpy(gaps.astype(np.uint8))
    else:
        made.whitening.set_lower(old)
        told |= {f"whitening.{k}": v for k, v in made.whitening.state_dict().items()}
    made.load_state_dict(told)
    return made.eval()


def _check(info: ExtrapolationInfo, tensors: dict[str, Tensor]) -> None:
    """Sizes that a description asks for, before room is made for them; and numbers."""
    kinds, width = len(info.elements), info.width
    entries = width * (width + 1) // 2
    expected: dict[str, tuple[int, ...] | None] = {"mean": (kinds, width)}
    if _OLD in tensors:
        expected[_OLD] = (kinds, entries)
    else:  # squeezed tables are of any size
        expected |= {_SCALE: (width,), _BASIS: (entries,), _STEPS: None}
    if info.apart is not None:
        expected[_GAPS] = None
    for name, shape in expected.items():
        if name not in tensors:
            raise ValueError(f"there is no tensor {name}")
        if shape is not None and tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)} instead of {shape}")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.uint8 and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite")
    if _SCALE in tensors and not (tensors[_SCALE] > 0).all():
        raise ValueError(f"{_SCALE} is not positive")


def _squeezed(values: NDArray[np.int32]) -> Tensor:
    """Bytes of integers. Those near zero, of either sign, have all but the first byte zero; of all
    of them the first bytes come first. (Another zlib may find other bytes for the same numbers.)"""
    unsigned = ((values << 1) ^ (values >> 31)).astype("<u4")
    planes = unsigned.reshape(-1, 1).view(np.uint8).T.tobytes()
    squeeze = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    content = squeeze.compress(planes) + squeeze.flush()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _values(squeezed: Tensor, shape: torch.Size) -> NDArray[np.int32]:
    """The reverse."""
    size, unpack = 4 * shape.numel(), zlib.decompressobj()
    try:
        content = unpack.decompress(squeezed.numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise ValueError(f"squeezed numbers cannot be read: {error}") from error
    if len(content) != size or not unpack.eof or unpack.unused_data:
        raise ValueError(f"there are not {shape.numel()} squeezed numbers")
    planes = np.frombuffer(content, np.uint8).reshape(4, -1)
    unsigned = np.ascontiguousarray(planes.T).view("<u4").astype(np.int64)
    return ((unsigned >> 1) ^ -(unsigned & 1)).astype(np.int32).reshape(shape)
