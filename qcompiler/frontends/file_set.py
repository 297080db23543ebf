"""The manifest of a set of files: which graphs a model became, and how they feed each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompiler.frontends.kinds.parts import ModelKind
from qcompiler.support.as_json import plain
from qcompiler.support.atomic import write_text

SCHEMA = 1
Shapes = Mapping[str, Mapping[str, Any]]
"""By file, the shape of each tensor by name."""


def described(kind: ModelKind, files: Mapping[str, str], inputs: Shapes, outputs: Shapes) -> dict[str, Any]:
    """The set as plain data.

    Args:
        kind: what was exported.
        files: the name of each part's file.
        inputs: shapes of the inputs of each file.
        outputs: shapes of the outputs of each file.
    """
    return {
        "schema": SCHEMA,
        "kind": kind.name,
        "parts": [
            {
                "name": part.name,
                "file": files[part.name],
                "inputs": {name: list(shape) for name, shape in inputs[files[part.name]].items()},
                "outputs": {name: list(shape) for name, shape in outputs[files[part.name]].items()},
            }
            for part in kind.parts
        ],
        "feeds": [
            {"from": link.source, "output": link.output, "to": link.target, "input": link.input} for link in kind.links
        ],
        "constants": dict(kind.constants),
        "notes": list(kind.notes),
    }


def write(path: Path, kind: ModelKind, files: Mapping[str, str], inputs: Shapes, outputs: Shapes) -> None:
    """Writes it as JSON."""
    write_text(path, json.dumps(plain(described(kind, files, inputs, outputs)), indent=1))
