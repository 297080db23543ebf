"""The manifest: everything that is known about one compilation, as JSON beside the engine.

It is the only thing that the reports are made from, and the recipe in it can be replayed. Keys stand in a fixed order.
Paths are names of files, never folders of the machine, but for what the user wrote into the recipe or as --data.

Schema 1 had other names for a key and some stages; `read` gives them those of schema 2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from qcompiler.errors import UsageError
from qcompiler.recipe.recipe import Recipe
from qcompiler.support.as_json import plain

SCHEMA: Final = 2

_KEYS: Final[Mapping[str, str]] = MappingProxyType({"smoothing": "smooth_quant"})  # from schema 1 to 2
_STAGES: Final[Mapping[str, str]] = MappingProxyType(  # in `timings`, likewise
    {
        "clean up": "clean_up",
        "pre-flight": "preflight",
        "smooth": "smooth_quant",
        "llm-int8": "llm_int8",
        "weights": "weight_only",
        "build": "build_engine",
    }
)


# A list of numbers over several lines. No string can look so: a line break in one is written as two letters.
_FIGURE: Final = r"-?\d[\d.eE+-]*"
_FIGURES: Final = re.compile(rf"\[\n\s*({_FIGURE}(?:,\n\s*{_FIGURE})*)\n\s*\]")


def to_text(manifest: Mapping[str, Any]) -> str:
    """The JSON text of a manifest, which holds neither NaN nor Infinity; lists of numbers stand on one line."""
    text = json.dumps(plain(manifest), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return _FIGURES.sub(lambda found: f"[{' '.join(found[1].split())}]", text)


def read(path: str | Path) -> dict[str, Any]:
    """Reads a manifest file; one of an older schema is brought up to date in memory.

    Raises:
        UsageError: there is none, or it was written by a newer qcompiler.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf8"))
    except OSError as error:
        raise UsageError(f"manifest {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a manifest: it is not JSON ({error})") from error
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        raise UsageError(f"{path} is not a manifest of qcompiler: it has no 'schema'")
    if data["schema"] > SCHEMA:
        raise UsageError(f"{path} was written by a newer qcompiler ({data.get('qcompiler')}): update to read it")
    return _upgraded(data)


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """The manifest under the names of this schema, in the order it has."""
    if data["schema"] == SCHEMA:
        return data
    found = {_KEYS.get(key, key): value for key, value in data.items()}
    timings = {_STAGES.get(stage, stage): seconds for stage, seconds in (data.get("timings") or {}).items()}
    return {**found, "schema": SCHEMA, "timings": timings}


def replay(path: str | Path) -> Recipe:
    """The recipe that a manifest file says was used.

    Raises:
        UsageError: it is no manifest, or its recipe is not valid in this version.
    """
    return Recipe.from_dict(read(path).get("recipe") or {}, f"recipe of {path}")
