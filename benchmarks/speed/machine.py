"""What the numbers were taken on: processor, cores, load, versions. No names of hosts."""

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "openmm",
    "openmmml",
    "openmmtorch",
    "ase",
    "vesin",
    "torchmd-net",
    "warp-lang",
    "torch-geometric",
    "Auto3D",
    "mace-torch",
    "e3nn",
    "torchani",
    "so3krates-torch",
    "tblite",
)


def describe() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, and versions of what is installed."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "memory_GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "GOMP_"))},
    }


def code() -> str:
    """Hash of mlpot and of its default model: what a run that goes on must have in common."""
    import mlpot

    root, digest = Path(mlpot.__file__).parent, hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.glob("zoo/*.safetensors")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def load_average() -> float:
    """Of the last minute: above the number of threads, others were at work too."""
    return round(os.getloadavg()[0], 2)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
