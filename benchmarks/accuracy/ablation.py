"""What denoising is worth: one supervised training from different starts, on growing sets.

    python benchmarks/accuracy/ablation.py run --minutes 5      # resumable, run by run (--plan)
    python benchmarks/accuracy/ablation.py render               # results/ablation.md and .png

Our own backbone starts from nothing or from a denoised backbone, with the same steps, which are
those that fit the given minutes. "nothing, longer" gets the minutes of denoising on top. The
published geom2vec ViSNet is larger and slower: once it gets the same minutes, once the same
steps. Training, validation and test molecules are those of the zoo's recipe; larger sets hold
the smaller ones of the same seed. `--noise` takes what `ablation_starts.py` lists.
"""

import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer
from ablation_starts import (
    BY_ENERGY,
    PUBLISHED_LOOP,
    SHARE,
    Noise,
    denoise_by_energy,
    minutes_of,
    of_start,
    remaining_loss,
)
from ablation_tables import BRIEFLY_LONGER, LONGER, NOTHING, plot, tables
from experiment import (  # this folder is where the script runs
    DATA,
    DRUGLIKE,
    HELD_OUT,
    LEVEL,
    SPELT_OTHERWISE,
    STATE,
    WEIGHTS,
    Parts,
    begun,
    divide,
    empty_folder,
    millis,
    quiet,
    save_plot,
    seconds_per_step,
    store,
    stored,
    write_page,
)

from mlpot.data.formats import read
from mlpot.data.record import Record
from mlpot.errors import InputError
from mlpot.models.checkpoint import ModelInfo, load, save, write_atomically
from mlpot.models.potential import Denoiser
from mlpot.models.published import load_geom2vec_visnet
from mlpot.models.visnet import ViSNetConfig
from mlpot.train.finetune import FinetuneConfig, FinetuneLoop, finetune
from mlpot.train.loop import LoopConfig
from mlpot.train.loop import quiet as quiet_lightning
from mlpot.train.pretrain import PretrainConfig, pretrain

NAME = "ablation"
GEOM2VEC = WEIGHTS / "geom2vec" / "visnet_l6_h64_rbf64_r75.pth"
MODEL = "model.safetensors"
#: in minutes of denoising
LONGER_BY = {LONGER: 1.0, BRIEFLY_LONGER: SHARE}
#: P and I are left out: a thousand frames at random may hold none of them
ELEMENTS = frozenset({1, 6, 7, 8, 9, 16, 17, 35})
SAME_TIME, SAME_STEPS = "geom2vec, same time", "geom2vec, same steps"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Case(NamedTuple):
    """One run."""

    start: str
    frames: int
    seed: int

    @property
    def key(self) -> str:
        return f"{self.start} | {self.frames} | {self.seed}"

    @property
    def architecture(self) -> str:
        return "geom2vec" if self.start.startswith("geom2vec") else "own"

    @property
    def noise(self) -> Noise | None:
        """Of the denoised backbone it starts from."""
        return of_start(self.start)


def cases(
    frames: Sequence[int], seeds: int, noises: Sequence[Noise], published: bool
) -> list[Case]:
    """All runs, the smallest set first: it has all the seeds, the others one."""
    briefly = [BRIEFLY_LONGER] if any(noise.share < 1 for noise in noises) else []
    starts = [NOTHING, *(noise.start for noise in noises), *briefly, LONGER]
    starts += [SAME_TIME, SAME_STEPS] if published else []
    return [
        Case(start, count, seed)
        for count in sorted(frames)
        for seed in range(seeds if count == min(frames) else 1)
        for start in starts
    ]


def held_out() -> Path:
    """The zoo's held-out molecules, with the test part as it was when the first runs were tested:
    all starts are to be compared on the same frames, also on those that are left out since then."""
    listed = json.loads(HELD_OUT.read_text(encoding="utf-8"))
    listed["test"] += sorted(SPELT_OTHERWISE)
    listed["left_out"] = [name for name in listed["left_out"] if name not in SPELT_OTHERWISE]
    path = STATE / NAME / HELD_OUT.name
    write_atomically(path, json.dumps(listed).encode())
    return path


def recipe(case: Case, steps: int, settings: dict[str, Any]) -> FinetuneConfig:
    own = {k: settings[k] for k in PUBLISHED_LOOP}
    return FinetuneConfig(
        name=case.key,
        held_out=str(held_out()),
        level=LEVEL,
        model=ViSNetConfig(**settings["model"]),
        floor=0.0,  # nothing but the start is to differ
        loop=FinetuneLoop(
            steps=steps,
            batch_atoms=settings["batch_atoms"],
            **(own if case.architecture == "own" else PUBLISHED_LOOP),
            warmup=min(200, steps // 5),
            ema=0.995,
            validate_every=-(-steps // 5),  # rounded up, so that there are five
            seed=case.seed,
            threads=settings["threads"],
            compile=settings["compile"],
        ),
    )


def denoising_recipe(noise: Noise, steps: int, settings: dict[str, Any]) -> PretrainConfig:
    return PretrainConfig(
        name=noise.start,
        noise=noise.sigma,
        torsions=noise.angle,
        held_out=str(held_out()),
        model=ViSNetConfig(**settings["model"]),
        loop=LoopConfig(
            steps=steps,
            batch_atoms=settings["batch_atoms"],
            optimizer=settings["optimizer"],
            learning_rate=settings["denoise_rate"],
            warmup=min(300, steps // 5),
            validate_every=-(-steps // 5),  # rounded up, so that there are five
            threads=settings["threads"],
            compile=settings["compile"],
        ),
    )


class Ablation:
    """The experiment with its results so far."""

    def __init__(self, data: Parts, settings: dict[str, Any]):
        self.data, self.settings = data, settings
        self.result = begun(NAME, settings)
        for part in ("seconds_per_step", "denoised", "runs"):
            self.result.setdefault(part, {})

    def run(self, case: Case) -> dict[str, Any]:
        """Train and test; the row of the results."""
        start, steps = self.start(case), self.steps(case)
        records = self.data.chosen(case.frames, case.seed, self.settings["held"])
        folder = empty_folder(NAME, "run")
        begin = time.perf_counter()
        config = recipe(case, steps, self.settings)
        info, errors = finetune(records, config, folder, start, progress=False, report=quiet)
        model = load(folder / MODEL)[0]
        atoms = np.mean([len(r.numbers) for r in records[: case.frames]])
        row = {
            **case._asdict(),
            "steps": config.loop.steps,
            "minutes": (time.perf_counter() - begin) / 60,
            "structures_seen": round(config.loop.steps * config.loop.batch_atoms / atoms),
            "parameters": sum(p.numel() for p in model.parameters()),
            "validation_meV": millis(info.provenance["validation"]),
            "test_meV": millis(errors._asdict()),
        }
        self.result["runs"][case.key] = row
        store(NAME, self.result)
        return row

    def steps(self, case: Case) -> int:
        """What fits the minutes of this run, but for the one with the steps of the others."""
        minutes = self.settings["minutes"]
        minutes += LONGER_BY.get(case.start, 0.0) * self.settings["denoise_minutes"]
        timed = "own" if case.start == SAME_STEPS else case.architecture
        return max(2, round(60 * minutes / self.seconds_per_step(timed)))

    def seconds_per_step(self, architecture: str) -> float:
        """Measured once, so that all runs of an architecture have the same steps."""
        known = self.result["seconds_per_step"]
        if architecture not in known:
            case = Case(SAME_TIME if architecture == "geom2vec" else NOTHING, 1000, 0)
            start, records = self.start(case), self.data.chosen(1000, 0, 40)

            def train(steps: int, folder: Path) -> None:
                config = recipe(case, steps, self.settings)
                finetune(records, config, folder, start, progress=False, report=quiet)

            known[architecture] = seconds_per_step(train, NAME, "timing")
            store(NAME, self.result)
        return known[architecture]

    def start(self, case: Case) -> Path | None:
        """The model file that a run starts from."""
        if case.architecture == "geom2vec":
            return geom2vec()
        return self.denoised(case.noise) if case.noise else None

    def denoised(self, noise: Noise) -> Path:
        """The denoised backbone; made once, for all runs that start from it."""
        folder = STATE / NAME / noise.folder
        if noise.key not in self.result["denoised"] or not (folder / MODEL).is_file():
            records = self.data.chosen(len(self.data.train), 0, self.settings["held"])
            info = self.denoise(noise, records, folder)  # goes on where it was cut off
            self.result["denoised"][noise.key] = {
                "steps": info.provenance["recipe"]["loop"]["steps"],
                "geometries": len(self.data.train),
                "minutes": minutes_of(folder),
                "validation_loss": remaining_loss(info),
            }
            store(NAME, self.result)
        return folder / MODEL

    def denoise(self, noise: Noise, records: Sequence[Record], out: Path) -> ModelInfo:
        """For the minutes of denoising, or its share of them."""
        if noise.how == BY_ENERGY:
            minutes = self.settings["denoise_minutes"]
            steps = max(2, round(60 * minutes / self.seconds_per_step("own")))
            own = recipe(Case(noise.start, 0, 0), steps, self.settings)
            loop = denoising_recipe(noise, steps, self.settings).loop
            same = {name: getattr(loop, name) for name in ("learning_rate", "warmup", "ema")}
            own = own.model_copy(update={"loop": own.loop.model_copy(update=same)})
            return denoise_by_energy(records, noise.sigma, own, out)

        def train(steps: int, folder: Path, some: Sequence[Record]) -> ModelInfo:
            config = denoising_recipe(noise, steps, self.settings)
            return pretrain(some, config, folder, progress=False, report=quiet)

        held = 2 * self.settings["held"]
        steps = self.denoising_steps(train, [*records[:1000], *records[-held:]])
        return train(max(2, round(noise.share * steps)), out, records)

    def keep_steps(self, seconds: Sequence[str], denoise_steps: int) -> None:
        """Take these instead of timing, so that another machine does the same steps."""
        known = self.result["seconds_per_step"]
        for item in seconds:
            architecture, _, value = item.partition("=")
            known.setdefault(architecture, float(value))
        if denoise_steps:
            self.result.setdefault("denoise_steps", denoise_steps)

    def denoising_steps(
        self, train: Callable[[int, Path, Sequence[Record]], Any], few: Sequence[Record]
    ) -> int:
        """What fits the minutes of denoising; the same for every noise, whichever was first."""
        if steps := self.result.get("denoise_steps"):
            return int(steps)
        for key, known in self.result["denoised"].items():
            if not Noise.parse(key).how:
                return int(known["steps"])
        per = seconds_per_step(lambda steps, out: train(steps, out, few), NAME, "timing")
        steps = max(2, round(60 * self.settings["denoise_minutes"] / per))
        self.result["denoise_steps"] = steps  # whichever noise is the first
        return steps


def geom2vec() -> Path:
    """The published backbone as a model file to start from."""
    path = STATE / NAME / "geom2vec.safetensors"
    if not path.is_file():
        backbone, head = load_geom2vec_visnet(GEOM2VEC)
        info = ModelInfo(
            kind="denoiser",
            name="geom2vec ViSNet",
            config=backbone.config.model_dump(),
            # of the energy head that comes after it: without softening, forces of atoms in
            # symmetric places have no second derivative
            head_softening=0.1,
            elements=sorted(ELEMENTS),
            level="coordinate denoising; no energies",
        )
        save(Denoiser(backbone, head), info, path)
    return path


# --- commands --------------------------------------------------------------------------------

FRAMES = typer.Option([1000, 5000, 20000], help="sizes of the supervised set")
STEP_TIMES = typer.Option([], help="own=S, geom2vec=S: seconds of a step, instead of timing it")
NOISES = typer.Option(["0.1"], help="Å, and how: '0.1 + torsions', '0.1 by energy', '0.2 briefly'")


@app.command()
def run(
    frames: list[int] = FRAMES,
    seeds: int = typer.Option(2, help="for the smallest set; one for the others"),
    noise: list[str] = NOISES,
    published: bool = typer.Option(True, help="geom2vec as well, where its weights are"),
    minutes: float = 5.0,
    denoise_minutes: float = 10.0,
    layers: int = 3,
    channels: int = 64,
    cutoff: float = 5.0,
    held: int = 500,
    batch_atoms: int = 384,
    optimizer: str = "adamw",
    learning_rate: float = 2e-3,
    denoise_rate: float = 1e-3,
    threads: int = 2,
    compile: str = "yes",
    step_time: list[str] = STEP_TIMES,
    denoise_steps: int = typer.Option(0, help="instead of what fits --denoise-minutes here"),
    plan: bool = typer.Option(False, help="only say what is to be done"),
) -> None:
    """Do what is not in the results yet."""
    quiet_lightning()
    own = {"layers": layers, "channels": channels, "heads": channels, "cutoff": cutoff}
    settings = {
        "model": own,
        "minutes": minutes,
        "denoise_minutes": denoise_minutes,
        "held": held,
        "batch_atoms": batch_atoms,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "denoise_rate": denoise_rate,
        "threads": threads,
        "compile": compile,
    }
    if published and not GEOM2VEC.is_file():
        raise InputError(f"no {GEOM2VEC.name} beside the clone; leave it out with --no-published")
    todo = cases(frames, seeds, [Noise.parse(text) for text in noise], published)
    done = set(begun(NAME, settings).get("runs", {}))
    todo = [case for case in todo if case.key not in done]
    if plan or not todo:
        print(*(case.key for case in todo), f"{len(todo)} runs to do", sep="\n")
        return
    experiment = Ablation(divide(read(DATA / DRUGLIKE), ELEMENTS, held_out()), settings)
    experiment.keep_steps(step_time, denoise_steps)
    for case in todo:
        row = experiment.run(case)
        print(f"{case.key}: {row['minutes']:.1f} min, {row['test_meV']}", flush=True)


def options(result: dict[str, Any]) -> list[str]:
    """The words after the script's name that do it again: a command for all noises that were tried
    on the same sets, those that were tried on most first, with the starts that have no noise."""
    settings, rows = result["settings"], list(result["runs"].values())
    told = {
        **{k: settings["model"][k] for k in ("layers", "channels", "cutoff")},
        **{k: settings[k] for k in ("minutes", "denoise_minutes")},
    }
    words = [f"--{k.replace('_', '-')} {v:g}" for k, v in told.items()]
    words += [f"--step-time {k}={v:.4g}" for k, v in result["seconds_per_step"].items()]
    plain = [d for key, d in result["denoised"].items() if not Noise.parse(key).how]
    known = result.get("denoise_steps") or next((d["steps"] for d in plain), 0)
    words += [f"--denoise-steps {known}"] if known else []
    alike: dict[tuple[tuple[int, ...], int], list[str]] = {}
    for noise in result["denoised"]:
        same = [row for row in rows if row["start"] == Noise.parse(noise).start]
        frames = tuple(sorted({row["frames"] for row in same}))
        if frames:  # or it was only denoised so far
            seeds = sum(row["frames"] == min(frames) for row in same)
            alike.setdefault((frames, seeds), []).append(noise)
    commands = []
    for (frames, seeds), noises in sorted(alike.items(), key=lambda item: -len(item[0][0])):
        which = [f"--noise {shlex.quote(noise)}" for noise in noises]
        which += [f"--frames {n}" for n in frames]
        rest = [f"--seeds {seeds}", *(["--no-published"] if commands else [])]
        commands.append(" ".join(["run", *words, *which, *rest]))
    return commands


@app.command()
def render() -> None:
    """Write results/ablation.md and ablation.png."""
    result = stored(NAME)
    page = write_page(NAME, f"# What denoising is worth\n\n{tables(result)}")
    print(f"wrote {page.name} and {save_plot(plot(result), NAME).name}")


if __name__ == "__main__":
    app()
