"""Words that tables of a suite share, wherever they are shown: in a terminal, a page, a README."""

from mlpot.analysis.records import Json

#: after an interval that is over molecules
MARK = "†"

INTERVALS = (
    "Intervals of shares are Wilson's, over runs. Those of picoseconds are over the seeds of each "
    f"molecule, or, where marked {MARK}, over molecules, each of which has one seed there."
)

#: what the columns of single rules say
RULES = (
    "The first rule that is broken ends a run. Rule by rule: bonds hold until one is off by 0.5 Å "
    "(MDsim); a hydrogen is lost that is over 2.5 Å from every heavy atom to the end, and "
    "exploded is what is 10,000 K too hot or heats up a hundredfold between frames (both "
    "mlipaudit), or gives a NaN. What has broken is simulated on, until it is in pieces."
)

MEDIAN = (
    "Median by Kaplan and Meier, with a 95 % interval over runs; runs that came whole to the end "
    "count as watched until then."
)

DRIFT = (
    "Intervals are over the seeds of each molecule. Of a run that broke only the part before "
    "counts, if it is half of the run or more. Largest: the molecule whose mean drift is furthest "
    "from 0."
)


def marked(text: str, group: Json, name: str = "stable_ps") -> str:
    """An interval of picoseconds of a group, with what it is over."""
    low, high = group[name][1:]
    return f"{text} {MARK}" if group["over"] == "molecules" and low != high else text


def median_words(ramp: Json) -> str:
    """1900 (1500 to 2400); K at which half of the runs of a ramp had broken."""
    value, low, high = (f"over {ramp['to']:g}" if v is None else f"{v:.0f}" for v in ramp["median"])
    return value if low == high else f"{value} ({low} to {high})"


def largest_words(drift: Json) -> str:
    """-0.012 (rufinamide); meV/atom/ps."""
    found = drift["largest"]
    return "–" if found is None else f"{found['drift']:+.2g} ({found['molecule']})"


def broke_words(drift: Json) -> str:
    """'2 of 10', and of how many there is a drift where that is not all."""
    counted = drift.get("counted", drift["runs"])
    text = f"{drift['broke']} of {drift['runs']}"
    return text if counted == drift["runs"] else f"{text}, drift of {counted}"


def start_words(summary: Json) -> list[str]:
    """What distorted starts were really off by."""
    off = {g["distortion"]: g["displaced"] for g in summary["groups"] if g["displaced"] is not None}
    return [
        f"starts off by {asked:g} Å: {found:.3f} Å (root mean square), as no bond may be off by "
        "more than 0.3 Å there"
        for asked, found in sorted(off.items())
    ]


def judged_otherwise(summary: Json) -> list[tuple[str, str]]:
    """(what, why) of bonds and runs that are not judged as the others are."""
    why = "off by more than 0.5 Å in the reference trajectory itself"
    mobile = summary["mobile"].items()
    told = [(f"not judged: bond {', '.join(names)} of {of}", why) for of, names in mobile]
    if count := summary["provisional"]:
        want = "for want of frames at 300 K, which give the mean that bonds are compared with"
        told.append((f"judged by the input geometry: {count} runs", want))
    return told


def unfinished(summary: Json) -> str:
    """How to go on, where runs are missing."""
    again = "the same command goes on"
    return f"{again}; with --retry it does again what has failed" if summary["failed"] else again


def what_broke(run: Json) -> str:
    """Cause of a run that broke, with the reason where the cause alone says little."""
    bare = run["cause"] in ("integrator", "pieces") and run["reason"]
    return f"{run['cause']}: {run['reason']}" if bare else run["cause"]
