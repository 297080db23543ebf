"""A path as data: what lies there, how it is prepared, and a message that helps where it is no data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from qcompiler.data.files import arrays, known_ranges, pictures, sounds
from qcompiler.data.files.layout import in_rank
from qcompiler.data.files.listing import FileList, kind_of, listing
from qcompiler.data.files.preparation import WAYS, preparation
from qcompiler.errors import DataError, UsageError
from qcompiler.ir.signature import Array, Feeds, Inputs
from qcompiler.recipe.tables import PREPARATIONS, PreprocessTable
from qcompiler.support.user_code import UserCode

UNPREPARED: Final = PreprocessTable()
_CODE: Final = UserCode(
    "preprocess",
    forms=", ".join((*PREPARATIONS, "a preprocessor_config.json", "file.py:function")),
    missing=DataError,
    broken=DataError,
    purpose="gets the path of a file and returns its array",
)


@dataclass(frozen=True)
class Opened:
    """A path that can be read.

    Attributes:
        name: what the manifest calls it.
        start: begins a walk over the feeds.
        details: what else the manifest says of it.
    """

    name: str
    start: Callable[[], Iterable[Any]]
    details: Mapping[str, Any] = field(default_factory=dict)


def open_path(path: Path, inputs: Inputs, table: PreprocessTable, samples: int | None) -> Opened | None:
    """What lies at a path, as feeds.

    Args:
        path: a file or a folder that exists, or an archive that does not.
        inputs: of the model.
        table: how pictures, sounds and other files are prepared.
        samples: how many are wanted; None for what is usual.

    Returns:
        None where it is no data.

    Raises:
        DataError: there is no such archive, the folder has no samples, or nothing says how they are prepared.
        UsageError: arrays are prepared already, but a preparation is asked for.
    """
    function = table.method is not None and ":" in table.method and table.method not in PREPARATIONS
    if not path.is_dir() and kind_of(path) == "arrays" and not function:
        _refuse_table(path, table)
        start, names = arrays.samples(path, inputs), arrays.renamed(path, inputs)
        return Opened(f"'{path}'", start, {"renamed": names} if names else {})
    if not path.exists() or (path.is_file() and kind_of(path) == "files" and not function):
        return None
    wanted = None if samples is None else samples * _together_in(inputs)
    found = listing(path, wanted, prepared=table != UNPREPARED)
    name = f"'{path}'" if path.is_file() else f"folder '{path}'"
    if function:
        return _by_function(name, found, inputs, str(table.method))
    if found.kind == "arrays":
        _refuse_table(path, table)
        return Opened(name, lambda: arrays.in_folder(found.files, inputs))
    if found.kind == "files":
        raise DataError(
            f"{name} has no .npz file, no picture and no sound, but {len(found.files)} other files such as "
            f"'{found.files[0].name}': give --preprocess file.py:function, a function that gets the path of a file and "
            "returns its array, or an .npz with an array per input"
        )
    return _sounds(name, found, inputs, table) if found.kind == "sounds" else _pictures(name, found, inputs, table)


def _pictures(name: str, found: FileList, inputs: Inputs, table: PreprocessTable) -> Opened:
    if table == UNPREPARED:
        listed = ", ".join(f"'{one}' {_spelled(shape)}" for one, (_, shape) in inputs.items())
        raise DataError(
            f"{name} has {found} ('{found.files[0].name}'), and nothing says how a picture becomes the input {listed} "
            f"of the model; that must be done as in its training: {WAYS}"
        )
    how = preparation(table, inputs)
    rows = _together_in(inputs)
    taken = found.files[: len(found.files) // rows * rows] or found.files
    details = {"files": str(found), "preprocess": str(how), "preparation": how.to_json()}
    return Opened(name, lambda: _joined((pictures.feed_of(file, how) for file in taken), rows), details)


def _sounds(name: str, found: FileList, inputs: Inputs, table: PreprocessTable) -> Opened:
    how = sounds.waves(table, inputs)
    details = {"files": str(found), "preprocess": str(how), "preparation": how.to_json()}
    return Opened(name, lambda: (feed for file in found.files for feed in sounds.feeds_of(file, how)), details)


def _by_function(name: str, found: FileList, inputs: Inputs, text: str) -> Opened:
    function = _CODE.load(text)[0]

    def feeds() -> Iterator[Any]:
        for file in found.files:
            yield _feed(function(file), inputs, file)

    return Opened(name, feeds, {"files": str(found), "preprocess": text, "preparation": {"function": text}})


def _feed(made: Any, inputs: Inputs, file: Path) -> Mapping[str, Any]:
    """What the user's function gave, by input."""
    if isinstance(made, Mapping):
        arrays_of = dict(made)
    elif len(inputs) == 1 and hasattr(made, "__array__"):
        arrays_of = {next(iter(inputs)): made}
    else:
        wanted = ", ".join(f"'{name}'" for name in inputs)
        raise DataError(
            f"the function of --preprocess gave a {type(made).__name__} for '{file}': it must return an array"
            f"{'' if len(inputs) == 1 else f', or a dict with arrays for {wanted}'}."
        )
    known = {name: np.asarray(one) for name, one in arrays_of.items() if name in inputs and hasattr(one, "__array__")}
    return {**arrays_of, **{name: in_rank(one, inputs[name][1]) for name, one in known.items()}}


def _together_in(inputs: Inputs) -> int:
    """How many files make a feed: as many pictures as the first axis of four fixes."""
    shapes = [shape for _, shape in inputs.values()]
    rows = shapes[0][0] if len(shapes) == 1 and shapes[0] is not None and len(shapes[0]) == 4 else 1
    return rows if isinstance(rows, int) and rows > 0 else 1


def _joined(feeds: Iterable[Feeds], rows: int) -> Iterator[Feeds]:
    """So many pictures together where the model takes a fixed number of them."""
    group: list[Feeds] = []
    for feed in feeds:
        group.append(feed)
        if len(group) >= rows:
            yield {name: _together([one[name] for one in group]) for name in feed}
            group = []


def _together(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _refuse_table(path: Path, table: PreprocessTable) -> None:
    if table != UNPREPARED:
        raise UsageError(
            f"--preprocess is for pictures, sounds and other files, and '{path}' holds arrays, which are fed as they "
            "are: leave it out, or give file.py:function, a function that gets the path of a file"
        )


def no_data(path: Path, forms: str) -> DataError:
    """Why a path that exists is no data, and what to do with it."""
    kind = known_ranges.looks_like(path)
    if kind:
        return DataError(
            f"'{path}' is {kind}, which has ranges and no samples: give it as --ranges {path}, alone or beside --data "
            "with samples"
        )
    if path.suffix in (".onnx", ".engine", ".plan"):
        return DataError(f"'{path}' is a model and no data; give {forms}.")
    return DataError(f"'{path}' is not something that can be read as data; give {forms}.")


def _spelled(shape: Any) -> str:
    return "of any shape" if shape is None else f"[{', '.join('?' if one is None else str(one) for one in shape)}]"
