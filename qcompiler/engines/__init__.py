"""Engine back-ends, one a file. None of them imports its library before it is asked to work."""

from __future__ import annotations

from qcompiler.engines.base import Diagnostic, Engine, EngineFile, Profile, Runner
from qcompiler.errors import UsageError
from qcompiler.target import ENGINES, Target

__all__ = ["Diagnostic", "Engine", "EngineFile", "Profile", "Runner", "for_target"]


def for_target(target: Target) -> Engine:
    """The back-end that serves a target, with default options.

    Raises:
        UsageError: no such engine.
        EngineError: an SM that the engine does not have.
    """
    if target.engine == "tensorrt-rtx":
        from qcompiler.engines.tensorrt_rtx import TensorRTRTX

        return TensorRTRTX(sms=target.sms)
    if target.engine == "tensorrt":
        from qcompiler.engines.tensorrt import TensorRT

        return TensorRT(sms=target.sms, plugins=target.plugins)
    if target.engine == "onnxruntime":
        from qcompiler.engines.onnxruntime import OnnxRuntime

        return OnnxRuntime()
    raise UsageError(f"unknown target '{target.engine}': choose one of {', '.join(ENGINES)}")
