"""Recipes as TOML, with the help of each key as its comment."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompiler.errors import UsageError
from qcompiler.recipe import checks as check


def _is_toml(text: str) -> bool:
    return not text.strip() or "\n" in text or ("=" in text and not os.path.exists(text))


def toml_text(source: str | Path) -> tuple[str, str]:
    """Where TOML comes from, for messages, and its text: a file, or the text itself."""
    if isinstance(source, str) and _is_toml(source):
        return "recipe", source
    try:
        return f"recipe {source}", Path(source).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"recipe {source} cannot be read: {reason}") from error


def plain(value: Any) -> Any:
    """A value of a recipe as plain data for JSON and TOML."""
    if isinstance(value, check.Keys):
        return {key.name: plain(getattr(value, key.name)) for key in dataclasses.fields(value)}  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        return {name: _plain_entry(one) for name, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _plain_entry(value: Any) -> Any:
    """An entry of a table: a number, three shapes, or None as TOML can write it."""
    if isinstance(value, tuple):
        return [list(shape) for shape in value]
    return "none" if value is None else value


def entry_of(key: dataclasses.Field[Any], value: Any) -> list[str]:
    """The lines of one key: its help as a comment, then the key; as a comment too where it is unset."""
    comment = f"# {key.metadata['help']}"
    if value is None:
        return [comment, f"# {key.name} = {key.metadata['example']}"]
    return [comment, f"{key.name} = {to_toml(plain(value))}"]


def to_toml(value: Any) -> str:
    """A plain value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are a subset of TOML's, but for DEL, which only TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        inside = ", ".join(f"{to_toml(name)} = {to_toml(one)}" for name, one in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(to_toml, value))}]"
    return repr(value)
