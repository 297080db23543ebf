"""A feed against the inputs of the model: names, types, shapes, values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from qcompiler.data.files.layout import channels_moved, fits, order
from qcompiler.errors import DataError
from qcompiler.ir.signature import Array, Feeds, Inputs, Shape, Stored, fixed_of
from qcompiler.support.suggest import did_you_mean

_RAW = np.dtype("V2")  # how numpy reads bfloat16 back that it has written


def check(raw: object, inputs: Inputs, where: str, stored: Stored | None = None) -> Feeds:
    """Returns `raw` as feeds for a model with `inputs`.

    Args:
        raw: a sample.
        inputs: of the graph.
        where: which sample it is, for errors.
        stored: other float types that float32 inputs have in the source. They take values of that type, and float32,
            which is rounded to it; what is returned is float32.

    Raises:
        DataError: it is not a dict of arrays, or names, types, shapes or values do not fit; begins with `where`.
    """
    if not isinstance(raw, Mapping):
        raise DataError(f"{where} is {kind_of(raw)}; each sample must be a dict from input name to numpy array.")
    raw = _without_fixed(raw, fixed_of(inputs), where)
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
    types = stored or {}
    return {
        name: _check_array(raw[name], *inputs[name], f"{where}: input '{name}'", types.get(name)) for name in inputs
    }


def _without_fixed(raw: Mapping[Any, Any], fixed: Mapping[str, Array], where: str) -> Mapping[Any, Any]:
    """A sample without what is a constant of the model now; it must have given that very value."""
    for name in fixed.keys() & raw.keys():
        given, value = np.asarray(raw[name]), fixed[name]
        if given.size in (1, value.size) and bool(np.all(given.reshape(-1) == value.reshape(-1))):
            continue
        shown = f"{given.reshape(-1)[0]}, and --fix-input made it {value.reshape(-1)[0]}"
        if given.size != 1 or value.size != 1:
            shown = "not what --fix-input made it"
        raise DataError(
            f"{where}: input '{name}' is {shown}: leave out the sample or the input, or fix it to what it really gets."
        )
    return {name: value for name, value in raw.items() if name not in fixed}


def _check_array(
    value: Any, dtype: np.dtype[Any] | None, shape: Shape, where: str, stored: np.dtype[Any] | None = None
) -> Array:
    if dtype is None:
        return value  # type: ignore[no-any-return]  # a list of arrays or None: only the runtime can tell
    if not isinstance(value, (np.ndarray, np.generic)) and not hasattr(value, "__array__"):
        raise DataError(f"{where} is {kind_of(value)}; give a numpy array of {_type_name(dtype)}.")
    array = np.asarray(value) if stored is None else _from_stored(np.asarray(value), dtype, stored, where)
    if dtype.kind == "O":
        _check_strings(array, where)
    elif array.dtype != dtype:
        advice = _bytes(array) or f"convert it with {_cast(array.dtype, dtype)}."
        raise DataError(f"{where} is {_type_name(array.dtype)}, the model takes {_type_name(dtype)}; {advice}")
    _check_shape(array, shape, where)
    if array.dtype.name.startswith(("float", "bfloat")) and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        raise DataError(
            f"{where} has {len(bad)} of {array.size} values that are NaN or infinite, the first at {bad[0].tolist()}; "
            "leave this sample out or repair what produces it."
        )
    return array


def _from_stored(array: Array, dtype: np.dtype[Any], stored: np.dtype[Any], where: str) -> Array:
    """Values of an input that is `stored` in the source, as the `dtype` that the graph computes in."""
    if array.dtype == _RAW and stored.itemsize == _RAW.itemsize and not hasattr(np, stored.name):
        array = array.view(stored)
    if array.dtype not in (stored, dtype):
        advice = _bytes(array) or f"convert it with {_cast(array.dtype, stored)}."
        raise DataError(f"{where} is {_type_name(array.dtype)}, the model takes {stored.name}; {advice}")
    with np.errstate(over="ignore"):  # what is infinite then is refused below
        return array.astype(stored).astype(dtype)


def _check_strings(array: Array, where: str) -> None:
    text = array.dtype.kind in "US" or all(isinstance(item, (str, bytes)) for item in array.reshape(-1).tolist())
    if not text:
        raise DataError(f"{where} is {_type_name(array.dtype)}, the model takes text; give an array of str.")


def _check_shape(array: Array, shape: Shape, where: str) -> None:
    if shape is None:
        return
    wanted = f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
    if array.ndim != len(shape):
        raise DataError(
            f"{where} has {array.ndim} ax{'i' if array.ndim == 1 else 'e'}s {list(array.shape)}, the model takes "
            f"{len(shape)}: {wanted}; {_axes_advice(array.shape, shape)}."
        )
    if not fits(array.shape, shape):
        raise DataError(
            f"{where} has shape {list(array.shape)}, the model takes {wanted}; {_size_advice(array.shape, shape)}."
        )


def _axes_advice(found: tuple[int, ...], shape: tuple[int | str | None, ...]) -> str:
    """What to do where there are more or fewer axes than the model takes."""
    if len(found) == len(shape) - 1:
        turned = order(found, shape[1:]) or channels_moved(found, shape[1:])
        if turned is None or fits(found, shape[1:]):
            return "add the batch axis with x[None]"
        return f"its axes are in another order, too: x.transpose({_listed_axes(turned)})[None]"
    if len(found) == len(shape) + 1 and found[0] == 1:
        return "it has a batch axis too many: x[0]"
    if len(found) == len(shape) + 1:
        return "its axis 0 counts samples: give them one by one, x[i] for each"
    return "reshape it"


def _size_advice(found: tuple[int, ...], shape: tuple[int | str | None, ...]) -> str:
    """What to do where there are as many axes, but not of these sizes."""
    turned, channels = order(found, shape), channels_moved(found, shape)
    axes = turned or channels
    if axes is None:
        wrong = [size != got for size, got in zip(shape, found, strict=True) if isinstance(size, int)]
        first = isinstance(shape[0], int) and shape[0] != found[0] and sum(wrong) == 1
        return f"the model takes {shape[0]} at a time on axis 0" if first else "pad, crop or resize it"
    kinds: dict[tuple[int, ...], str] = {
        (0, 3, 1, 2): " (NHWC where it takes NCHW)",
        (0, 2, 3, 1): " (NCHW where it takes NHWC)",
    }
    also = "" if turned else ", and pad, crop or resize it"
    return (
        f"its axes are in another order{kinds.get(axes, '')}: transpose it with x.transpose({_listed_axes(axes)}){also}"
    )


def _listed_axes(axes: tuple[int, ...]) -> str:
    return ", ".join(map(str, axes))


def _bytes(array: Array) -> str:
    """What to do with bytes where a model takes floats: empty where they are none."""
    if array.dtype != np.uint8 or array.ndim < 2:
        return ""
    return (
        "bytes are pixels before they are prepared: do what the training did, such as x.astype(np.float32) / 255, less "
        "its mean, over its standard deviation (ranges of pixels that are not scaled are wrong ones); for a folder of "
        "pictures --preprocess does it."
    )


def kind_of(value: object) -> str:
    """What a value is, with its article, for messages: `a list`, `an ndarray`."""
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
