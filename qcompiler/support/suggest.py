"""Did you mean: the one sentence that turns a typo into an answer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A clause to append to an error message: the closest known name, or all of them when none is close.

    `did_you_mean("precison", ["precision", "target"])` is `did you mean 'precision'?`.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known are: {', '.join(names)}" if names else "there are none"
