"""Pipelines as text: `fold-constants,insert-qdq{bits=8,mode=fast}` <-> `Pipeline`.

A pass is its name, its options are its fields; `str(pipeline)` is read back equal by `parse`. Values are read by the
type of the field: bool as true/false, int, float, str, enumerations by value, `none` where None is allowed, and tuples
as `(a,b)`. A comma, brace or parenthesis inside a text is quoted as in JSON.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, Union

from qcompiler.errors import PipelineError, UsageError
from qcompiler.passes.base import Fact, Pass, Pipeline, spell
from qcompiler.support.suggest import did_you_mean

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[^{}(),"]+|[{}(),]')


def parse(text: str, *, known: Iterable[type[Pass]] | None = None, given: frozenset[Fact] = frozenset()) -> Pipeline:
    """Reads a pipeline; `known` are the passes that may be named, None for `qcompiler.passes.catalogue.ALL`.

    Raises:
        PipelineError: an unknown pass or option (with the closest known one), a value of another type, text that is no
            pipeline, or an order that cannot work.
    """
    by_name = {one.name(): one for one in (_all() if known is None else known)}
    return Pipeline(*(_build(part, by_name) for part in _split(text, text)), given=given)


def available() -> dict[str, type[Pass]]:
    """All passes by name, in the order of `qcompiler.passes.catalogue.ALL`."""
    return {one.name(): one for one in _all()}


def describe(kind: type[Pass]) -> dict[str, Any]:
    """Name, help, facts and options of a pass, for listings; an option has its type and default as text."""
    return {
        "name": kind.name(),
        "help": kind.help(),
        "requires": sorted(kind.requires),
        "provides": sorted(kind.provides),
        "breaks": sorted(kind.breaks),
        "exact_to": kind.exact_to,
        "options": [_option(field) for field in dataclasses.fields(kind) if field.init and field.repr],
    }


def _option(field: dataclasses.Field[Any]) -> dict[str, str | None]:
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    written = None if default is dataclasses.MISSING else spell(default)
    return {"name": field.name, "type": str(field.type), "default": written}


def _all() -> tuple[type[Pass], ...]:
    from qcompiler.passes import catalogue

    return tuple(catalogue.ALL)


def _build(text: str, by_name: Mapping[str, type[Pass]]) -> Pass:
    found = re.fullmatch(r"\s*([A-Za-z0-9_-]+)\s*(?:\{(.*)\})?\s*", text, re.DOTALL)
    if not found:
        raise PipelineError(f"'{text.strip()}' is not a pass: write name or name{{option=value,...}}")
    name, listed = found[1], found[2]
    if name not in by_name:
        raise PipelineError(f"there is no pass '{name}': {did_you_mean(name, by_name)}")
    return _with_options(by_name[name], _split(listed, text) if listed and listed.strip() else [], text.strip())


def _with_options(kind: type[Pass], parts: Iterable[str], text: str) -> Pass:
    types_of = typing.get_type_hints(kind)
    options = {field.name: types_of[field.name] for field in dataclasses.fields(kind) if field.init and field.repr}
    values: dict[str, Any] = {}
    for part in parts:
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise PipelineError(f"'{part.strip()}' in '{text}' is not an option: write option=value")
        if option not in options:
            raise PipelineError(f"pass '{kind.name()}' has no option '{option}': {did_you_mean(option, options)}")
        if option in values:
            raise PipelineError(f"option '{option}' stands twice in '{text}'")
        try:
            values[option] = _value(value, options[option])
        except ValueError as error:
            raise PipelineError(f"option '{option}' of pass '{kind.name()}' is {error}, not '{value}'") from error
    try:
        return kind(**values)
    except PipelineError:
        raise
    except (TypeError, ValueError, UsageError) as error:
        raise PipelineError(f"pass '{text}' cannot be made: {error}") from error


def _value(text: str, kind: Any) -> Any:
    """Reads a value of an annotated type; ValueError says what was expected."""
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):
        return _either(text, typing.get_args(kind))
    if origin is tuple:
        return _tuple(text, typing.get_args(kind))
    if origin is typing.Literal:
        return _choice(text, {str(one): one for one in typing.get_args(kind)})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choice(_text(text), {str(one.value): one for one in kind})
    reader = _READERS.get(kind)
    if reader is None:
        raise ValueError(f"of type {kind}, which has no text form")
    return reader(text)


def _either(text: str, kinds: tuple[Any, ...]) -> Any:
    if type(None) in kinds and text == "none":
        return None
    wanted = [kind for kind in kinds if kind is not type(None)]
    refusals = []
    for kind in sorted(wanted, key=lambda one: one is str):  # everything is a text, so that comes last
        try:
            return _value(text, kind)
        except ValueError as error:
            refusals.append(str(error))
    raise ValueError(" or ".join(refusals))


def _tuple(text: str, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if not (text.startswith("(") and text.endswith(")")):
        raise ValueError("a list such as (a,b)")
    parts = [part.strip() for part in _split(text[1:-1], text)] if text[1:-1].strip() else []
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_value(part, kinds[0]) for part in parts)
    if len(kinds) != len(parts):
        raise ValueError(f"a list of {len(kinds)}")
    return tuple(_value(part, kind) for part, kind in zip(parts, kinds, strict=True))


def _choice(text: str, allowed: Mapping[str, Any]) -> Any:
    if text not in allowed:
        raise ValueError(f"one of {', '.join(allowed)}")
    return allowed[text]


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError("an integer")
    return int(text)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def _text(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        raise ValueError("a text, quoted as in JSON") from None


_READERS: dict[Any, Callable[[str], Any]] = {bool: _boolean, int: _integer, float: _float, str: _text}


def _split(text: str, whole: str) -> list[str]:
    """Parts between the commas that stand outside of braces, parentheses and quotes."""
    parts, depth = [""], 0
    matched = 0
    for found in _TOKEN.finditer(text):
        if found.start() != matched:
            break
        matched = found.end()
        token = found[0]
        depth += (token in ("{", "(")) - (token in ("}", ")"))
        if token == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
        if depth < 0:
            break
    if matched != len(text) or depth or not all(part.strip() for part in parts):
        raise PipelineError(f"'{whole}' is not a pipeline: write pass,pass{{option=value,...}}")
    return parts
