"""A model whose inputs are fixed as the user said: the one function that commands call before anything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from qcompiler.errors import UsageError
from qcompiler.ir import model as models
from qcompiler.ir.model import Model
from qcompiler.passes.base import Changed
from qcompiler.passes.fixing.fix_inputs import FixInputs
from qcompiler.passes.fixing.fix_shapes import FixShapes
from qcompiler.recipe.checks import read_fixed_shape


@dataclass(frozen=True, eq=False)
class Fixed:
    """What is fixed of a model.

    Attributes:
        inputs: values by input: numbers, truth values, nested lists of them, or the name of an .npy or .npz file.
        shapes: sizes by input, or one size by the name of an axis.
    """

    inputs: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def content(self) -> object:
        """What it says; files by what they hold."""
        return {name: value_of(name, value) for name, value in self.inputs.items()}, dict(self.shapes)


def fixed_by(inputs: Mapping[str, Any] | None, shapes: Mapping[str, str] | None) -> Fixed:
    """What the keys of a recipe ask for; shapes are written like `1x3x224x224`."""
    return Fixed(dict(inputs or {}), {name: read_fixed_shape(name, one) for name, one in (shapes or {}).items()})


def fixed(model: Model, asked: Fixed) -> tuple[Model, dict[str, str]]:
    """The model with its inputs fixed, as a copy that shares the weights; itself where nothing is asked.

    The data may go on giving the inputs that are constants now: `inputs_of` remembers their values.

    Returns:
        The model, and what was done with each input in words.

    Raises:
        UsageError: an input or an axis does not exist, or a value or a size does not fit it.
    """
    if not asked.inputs and not asked.shapes:
        return model, {}
    made = models.copy(model)
    values = {name: value_of(name, value) for name, value in asked.inputs.items()}
    notes = [note for one in (FixShapes(asked.shapes), FixInputs(values)) for note in one(made.graph).notes]
    return made, {note.node: note.text for note in notes if isinstance(note, Changed)}


def value_of(name: str, value: Any) -> np.ndarray[Any, Any]:
    """The array that the user means: out of a file where the value is the name of one.

    Raises:
        UsageError: the file cannot be read, or has no array for this input.
    """
    if not isinstance(value, str):
        return np.asarray(value)
    where = f"--fix-input {name}={value}"
    try:
        with Path(value).open("rb") as file:
            held = np.load(file, allow_pickle=False)  # noqa: TID251  # a value, not data: one array
            if isinstance(held, np.ndarray):
                return held
            if name in held.files or len(held.files) == 1:
                return np.asarray(held[name if name in held.files else held.files[0]])
            names = ", ".join(held.files)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UsageError(f"{where}: the file cannot be read: {error}") from error
    raise UsageError(f"{where}: the file has no array '{name}', but {names or 'nothing'}")
