"""Dynamics of molecules never seen: do they hold together, and is energy conserved?

    python benchmarks/accuracy/dynamics.py run --model pretrained-visnet   # hours; resumable
    python benchmarks/accuracy/dynamics.py run --only long      # beside it, on another core
    python benchmarks/accuracy/dynamics.py render               # results/dynamics.md and .png

Molecules are drawn from the test part of the zoo's recipe by seed. Each starts from its labelled
frame of lowest energy, minimised, and runs in a batch with others. Broken: at the first stored
frame where a bond differs from its mean at 300 K by more than 0.5 Å (Fu et al., arXiv 2210.07237,
with a mean over time for the mean over data), or where the run ends in a NaN or an explosion.
A kill loses the chunk in progress, a picosecond or two.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import typer
from drift import interval_of, nve_drift  # this folder is where the script runs
from experiment import (
    DATA,
    DRUGLIKE,
    HELD_OUT,
    SHIPPED,
    SPELT_OTHERWISE,
    STATE,
    begun,
    made_at,
    of_model,
    save_plot,
    store,
    stored,
    table,
    write_page,
)
from numpy.typing import NDArray
from trajectories import (
    BROKEN,
    KINDS,
    Molecule,
    Trajectory,
    bonds_of,
    choose,
    for_long_runs,
    judged,
    lengths,
    simulate,
    sound,
)

from mlpot.data.formats import read
from mlpot.data.splits import split_held_out
from mlpot.deploy.engines import DeployedModel
from mlpot.deploy.load import load
from mlpot.errors import InputError
from mlpot.md.replicas import Replicas
from mlpot.models.checkpoint import write_atomically

NAME = "dynamics"
REFERENCE_PS = 5.0  # of the run at 300 K, over which bonds are averaged
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Rows = dict[str, dict[str, Any]]  # what came of molecules, by name


class Run(NamedTuple):
    """One way to run molecules: name, K, ps, how many of the molecules (0: all)."""

    name: str
    temperature: float
    picoseconds: float
    molecules: int


RUNS = (Run("300 K", 300.0, 20.0, 0), Run("600 K", 600.0, 10.0, 0), Run("long", 300.0, 200.0, 5))


def _by_name(rows: Sequence[dict[str, Any]]) -> Rows:
    return {row["name"]: row for row in rows}


class Dynamics:
    """The experiment with its results so far."""

    def __init__(self, model: DeployedModel, molecules: list[Molecule], settings: dict[str, Any]):
        self.model, self.molecules, self.settings = model, molecules, settings
        self.name = of_model(NAME, settings["model"])
        self.result = begun(self.name, settings)
        self.result["molecules"] = [{"name": m.name, "kind": m.kind} for m in molecules]
        self.result.setdefault("runs", {})
        self.done = self._done()
        self.means: dict[str, NDArray[np.float64]] = {}  # name -> mean bond lengths at 300 K

    def _done(self) -> dict[str, Rows]:
        """Rows by run and molecule, of molecules that have been through all of their runs, here or
        on another machine. The others begin anew, or go on from their state: a hot run is judged
        by the one at 300 K.
        """
        stored = self.result["runs"]
        found = {r.name: _by_name(stored.get(r.name, {}).get("rows", [])) for r in RUNS}
        short = {m.name for r in RUNS for m in self.chosen(r) if m.name not in found[r.name]}
        return {n: {k: v for k, v in rows.items() if k not in short} for n, rows in found.items()}

    def run(self, run: Run) -> None:
        """All batches of one run; results are stored after each."""
        known = dict(self.done.get(run.name, {}))
        for number, batch in enumerate(self.batches(run)):
            left = [m for m in batch if m.name not in known]
            known |= _by_name(self.batch(run, left, number) if left else [])
            rows = [known[m.name] for m in self.chosen(run) if m.name in known]
            self.result["runs"][run.name] = {**run._asdict(), "rows": rows}
            store(self.name, self.result)
            bad = [row["name"] for row in rows if not sound(row)]
            print(f"{run.name}: {len(rows)} molecules, broken: {bad or 'none'}", flush=True)

    def chosen(self, run: Run) -> list[Molecule]:
        return for_long_runs(self.molecules, run.molecules) if run.molecules else self.molecules

    def batches(self, run: Run) -> list[list[Molecule]]:
        chosen, size = self.chosen(run), self.settings["batch"]
        return [chosen[at : at + size] for at in range(0, len(chosen), size)]

    @property
    def interval(self) -> int:
        """Steps between stored frames."""
        return max(1, round(self.settings["frame_fs"] / self.settings["timestep"]))

    def simulate(self, run: Run, molecules: list[Molecule], number: int) -> Trajectory:
        """What there is of a batch, and the rest of it; stored as it goes."""
        replicas = Replicas(
            self.model,
            [m.numbers for m in molecules],
            [m.positions for m in molecules],
            temperatures=run.temperature,
            timestep=self.settings["timestep"],
            friction=self.settings["friction"],
            seeds=[_seed_of(m.name, run, self.settings["seed"]) for m in molecules],
        )
        femtoseconds = 1000 * run.picoseconds * self.settings["share"]
        frames = max(1, round(femtoseconds / (self.interval * self.settings["timestep"])))
        folder = STATE / self.name / run.name.replace(" ", "-") / str(number)
        return simulate(replicas, frames * self.interval, self.interval, folder)

    def batch(self, run: Run, molecules: list[Molecule], number: int) -> list[dict[str, Any]]:
        frame_ps = 1e-3 * self.interval * self.settings["timestep"]
        done = self.simulate(run, molecules, number)
        if run.name == RUNS[0].name:
            self._average(molecules, done, frame_ps)
        rows = []
        for r, molecule in enumerate(molecules):
            mean, frames = self.means.get(molecule.name), done.frames[r]
            row = judged(molecule, frames, mean, frame_ps, r in done.lost)
            half = done.temperature[len(frames) // 2 : len(frames), r]
            row["temperature"] = round(float(half.mean()), 1) if len(half) else None
            rows.append(row)
        return rows

    def _average(self, molecules: list[Molecule], done: Trajectory, frame_ps: float) -> None:
        """Over the beginning, so that what breaks later does not spoil its own reference."""
        count = max(1, round(REFERENCE_PS / frame_ps))
        for molecule, frames in zip(molecules, done.frames, strict=True):
            if len(frames):
                bonds = bonds_of(molecule.numbers, molecule.positions)
                self.means[molecule.name] = lengths(frames[:count], bonds).mean(axis=0)


def _seed_of(name: str, run: Run, seed: int) -> int:
    """Of a trajectory: other for every molecule and run, whatever batch it is in."""
    key = [seed, round(run.temperature), round(run.picoseconds), *name.encode()]
    return int(np.random.SeedSequence(key).generate_state(1)[0])


# --- commands --------------------------------------------------------------------------------


@app.command()
def run(
    model: str = "pretrained-visnet",
    seed: int = 2026,
    batch: int = typer.Option(10, help="molecules side by side; 10 keep two threads busy"),
    timestep: float = typer.Option(0.5, help="fs"),
    friction: float = typer.Option(1.0, help="1/ps"),
    frame_fs: float = typer.Option(50.0, help="between stored frames"),
    share: float = typer.Option(1.0, help="of the time of each run; below 1 to try it out"),
    nve_ps: float = 10.0,
    nve_seeds: int = 5,
    threads: int = 2,
    engine: str = "compiled",
    only: str = typer.Option("", help="a run to simulate beside another process, not judged here"),
) -> None:
    """Do what is not done yet."""
    torch.set_num_threads(threads)
    deployed = load(model, engine=engine, device="cpu")
    settings = {
        "model": deployed.info.name,
        "sha256": deployed.info.weights_sha256,
        "seed": seed,
        "batch": batch,
        "timestep": timestep,
        "friction": friction,
        "frame_fs": frame_fs,
        "share": share,
        "nve_ps": nve_ps,
        "nve_seeds": nve_seeds,
    }
    _check_state(of_model(NAME, settings["model"]), settings)
    records = read(DATA / DRUGLIKE)
    test = [records[i] for i in split_held_out(records, HELD_OUT).test]
    test += [record for record in records if record.group in SPELT_OTHERWISE]
    experiment = Dynamics(deployed, choose(test, seed, passed=SPELT_OTHERWISE), settings)
    if only:
        each = _run_of(only)
        for number, molecules in enumerate(experiment.batches(each)):
            if left := [m for m in molecules if m.name not in experiment.done[only]]:
                experiment.simulate(each, left, number)
        return
    drift = experiment.result.setdefault("nve", {})
    for dtype in ("float32", "float64"):
        if dtype not in drift:
            exact = load(model, engine=engine, dtype=dtype, device="cpu")
            drift[dtype] = nve_drift(exact, nve_ps, nve_seeds, min(2.0, nve_ps))
            store(experiment.name, experiment.result)
            print(f"NVE {dtype}: {drift[dtype]['slopes']} meV/atom/ps", flush=True)
    for each in RUNS:
        experiment.run(each)


def _run_of(name: str) -> Run:
    for each in RUNS:
        if each.name == name:
            return each
    raise InputError(f"no run is called {name!r}; there are {', '.join(r.name for r in RUNS)}")


def _check_state(name: str, settings: dict[str, Any]) -> None:
    """Trajectories of other settings must not be gone on with."""
    mark = STATE / name / "settings.json"
    told = json.dumps({k: v for k, v in settings.items() if not k.startswith("nve")}, indent=1)
    if mark.is_file() and mark.read_text() != told:
        raise InputError(
            f".state/{name} holds trajectories of other settings; move it away to start anew"
        )
    write_atomically(mark, told.encode())


@app.command()
def render(model: str = SHIPPED) -> None:
    """Write results/dynamics.md and dynamics.png."""
    name = of_model(NAME, model)
    result = stored(name)
    page = write_page(
        name, f"# Dynamics of unseen molecules\n\n{tables(result)}\n\n{listing(result)}"
    )
    print(f"wrote {page.name} and {save_plot(plot(result), name).name}")


def tables(result: dict[str, Any]) -> str:
    """Markdown summary, from the results alone."""
    settings, rows = result["settings"], []
    for name, run in result["runs"].items():
        for kind in KINDS:
            same = [row for row in run["rows"] if row["kind"] == kind]
            if not same:
                continue
            deviations = [
                r["largest_deviation"] for r in same if r["largest_deviation"] is not None
            ]
            rows.append(
                [
                    name,
                    f"{run['temperature']:g} K, {run['picoseconds'] * settings['share']:g} ps",
                    kind,
                    f"{sum(map(sound, same))} of {len(same)}",
                    f"{np.mean([r['stable_ps'] for r in same]):.1f}",
                    f"{max(deviations):.2f}" if deviations else "-",
                    str(sum(r["lost"] for r in same)),
                ]
            )
    header = "run | length | molecules | whole | mean stable ps | largest bond deviation, Å | NaN"
    broken = [
        f"- {name}: {r['name']}, {r['broke'] or 'NaN or explosion'} after {r['stable_ps']:g} ps"
        for name, run in result["runs"].items()
        for r in run["rows"]
        if not sound(r)
    ]
    return "\n".join(
        [
            f"Molecules of the test part, Langevin at {settings['friction']:g}/ps,"
            f" {settings['timestep']:g} fs, float32, a frame every {settings['frame_fs']:g} fs."
            f" Whole: no covalent bond off its mean at 300 K by more than {BROKEN} Å, no NaN.",
            "",
            table(header.split(" | "), rows),
            "",
            *([*broken, ""] if broken else []),
            conservation(result),
        ]
    )


def conservation(result: dict[str, Any]) -> str:
    """Drift with its confidence interval."""
    told = []
    for dtype, nve in result.get("nve", {}).items():
        mean, half = interval_of(nve["slopes"])
        told.append([dtype, f"{mean:+.4f} ± {half:.4f}", f"{nve['fluctuation']:.3f}"])
    if not told:
        return "Energy drift: not measured."
    one = next(iter(result["nve"].values()))
    return (
        f"Drift of the total energy of alanine dipeptide at about {one['temperature']:.0f} K, "
        f"{one['picoseconds']:g} ps at constant energy and {one['timestep']:g} fs, "
        f"{len(one['slopes'])} seeds; ± is the 95 % confidence interval of the mean:\n\n"
        + table(["precision", "drift, meV/atom/ps", "fluctuation, meV/atom"], told)
    )


def listing(result: dict[str, Any]) -> str:
    header = "run | molecule | kind | atoms | stable ps | largest bond deviation, Å | K"
    rows = [
        [
            name,
            f"`{r['name']}`",
            r["kind"],
            str(r["atoms"]),
            f"{r['stable_ps']:g}" + ("" if sound(r) else f" ({r['broke'] or 'lost'})"),
            "-" if r["largest_deviation"] is None else f"{r['largest_deviation']:.2f}",
            "-" if r["temperature"] is None else f"{r['temperature']:.0f}",
        ]
        for name, run in result["runs"].items()
        for r in run["rows"]
    ]
    told = f"Seed {result['settings']['seed']}. {made_at(result)}"
    return f"{table(header.split(' | '), rows)}\n\n{told}"


def plot(result: dict[str, Any]) -> Any:
    """Largest deviation of a bond, a dot a molecule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5))
    axes = figure.subplots()
    for column, run in enumerate(result["runs"].values()):
        for color, kind in enumerate(KINDS):
            rows = [r for r in run["rows"] if r["kind"] == kind and r["largest_deviation"]]
            at = column + 0.2 * (color - 1) + np.linspace(-0.05, 0.05, len(rows))
            label = kind if column == 0 else None
            worst = [r["largest_deviation"] for r in rows]
            axes.plot(at, worst, ".", color=f"C{color}", label=label)
    axes.axhline(BROKEN, color="0.5", ls="--", lw=0.8)
    axes.set(ylabel="largest bond deviation, Å", yscale="log", xticks=range(len(result["runs"])))
    axes.set_xticklabels(list(result["runs"]))
    axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    app()
