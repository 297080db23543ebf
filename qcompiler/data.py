"""Calibration and evaluation data: any source becomes a stream of checked feeds that can be walked again and again.

A source is an `.npz` file (axis 0 of each array counts the samples), a folder of `.npz` files (one feed each, in
natural order), `package.module:function`, `file.py:function`, or, from Python, a `Text`, an iterable or a callable
that returns one. `random` makes standard normal noise from the model's inputs and says so wherever the result is
reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.errors import DataError, QCompilerError, UsageError
from qcompiler.npz import members
from qcompiler.signature import Array, Feeds, Inputs, Shape
from qcompiler.suggest import did_you_mean
from qcompiler.text import Text
from qcompiler.user_code import UserCode

Data = str | Path | Text | Iterable[Mapping[str, Array]] | Callable[[], Iterable[Mapping[str, Array]]]

RANDOM_SAMPLES = 16
_FORMS = (
    "an .npz file, a folder of .npz files, 'package.module:function', 'file.py:function', or 'random' for a smoke test"
)
_CODE = UserCode(
    "data", forms=_FORMS, missing=DataError, broken=DataError, purpose="takes no arguments and yields the samples"
)


class Source:
    """Feeds that fit the model, streamed; iterate as often as needed.

    Attributes:
        name: what the manifest calls it.
        random: made up by `random`, so results mean nothing beyond "it runs".
        details: what else the manifest says of it.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Iterable[Any]],
        inputs: Inputs,
        *,
        samples: int | None = None,
        batch: int | None = None,
        random: bool = False,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """`start` begins a new pass; `samples` and `batch` as in `open_source`."""
        self.name = name
        self.random = random
        self.details = dict(details or {})
        self._start = start
        self._inputs = dict(inputs)
        self._samples = samples
        self._batch = batch
        self._counted: int | None = None

    def __iter__(self) -> Iterator[Feeds]:
        """Yields dicts from input name to array.

        Raises:
            DataError: there is no sample, a sample does not fit the model (index and input are named), or the user's
                code failed.
        """
        if self._batch is None:
            return self._checked()
        return _batched(self._checked(), self._batch, self._inputs)

    def _checked(self) -> Iterator[Feeds]:
        count = 0
        for raw in self._raw():
            yield check(raw, self._inputs, f"sample {count} of {self.name}")
            count += 1
            if count == self._samples:
                break
        if self._counted is not None and count != self._counted:
            raise DataError(
                f"{self.name} gave {self._counted} samples the first time and {count} the next: it cannot be read "
                "twice. Give a function that starts anew at each call."
            )
        if not count:
            raise DataError(f"{self.name} has no samples; give at least one.")
        self._counted = count

    def _raw(self) -> Iterator[Any]:
        """Samples as the source gives them; whatever its code raises is reported with the index it happened at."""
        index = 0
        try:
            started = self._start()
            if isinstance(started, Mapping) or not isinstance(started, Iterable):
                raise DataError(
                    f"{self.name} returned {_kind(started)} where an iterable of samples is needed: "
                    "yield one dict from input name to array for each sample."
                )
            for raw in started:
                yield raw
                index += 1
        except QCompilerError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{self.name} failed at sample {index} with {type(error).__name__}: {error}. "
                "Repair the function, or call it by itself to see where it fails."
            ) from error


def open_source(data: Data, inputs: Inputs, *, samples: int | None = None, batch: int | None = None) -> Source:
    """Makes a `Source` of whatever the user gave.

    Args:
        data: see the module's docstring.
        inputs: the model's inputs: name to dtype and shape (int for a fixed size, text or None for a free one).
        samples: take the first so many feeds; None for all (16 for `random`).
        batch: join so many consecutive feeds along axis 0 where that axis is free for every input and the other sizes
            agree (an input of one element, such as a sampling rate, must be equal instead); others stay as they are,
            and so does a last batch that is not full.

    Raises:
        DataError: there is no such source, or it can be read only once.
        UsageError: `samples` or `batch` is below 1.
    """
    for name, value in (("samples", samples), ("batch", batch)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1.")
    if isinstance(data, (str, Path)):
        return _open_text(str(data), inputs, samples, batch)
    if isinstance(data, Text):
        return Source(
            data.name,
            data.start(inputs, samples),
            inputs,
            samples=samples,
            batch=batch,
            details=data.describe(inputs),
        )
    if isinstance(data, Mapping):
        raise DataError(
            "the data is one dict where several samples are needed: give a list of dicts, one for each sample, "
            "or an .npz file whose arrays have the samples along axis 0."
        )
    if callable(data):
        name = f"function '{getattr(data, '__qualname__', type(data).__name__)}'"
        return Source(name, data, inputs, samples=samples, batch=batch)
    if not isinstance(data, Iterable):
        raise DataError(f"the data is {_kind(data)}; give {_FORMS}, an iterable of dicts, or a callable.")
    if iter(data) is data:
        raise DataError(
            f"the data is {_kind(data)}, which can be read only once, and the compiler reads it several times: "
            "give the function that makes it (without calling it), or a list."
        )
    return Source(f"{_kind(data)} of samples", lambda: data, inputs, samples=samples, batch=batch)


def check(raw: object, inputs: Inputs, where: str) -> Feeds:
    """Returns `raw` as feeds for a model with `inputs`.

    Raises:
        DataError: it is not a dict of arrays, or names, types, shapes or values do not fit; begins with `where`.
    """
    if not isinstance(raw, Mapping):
        raise DataError(f"{where} is {_kind(raw)}; each sample must be a dict from input name to numpy array.")
    missing = [name for name in inputs if name not in raw]
    extra = [str(name) for name in raw if name not in inputs]
    if extra:
        hint = did_you_mean(extra[0], missing or inputs)
        advice = hint if hint.startswith("did you mean") else "give it the name of an input, or leave it out."
        raise DataError(
            f"{where} has {_listed(extra)}, which the model does not take; its inputs are {_listed(inputs)}: {advice}"
        )
    if missing:
        raise DataError(
            f"{where} lacks input {_listed(missing)} of the model; it has {_listed(raw) or 'nothing'}. Add it."
        )
    return {name: _check_array(raw[name], *inputs[name], f"{where}: input '{name}'") for name in inputs}


def _check_array(value: Any, dtype: np.dtype[Any] | None, shape: Shape, where: str) -> Array:
    if dtype is None:
        return value  # type: ignore[no-any-return]  # a list of arrays or None: only the runtime can tell
    if not isinstance(value, (np.ndarray, np.generic)) and not hasattr(value, "__array__"):
        raise DataError(f"{where} is {_kind(value)}; give a numpy array of {_type_name(dtype)}.")
    array = np.asarray(value)
    if dtype.kind == "O":
        _check_strings(array, where)
    elif array.dtype != dtype:
        raise DataError(
            f"{where} is {_type_name(array.dtype)}, the model takes {_type_name(dtype)}; "
            f"convert it with {_cast(array.dtype, dtype)}."
        )
    _check_shape(array, shape, where)
    if array.dtype.name.startswith(("float", "bfloat")) and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise DataError(
            f"{where} has {len(bad)} of {array.size} values that are NaN or infinite, the first at {bad[0].tolist()}; "
            "leave this sample out or repair what produces it."
        )
    return array


def _check_strings(array: Array, where: str) -> None:
    text = array.dtype.kind in "US" or all(isinstance(item, (str, bytes)) for item in array.reshape(-1).tolist())
    if not text:
        raise DataError(f"{where} is {_type_name(array.dtype)}, the model takes text; give an array of str.")


def _check_shape(array: Array, shape: Shape, where: str) -> None:
    if shape is None:
        return
    wanted = f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
    if array.ndim != len(shape):
        advice = "add the batch axis with x[None]" if array.ndim == len(shape) - 1 else "reshape it"
        raise DataError(
            f"{where} has {array.ndim} ax{'i' if array.ndim == 1 else 'e'}s {list(array.shape)}, the model takes "
            f"{len(shape)}: {wanted}; {advice}."
        )
    if any(isinstance(size, int) and size != got for size, got in zip(shape, array.shape, strict=True)):
        raise DataError(f"{where} has shape {list(array.shape)}, the model takes {wanted}; pad, crop or resize it.")
    if array.ndim and not array.shape[0]:
        raise DataError(f"{where} is empty: its shape is {list(array.shape)}; leave this sample out.")


def _kind(value: object) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeio" or name.startswith("nd") else f"a {name}"


def _listed(names: Iterable[object]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _type_name(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "OUS":
        return "text" if dtype.kind in "US" else "Python objects"
    return dtype.name if dtype.isnative else f"{dtype.name} of the other byte order"


def _cast(given: np.dtype[Any], wanted: np.dtype[Any]) -> str:
    """The expression that converts; a kind of number that would change its values on the way is said to."""
    known = hasattr(np, wanted.name)
    name = f"np.{wanted.name}" if known else f"ml_dtypes.{wanted.name}"
    lossy = given.kind in "fc" and wanted.kind in "iub"
    return f"x.astype({name})" + (" after scaling it as the model expects" if lossy else "")


def _open_text(text: str, inputs: Inputs, samples: int | None, batch: int | None) -> Source:
    if text == "random":
        count = samples or RANDOM_SAMPLES
        return Source("random", lambda: _noise(inputs, count), inputs, samples=samples, batch=batch, random=True)
    path = Path(text)
    start: Callable[[], Iterable[Any]]
    if path.is_dir():
        files = sorted(path.glob("*.npz"), key=lambda file: _natural(file.name))
        if not files:
            raise DataError(f"folder '{text}' has no .npz file; write one for each sample, with an array per input.")
        name, start = f"folder '{text}'", lambda: (_whole(file) for file in files)
    elif path.suffix == ".npz":
        if not path.is_file():
            raise DataError(f"there is no file '{text}'; check the spelling of the path.")
        name, start = f"'{text}'", lambda: _rows(path, inputs)
    elif ":" in text:
        name, start = f"'{text}'", _CODE.load(text)[0]
    else:
        there = "is not something that can be read as data" if path.exists() else "does not exist"
        raise DataError(f"'{text}' {there}; give {_FORMS}.")
    return Source(name, start, inputs, samples=samples, batch=batch)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts `x10` behind `x9`."""
    parts = re.findall(r"(\d+)|(\D+)", name)
    return [(0, int(number), "") if number else (1, 0, text) for number, text in parts] + [(2, 0, name)]


def _whole(path: Path) -> Feeds:
    return {name: member.whole() for name, member in members(path).items()}


def _rows(path: Path, inputs: Inputs) -> Iterator[Feeds]:
    """One feed for each sample of an archive: rows of axis 0, in the number that fixed inputs ask for.

    An array without axes is the same in every feed. Where the model takes an axis less than the array has, the sample
    axis is dropped.
    """
    found = members(path)
    sizes = {name: member.shape[0] for name, member in found.items() if member.shape}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
        raise DataError(f"the arrays of '{path}' have different numbers of samples along axis 0: {listed}.")
    ranks = {name: len(shape) for name, (_, shape) in inputs.items() if shape is not None}
    drop = {name for name in sizes if len(found[name].shape) == ranks.get(name, -1) + 1}
    fixed = {shape[0] for name, (_, shape) in inputs.items() if shape and name in sizes and name not in drop}
    steps = {size for size in fixed if isinstance(size, int)}
    step = steps.pop() if len(steps) == 1 and not drop else 1
    count = next(iter(sizes.values()), 0)
    if count % step:
        raise DataError(
            f"'{path}' has {count} samples, but the model takes exactly {step} at a time; make it a multiple of {step}."
        )
    constants = {name: found[name].whole() for name in found if name not in sizes}
    streams = {name: found[name].rows(step) for name in sizes}
    for _ in range(0, count, step):
        rows = {name: next(stream) for name, stream in streams.items()}
        yield constants | {name: row[0] if name in drop else row for name, row in rows.items()}


def _noise(inputs: Inputs, count: int) -> Iterator[Feeds]:
    """Standard normal floats, ones for free integers (valid as token ids and masks), the same in every run."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        made = {name: _noise_array(rng, dtype, shape or ()) for name, (dtype, shape) in inputs.items()}
        yield {name: _summed(array, inputs[name][1] or (), made, inputs) for name, array in made.items()}


def _summed(array: Array, shape: tuple[int | str | None, ...], made: Feeds, inputs: Inputs) -> Array:
    """The array with axes named like "past + sequence" as long as the axes of these names together."""
    known = {
        size: made[name].shape[axis] for name, (_, sizes) in inputs.items() for axis, size in enumerate(sizes or ())
    }
    for axis, size in enumerate(shape):
        parts = size.split(" + ") if isinstance(size, str) else []
        if len(parts) > 1 and all(part in known for part in parts):
            array = np.repeat(array.take([0], axis), sum(known[part] for part in parts), axis)
    return array


def _noise_array(rng: np.random.Generator, dtype: np.dtype[Any] | None, shape: tuple[int | str | None, ...]) -> Array:
    if dtype is None:
        raise DataError("the model takes a sequence or an optional value, which 'random' cannot make; give real data.")
    free = 64 if len(shape) > 3 else 16
    sizes = [size if isinstance(size, int) else 1 if axis == 0 else free for axis, size in enumerate(shape)]
    if dtype.kind == "O":
        return np.full(sizes, "text", object)
    if dtype.name.startswith(("float", "bfloat")):
        return rng.standard_normal(sizes, np.float32).astype(dtype)
    return np.ones(sizes, dtype)


def _batched(feeds: Iterator[Feeds], size: int, inputs: Inputs) -> Iterator[Feeds]:
    group: list[Feeds] = []
    for one in feeds:
        if group and not _joins(group[0], one, inputs):
            yield _join(group, inputs)
            group = []
        group.append(one)
        if len(group) == size:
            yield _join(group, inputs)
            group = []
    if group:
        yield _join(group, inputs)


def _is_free(name: str, inputs: Inputs) -> bool:
    shape = inputs[name][1]
    return inputs[name][0] is not None and shape is not None and len(shape) > 0 and not isinstance(shape[0], int)


def _joins(first: Feeds, other: Feeds, inputs: Inputs) -> bool:
    for feeds in (first, other):
        rows = {feeds[name].shape[0] for name in feeds if _is_free(name, inputs)}
        if len(rows) != 1:
            return False
    for name in inputs:
        one, two = first[name], other[name]
        if inputs[name][0] is None:
            return False
        if _is_free(name, inputs):
            if one.shape[1:] != two.shape[1:]:
                return False
        elif one.size != 1 or not np.array_equal(one, two):
            return False
    return True


def _join(group: list[Feeds], inputs: Inputs) -> Feeds:
    if len(group) == 1:
        return group[0]
    return {
        name: np.concatenate([feeds[name] for feeds in group]) if _is_free(name, inputs) else group[0][name]
        for name in inputs
    }
