"""The order given to a child process; the process that gives it must not import numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PATHS = ("model", "samples", "output", "answer")


@dataclass(frozen=True)
class Order:
    """What a child has to do.

    Attributes:
        model: The float model; a copy that belongs to this child.
        samples: Folder of `.npz` files, one feed each.
        count: How many of them, in the order of their names.
        output: Where the quantized model goes.
        answer: Where the JSON answer goes.
        options: Settings of the quantizer.
    """

    model: Path
    samples: Path
    count: int
    output: Path
    answer: Path
    options: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Stores the order as JSON."""
        data = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        path.write_text(json.dumps(data), encoding="utf8")

    @classmethod
    def read(cls, path: Path) -> Order:
        """Reads what `write` has stored."""
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
        return cls(**{**data, **{name: Path(data[name]) for name in _PATHS}})
