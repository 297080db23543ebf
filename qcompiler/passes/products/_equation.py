"""Equations of Einsum: labels of the axes of each operand and of the result, with the axes of '...' written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Labels = tuple[str, ...]


class Equation(NamedTuple):
    """Which axis is which.

    Attributes:
        operands: a label for each axis of each operand.
        result: the label of each axis of the result.
    """

    operands: tuple[Labels, ...]
    result: Labels


def parse(text: str, ranks: Sequence[int | None]) -> Equation | str:
    """Reads an equation, or says why it is none that can be written with products of two.

    Axes of an ellipsis are called by their place from its end ('...-1' is its last one), so that those of operands of
    unlike rank meet as in broadcasting. Without an arrow the result has the ellipsis, then every letter that occurs
    once: small letters in front of capitals, as ONNX Runtime has them.

    Args:
        text: the attribute `equation`.
        ranks: of the operands; None where one is not known, which only an ellipsis minds.
    """
    left, arrow, right = "".join(text.split()).partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return f"its equation '{text}' is not one of {len(ranks)} operands"
    operands: list[Labels] = []
    for term, rank in zip(terms, ranks, strict=True):
        if "..." in term and rank is None:
            return "the rank of an operand is not known"
        labels = _labels(term, rank)
        if len(set(labels)) < len(labels):
            return "it reads a diagonal"
        operands.append(labels)
    dots = max((one for one in map(_dots, operands)), key=len)
    result = _explicit(right, dots) if arrow else (*dots, *_once(left))
    known = {label for labels in operands for label in labels}
    if len(set(result)) < len(result) or not set(result) <= known:
        return f"its equation '{text}' has a result that its operands do not give"
    return Equation(tuple(operands), result)


def _labels(term: str, rank: int | None) -> Labels:
    before, dots, behind = term.partition("...")
    rest = (rank or 0) - len(before) - len(behind) if dots else 0
    return (*before, *(f"...-{place}" for place in range(rest, 0, -1)), *behind)


def _dots(labels: Labels) -> Labels:
    return tuple(label for label in labels if label.startswith("..."))


def _explicit(text: str, dots: Labels) -> Labels:
    before, ellipsis, behind = text.partition("...")
    return (*before, *(dots if ellipsis else ()), *behind)


def _once(text: str) -> list[str]:
    letters = [one for one in text if one.isalpha()]
    return sorted((one for one in set(letters) if letters.count(one) == 1), key=lambda one: (one.isupper(), one))
