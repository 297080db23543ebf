"""Libraries of custom operators that ONNX Runtime loads into every session, for as long as the process runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qcompiler.errors import UsageError

_in_use: list[str] = []


def use(libraries: Sequence[str]) -> None:
    """Makes these libraries, and no others, part of every session that is opened from now on.

    Raises:
        UsageError: there is no such file, or ONNX Runtime does not take it.
    """
    _in_use.clear()
    for library in libraries:
        if not Path(library).is_file():
            raise UsageError(f"there is no plugin '{library}'; check the spelling of the path")
    _in_use.extend(os.fspath(Path(library).resolve()) for library in libraries)
    if not _in_use:
        return
    import onnxruntime as ort

    try:
        load_into(ort.SessionOptions())
    except Exception as error:
        _in_use.clear()
        raise UsageError(
            f"ONNX Runtime does not take plugin {', '.join(libraries)}: {' '.join(str(error).split())}. It wants a "
            "shared library that exports RegisterCustomOps; plugins of TensorRT belong to '--target tensorrt'"
        ) from error


def load_into(options: Any) -> None:
    """Registers the libraries in use with `onnxruntime.SessionOptions`."""
    for library in _in_use:
        options.register_custom_ops_library(library)
