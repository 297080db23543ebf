"""`preprocessor_config.json`, in which Hugging Face models say how their pictures and sounds are prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qcompiler.errors import DataError

NAME: Final = "preprocessor_config.json"
_RESAMPLE: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by PIL's number
_CONVNEXT: Final = 384  # from this size on ConvNext stretches and does not crop
_FUNCTION = "give --preprocess file.py:function, which gets the path of a file and returns its array"


def of_config(path: Path) -> dict[str, Any]:
    """Keys of the recipe's table [preprocess] that say the same.

    `resize` is not among them where pictures keep their proportions and are not cropped.

    Raises:
        DataError: no such file, or it asks for what is not done here.
    """
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' cannot be read as a configuration of preprocessing: {error}.") from error
    if not isinstance(found, Mapping):
        raise DataError(f"'{path}' is no configuration of preprocessing: it holds no keys.")
    try:
        return _keys(path, found)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"'{path}' has a value that cannot be used ({error}): mend it, or {_FUNCTION}.") from error


def _keys(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    if "sampling_rate" in found:
        return _of_sounds(path, found)
    if "size" not in found and "image_mean" not in found and "crop_size" not in found:
        raise DataError(f"'{path}' says nothing of pictures or sounds (no size, image_mean or sampling_rate).")
    if found.get("rescale_offset"):
        raise DataError(f"'{path}' has rescale_offset, which is not done here: {_FUNCTION}.")
    number = found.get("resample", 2)
    keys = {**_sizes(path, found), "interpolation": _RESAMPLE[number if number in range(6) else 2]}
    keys["scale"] = float(found.get("rescale_factor", 1 / 255)) if found.get("do_rescale", True) else 1.0
    if found.get("do_normalize", "image_mean" in found) and "image_mean" in found:
        keys |= {"mean": _listed(found["image_mean"]), "std": _listed(found.get("image_std", 1.0))}
    return keys | ({"colour": "bgr"} if found.get("do_flip_channel_order") else {})


def _sizes(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    size, crop = found.get("size"), found.get("crop_size") if found.get("do_center_crop") else None
    resized, square = _edges(path, size) if found.get("do_resize", True) and size is not None else (None, False)
    share = float(found.get("crop_pct") or 0)
    if resized is not None and share and not square:
        return {"size": resized, **({"resize": "crop", "keep": share} if resized[0] < _CONVNEXT else _STRETCH)}
    if crop is not None:
        cropped = _edges(path, crop)[0]
        keep = 1.0 if resized is None else min(cropped[0] / resized[0], cropped[1] / resized[1], 1.0)
        return {"size": cropped, "resize": "stretch" if square else "crop", "keep": keep}
    if resized is None:
        return {}
    return {"size": resized, **(_STRETCH if square else {})}


_STRETCH: Final[Mapping[str, Any]] = {"resize": "stretch", "keep": 1.0}


def _edges(path: Path, size: Any) -> tuple[tuple[int, int], bool]:
    """Height and width, and whether both are fixed; of a shortest edge that alone."""
    if isinstance(size, int):
        return _positive(size, size), False
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return _positive(size["height"], size["width"]), True
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return _positive(size["shortest_edge"], size["shortest_edge"]), False
    raise DataError(f"'{path}' has size {json.dumps(size)}, which is not understood here: {_FUNCTION}.")


def _positive(height: Any, width: Any) -> tuple[int, int]:
    if int(height) < 1 or int(width) < 1:
        raise ValueError(f"a size of {height}x{width}")
    return int(height), int(width)


def _of_sounds(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    if int(found.get("feature_size") or 1) != 1 or "num_mel_bins" in found or "n_fft" in found:
        raise DataError(
            f"'{path}' makes spectra of sounds ({found.get('feature_extractor_type', 'a feature extractor')}), which "
            f"is not done here: {_FUNCTION}."
        )
    return {"rate": int(found["sampling_rate"]), "normalize": bool(found.get("do_normalize"))}


def _listed(value: Any) -> tuple[float, ...]:
    return tuple(float(one) for one in value) if isinstance(value, list) else (float(value),) * 3
