"""What the runs of `ablation` come to: a table, a verdict and a plot."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from ablation_starts import (  # this folder is where the script runs
    BRIEFLY,
    BY_ENERGY,
    PUBLISHED_LOOP,
    TORSIONS,
    Noise,
)
from experiment import (
    SPELT_OTHERWISE,
    made_at,
    table,
    with_spread,
)

#: names of starts; the others are "denoised NOISE Å HOW" and those of geom2vec
NOTHING, LONGER, BRIEFLY_LONGER = "nothing", "nothing, longer", "nothing, briefly longer"

BESIDE_THE_HEAD = (
    "- By energy: noise is predicted as the gradient of an energy, whose head the supervised "
    "training goes on with. A step takes twice the time, so there are half as many; a geometry has "
    "one noise and not another one each time; and the loss is that of forces. So it is not the "
    "head alone that differs."
)

Groups = dict[tuple[str, int], list[dict[str, Any]]]


def grouped(result: dict[str, Any]) -> Groups:
    """Runs that differ in their seed only, by start and frames."""
    groups: Groups = {}
    for row in result["runs"].values():
        groups.setdefault((row["start"], row["frames"]), []).append(row)
    return groups


def gains(groups: Groups, start: str, frames: int) -> list[float]:
    """Forces MAE from nothing over that from a start, for each seed that has both."""
    base = {r["seed"]: r["test_meV"]["force_mae"] for r in groups.get((NOTHING, frames), [])}
    same = groups.get((start, frames), [])
    return [base[r["seed"]] / r["test_meV"]["force_mae"] for r in same if r["seed"] in base]


def verdict(groups: Groups) -> str:
    """Does denoising pay: with its time for nothing, and with its time spent on labels instead?"""
    sizes = sorted({frames for _, frames in groups})
    starts = sorted({start for start, _ in groups if start.startswith("denoised")})
    told = []
    for start in starts:
        instead = BRIEFLY_LONGER if start.endswith(BRIEFLY) else LONGER
        both = [(n, gains(groups, start, n), gains(groups, instead, n)) for n in sizes]
        told += [
            f"- {n:,} frames: {start} makes forces MAE {np.mean(mine):.2f} times smaller than "
            "nothing with the same supervised steps; the minutes meant for it spent on labels, "
            f"{np.mean(longer):.2f} times: denoising "
            + ("pays" if np.mean(mine) > np.mean(longer) else "does not pay")
            + " for its own time."
            for n, mine, longer in both
            if mine and longer
        ]
    told += best_noises(groups, starts, sizes)
    if any(start.endswith(BY_ENERGY) for start in starts):
        told.append(BESIDE_THE_HEAD)
    if told:
        told.append(
            "- A backbone is denoised once and can be started from any number of times, and then "
            "its own time counts for less. Several trainings from one were not measured."
            + untried(starts)
        )
    return "\n".join(told)


def untried(starts: Sequence[str]) -> str:
    ways = {
        TORSIONS: "rotations about bonds",
        BY_ENERGY: "an energy that denoises",
        BRIEFLY: "a quarter of the denoising steps",
    }
    left = [told for way, told in ways.items() if not any(s.endswith(way) for s in starts)]
    return f" Not tried: {', '.join(left)}." if left else ""


def best_noises(groups: Groups, starts: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Which noise gains most, of seeds that all of them have."""
    told = []
    for n in sizes:
        same_time = [s for s in starts if (s, n) in groups and not s.endswith(BRIEFLY)]
        rows = {start: groups[start, n] for start in same_time}
        if len(rows) < 2:
            continue
        seeds = set.intersection(*({r["seed"] for r in same} for same in rows.values()))
        if seeds:
            errors = {
                start: np.mean([r["test_meV"]["force_mae"] for r in same if r["seed"] in seeds])
                for start, same in rows.items()
            }
            order = sorted(errors, key=lambda start: errors[start])
            listed = ", ".join(f"{start} {errors[start]:.1f}" for start in order)
            told.append(
                f"- {n:,} frames, {len(seeds)} seed{'s' * (len(seeds) > 1)} that these have, "
                f"forces MAE: {listed} meV/Å."
            )
    return told


def denoisings(result: dict[str, Any]) -> list[str]:
    """A line on the backbones that were denoised, if any was."""
    told = [
        f"{Noise.parse(noise).start.removeprefix('denoised ')}: {d['steps']:,} steps on "
        f"{d['geometries']:,} geometries in "
        f"{d['minutes']:.1f} min, mean squared error in units of the noise "
        f"{d['validation_loss']:.3f}"
        for noise, d in result["denoised"].items()
    ]
    elsewhere = (
        " Minutes are of several machines and beside other jobs, and errors of other frames for"
        " validation."
    )
    rest = elsewhere if result.get("went_on") else ""
    return [f"Denoising, {'; '.join(told)}.{rest}"] if told else []


def tables(result: dict[str, Any]) -> str:
    """Markdown, from the results alone."""
    groups, settings = grouped(result), result["settings"]

    def of(rows: Sequence[dict[str, Any]], name: str, digits: int = 1) -> str:
        return with_spread([r["test_meV"][name] for r in rows], digits)

    def gain(start: str, frames: int) -> str:
        ratios = gains(groups, start, frames)
        return with_spread(ratios, 2) if ratios else "-"

    def minutes(row: dict[str, Any]) -> float:
        """Of training: wall time of a run depends on what else the machine was doing."""
        kind = "geom2vec" if row["start"].startswith("geom2vec") else "own"
        return row["steps"] * result["seconds_per_step"][kind] / 60

    rows = [
        [
            f"{frames:,}",
            start,
            str(len(same)),
            of(same, "force_mae"),
            of(same, "force_rmse"),
            of(same, "energy_mae", 2),
            of(same, "energy_rmse", 2),
            gain(start, frames),
            f"{same[0]['steps']:,}",
            f"{same[0]['structures_seen']:,}",
            f"{minutes(same[0]):.1f}",
        ]
        for (start, frames), same in sorted(groups.items(), key=lambda item: item[0][1])
    ]
    header = "frames | start | seeds | F MAE | F RMSE | E MAE | E RMSE | gain | steps"
    told = [
        f"{kind}: {result['seconds_per_step'][kind]:.3f} s a step"
        for kind in result["seconds_per_step"]
    ]
    own = settings["model"]
    return "\n".join(
        [
            "Errors on the test molecules of the drug-like set, dimers among them (forces meV/Å,"
            f" energies meV/atom; {len(SPELT_OTHERWISE)} of them are in training under another"
            " spelling, the same for all starts),"
            f" {own['layers']} layers x {own['channels']} channels, {own['cutoff']:g} Å,"
            f" {settings['minutes']:g} minutes of supervised training on {settings['threads']}"
            f" threads ({settings['optimizer']}), molecules without P and I. Gain: forces MAE from"
            " nothing divided by this one, same seed. ± is half the range over seeds, which set"
            " initial weights and choose the frames. Minutes are steps times the seconds of a"
            " step, timed once; those of denoising are"
            f" {settings['denoise_minutes']:g} by that count, whatever they took. Learning rates:"
            f" {PUBLISHED_LOOP['learning_rate']:g} for geom2vec ({PUBLISHED_LOOP['optimizer']}),"
            f" {settings['learning_rate']:g} for the others.",
            "",
            table([*header.split(" | "), "structures seen", "minutes"], rows),
            "",
            *([told_all, ""] if (told_all := verdict(groups)) else []),
            *denoisings(result),
            f"Speed, {'; '.join(told)}. {made_at(result)}",
        ]
    )


def plot(result: dict[str, Any]) -> Any:
    """Forces MAE against the size of the supervised set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    groups = grouped(result)
    for color, start in enumerate(dict.fromkeys(start for start, _ in groups)):
        sizes = sorted(frames for name, frames in groups if name == start)
        errors = [[r["test_meV"]["force_mae"] for r in groups[start, n]] for n in sizes]
        axes.plot(sizes, [np.mean(e) for e in errors], "o-", color=f"C{color}", label=start)
        for size, each in zip(sizes, errors, strict=True):
            axes.plot([size] * len(each), each, ".", color=f"C{color}", alpha=0.5)
    axes.set(xscale="log", yscale="log", xlabel="frames", ylabel="forces MAE, meV/Å")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3, which="both")
    return figure
