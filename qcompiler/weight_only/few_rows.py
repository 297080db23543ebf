"""What to say where weights are fitted to few rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qcompiler.weight_only.stored import Stored, StoredWeight


ENOUGH = 8  # rows for each input channel, from which on the error on other rows is nearly that on the fitted ones
_NAMED = 3


def warnings(stored: Stored | None) -> Sequence[str]:
    """A warning with the layers that are fitted to few rows, and how much data would do; mostly none."""
    if stored is None:
        return ()
    few = [one for one in stored.weights.values() if 0 < one.rows < ENOUGH * one.layer.depth]
    if not few:
        return ()
    few.sort(key=_share)
    named = ", ".join(f"'{one.layer.node}' {one.rows} rows for {one.layer.depth} channels" for one in few[:_NAMED])
    more = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
    fitted = sum(one.method.endswith("gptq") for one in few)
    result = f"gptq still errs least in {fitted} of them" if fitted else "gptq gains nothing in any of them"
    text = (
        f"{len(few)} of {len(stored.weights)} weights are rounded with few rows of data, less than {ENOUGH} for each "
        f"input channel: {named}{more}. Judged by other rows, {result}. For all that it can do, give {_times(few[0])} "
        "times as much data"
    )
    return (text,)


def _share(one: StoredWeight) -> float:
    return one.rows / one.layer.depth


def _times(one: StoredWeight) -> int:
    return -(-ENOUGH * one.layer.depth // one.rows)
