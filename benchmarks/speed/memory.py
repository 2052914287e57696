"""Peak memory of one energy and forces, in a process of its own: beyond the libraries.

    python -m benchmarks.speed.memory water-300 eager 2

The baseline is what the process holds after the same engine has run one water molecule.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.speed.geometries import SYSTEMS, load
from benchmarks.speed.ours import LARGEST, evaluator
from benchmarks.speed.timing import set_threads

ROOT = Path(__file__).resolve().parents[2]


def measure(system: str, engine: str, threads: int) -> dict[str, Any]:
    """Run this module apart.

    Returns:
        ``{"kB_per_atom": ..., "peak_MB": ..., "baseline_MB": ...}`` or ``{"failed": reason}``.
    """
    limit = LARGEST.get(engine)
    if limit and SYSTEMS[system].atoms > limit:
        return {"failed": f"left out above {limit} atoms"}
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name if __spec__ else "", system, engine, str(threads)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def _status_kb(field: str) -> int:
    """VmRSS or VmHWM of this process, kB. Not ru_maxrss: that is inherited from the parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status; memory is measured on Linux only")


def main(system: str, engine: str, threads: int) -> None:
    set_threads(threads)
    atoms = load(system)
    small = atoms[:3]
    small.pbc = False
    small.positions = [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]
    evaluator(engine, small)(small.positions)
    evaluate = evaluator(engine, atoms)
    baseline = _status_kb("VmRSS")
    for _ in range(2):
        evaluate(atoms.positions)
    peak = _status_kb("VmHWM")
    result = {
        "kB_per_atom": round((peak - baseline) / len(atoms), 2),
        "peak_MB": round(peak / 1024, 1),
        "baseline_MB": round(baseline / 1024, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
