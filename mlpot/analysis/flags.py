"""How the guard did beside simulations: what it flagged of those that broke, and of the others."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlpot.analysis.criteria import BOND_DEPARTURE

Json = dict[str, Any]


def guarded(runs: Sequence[Json]) -> Json | None:
    """Of lines of ``runs`` in a summary that a guard looked on at; None if there are none.

    ``runs``, ``picoseconds`` that were simulated until a break or the end; ``whole`` and, of these,
    ``flagged_whole``; ``broke`` and, of these, ``flagged_before``: while all bonds were whole, with
    the median of ``lead_ps`` from then to the first frame that was broken, and ``for_length``, how
    many of these flags were for a length between two atoms. What relaxing broke is apart, as it is
    told after the fact: ``broke_relaxing`` and, of these, ``flagged_relaxing``.
    """
    mine = [one for one in runs if one.get("guarded")]
    if not mine:
        return None
    relaxing = [one for one in mine if lost_at_start(one)]
    broke = [one for one in mine if one["broke"] and not lost_at_start(one)]
    whole = [one for one in mine if not one["broke"]]
    before = [one for one in broke if early(one)]
    lead = [one["stable_ps"] - one["flag"]["ps"] for one in before]
    return {
        "runs": len(mine),
        "picoseconds": sum(one["stable_ps"] for one in mine),
        "whole": len(whole),
        "flagged_whole": sum(one["flag"] is not None for one in whole),
        "broke": len(broke),
        "flagged_before": len(before),
        "lead_ps": float(np.median(lead)) if lead else None,
        "for_length": sum(bool(one["flag"]["reason"]) for one in before),
        "broke_relaxing": len(relaxing),
        "flagged_relaxing": sum(one["flag"] is not None for one in relaxing),
    }


def lost_at_start(run: Json) -> bool:
    """Was a run broken before its first step, by what relaxing made of the molecule?"""
    return bool(run["broke"] and not run["stable_ps"])


def early(run: Json) -> bool:
    """Was a run flagged while all its bonds were whole? A flag may fall between two frames, so it
    brings along how far off bonds were then."""
    flag = run["flag"]
    if flag is None or flag["ps"] > run["stable_ps"]:
        return False
    return bool(flag["departure"] <= BOND_DEPARTURE)
