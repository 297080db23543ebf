"""What calibration data lacks, in words: samples, sizes of its free axes, and token ids that can be real."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qcompiler.data.spread import ENOUGH, Spread
from qcompiler.ir.signature import Inputs, InputShapes
from qcompiler.recipe.checks import spell_shape

TABLE = 16  # rows of a table from which an input that picks from it is taken for token ids, not for a kind of token
BATCHES = (8, 32)  # the usual and the largest of an example


def samples(different: int) -> Iterator[str]:
    """A sentence where there are few.

    The chance that the largest of n + 1 samples is the new one is 1 / (n + 1), whatever is measured of them.

    Args:
        different: how many different samples there are, counted up to `ENOUGH`.
    """
    if different < ENOUGH:
        only = "1 sample" if different == 1 else f"{different} different samples"
        yield (
            f"only {only} of data: about one new sample in {different + 1} goes beyond the range of a tensor, and "
            f"hardly any is left to judge by that nothing was fitted to. Give {ENOUGH} at least, better a few hundred, "
            "as different as what the model will meet"
        )


def ids(found: Mapping[str, Spread], rows: Mapping[str, int], called: str) -> Iterator[str]:
    """A sentence for each input of token ids that cannot be real text.

    Args:
        found: values of the inputs.
        rows: of the table that an input picks from, by input.
        called: what people call the data.
    """
    for name, table in rows.items():
        one = found.get(name)
        if one is None or one.kind not in "iu" or table <= TABLE:
            continue
        if one.minimum < 0 or one.maximum >= table:
            yield (
                f"input '{name}' picks from a table of {table} rows, and the {called} has ids from {one.minimum:.0f} "
                f"to {one.maximum:.0f}: ids go from 0 to {table - 1}. Give those of the model's own tokenizer, and pad "
                "with its padding id"
            )
        elif one.minimum == one.maximum and one.count > 1:
            yield (
                f"input '{name}' picks from a table of {table} rows, and the {called} has nothing but the id "
                f"{one.minimum:.0f}: give ids of real text"
            )


def sizes(profiles: Mapping[str, InputShapes], inputs: Inputs) -> Iterator[str]:
    """A sentence where the data pins free axes to one size, so that an engine takes no other.

    Args:
        profiles: smallest, usual and largest shape of each input that has a free axis.
        inputs: the model's.
    """
    pinned = [
        (name, axis, three.max[axis])
        for name, three in profiles.items()
        for axis in range(len(three.max))
        if three.min[axis] == three.max[axis] and not isinstance(_declared(inputs, name, axis), int)
    ]
    if not pinned:
        return
    axes = dict.fromkeys(_axis(inputs, *one) for one in pinned)
    fixed = {(name, axis) for name, axis, _ in pinned}
    example = " ".join(f"--shapes '{name}={_example(three, name, fixed)}'" for name, three in profiles.items())
    several = len(axes) > 1
    yield (
        f"{', '.join(axes)} {'are' if several else 'is'} free in the model and {'have' if several else 'has'} one size "
        "in all of the data, so the engine will take no other. Give data of several sizes, or the smallest, the usual "
        f"and the largest shape, such as {example}"
    )


def _declared(inputs: Inputs, name: str, axis: int) -> int | str | None:
    shape = inputs[name][1]
    return None if shape is None else shape[axis]


def _axis(inputs: Inputs, name: str, axis: int, size: int) -> str:
    """By its name where it has one, so that an axis of several inputs is told once."""
    named = _declared(inputs, name, axis)
    return f"axis '{named}' (size {size})" if named else f"axis {axis} of '{name}' (size {size})"


def _example(three: InputShapes, name: str, fixed: set[tuple[str, int]]) -> str:
    """Three shapes as --shapes takes them: those of the data, with other sizes for the axes that it pins."""
    rows = [list(three.min), list(three.opt), list(three.max)]
    for axis, size in enumerate(three.max):
        if (name, axis) not in fixed:
            continue
        others = (size, *BATCHES) if size < 2 else (size // 2, size, 2 * size)
        for row, other in zip(rows, others, strict=True):
            row[axis] = other
    return ",".join(spell_shape(tuple(row)) for row in rows)
