"""Range estimators: each one a frozen dataclass from the statistics of a tensor to its amax."""

from __future__ import annotations

import dataclasses
import re

from qcompiler.calibrators.base import Calibrator
from qcompiler.calibrators.entropy import Entropy
from qcompiler.calibrators.headroom import Headroom
from qcompiler.calibrators.minmax import MinMax
from qcompiler.calibrators.mse import MSE
from qcompiler.calibrators.percentile import Percentile
from qcompiler.errors import UsageError
from qcompiler.support.suggest import did_you_mean

ALL: tuple[type[Calibrator], ...] = (Entropy, Percentile, MinMax, MSE, Headroom)

__all__ = ["ALL", "MSE", "Calibrator", "Entropy", "Headroom", "MinMax", "Percentile", "parse"]

_FORM = re.compile(r"\s*([\w-]+)\s*(?:\{(.*)\})?\s*", re.DOTALL)
_READ = {"int": int, "float": float, "Format": str}


def parse(text: str) -> Calibrator:
    """Reads `name` or `name{option=value,...}`, such as `entropy` or `percentile{p=99.9}`; the inverse of `str()`.

    Raises:
        UsageError: an unknown calibrator or option, or a value that is none.
    """
    form = _FORM.fullmatch(text)
    if form is None:
        raise UsageError(
            f"'{text}' is not a calibrator: write a name or name{{option=value}}, as in percentile{{p=99.9}}"
        )
    kinds = {kind.name(): kind for kind in ALL}
    name, inside = form[1].lower(), form[2] or ""
    if name not in kinds:
        raise UsageError(f"unknown calibrator '{form[1]}': {did_you_mean(name, kinds)}")
    types = {option.name: str(option.type) for option in dataclasses.fields(kinds[name])}
    options: dict[str, object] = {}
    for part in filter(None, (piece.strip() for piece in inside.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in types:
            raise UsageError(f"calibrator '{name}' has no option '{key}': {did_you_mean(key, types)}")
        if key in options:
            raise UsageError(f"calibrator '{text}' sets the option '{key}' twice: keep one")
        if not equals:
            raise UsageError(f"option '{key}' of calibrator '{name}' has no value: write {kinds[name]()}")
        try:
            options[key] = _READ[types[key]](value)
        except ValueError as error:
            raise UsageError(
                f"option '{key}' of calibrator '{name}' takes a value of type {types[key]}, but got '{part}': "
                f"write {kinds[name]()}"
            ) from error
    return kinds[name](**options)
