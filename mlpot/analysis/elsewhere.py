"""Runs of a suite that another machine has done: their lines, without their frames."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from mlpot.errors import DataError

Json = dict[str, Any]


def portable(line: Json) -> bool:
    """Is a line of ``runs`` in a summary all that another summary needs of that run?

    Drift and structure need more: series and frames. A run that was judged before the mean bond
    lengths at 300 K were known needs its frames too, to be judged by them.
    """
    measured = line["ensemble"] == "nve" or line["set"] == "reference"
    return not (measured or line["provisional"])


class Elsewhere(NamedTuple):
    """What is known of such runs.

    Attributes:
        runs: lines of ``runs`` of a summary; only those that are `portable` count.
        lengths: molecule -> mean lengths of its bonds (Å) that these were judged by.
        rules: the rules that they were judged by.
    """

    runs: Sequence[Json] = ()
    lengths: Mapping[str, Sequence[float]] = MappingProxyType({})
    rules: Json | None = None

    def check(self, rules: Json) -> None:
        """Raises DataError: these runs were judged by other rules."""
        if self.runs and self.rules != rules:
            raise DataError(
                "runs of another machine were judged by other rules than those of this mlpot. "
                "Leave the file that holds them out, and run them again"
            )

    def asked(self, keys: set[str]) -> list[Json]:
        """Lines of these runs, each once."""
        wanted = (one for one in self.runs if one["key"] in keys and portable(one))
        return list({one["key"]: one for one in wanted}.values())
