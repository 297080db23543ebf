"""The process that runs TensorRT-RTX: parses, and builds if asked to, then ends.

The library may crash, keeps its memory and takes one logger per process, so each task gets a process of its own. One
line of JSON on standard input says what to do; lines of JSON on the original standard output say what happened. When
standard input closes, the parent is gone: the process removes its unfinished file and ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from qcompiler.engines.base import Input, Phases, Profile, profile_error

# After each refused call on a machine without a GPU the library adds lines which say only that there is no GPU.
NOISE = (
    "cudaError 35",
    "checkMacros.cpp",
    "CUDA driver version is insufficient",
    "CUDA initialization failure",
    "Empty initializer",  # an absent `roi` of Resize, which is an empty tensor by the standard
    "has Int64 binding",  # nothing is lost: INT64 inputs have been kept as they are since TensorRT 10
)


class Channel:
    """Writes one JSON object a line to the pipe that was standard output when the process started."""

    def __init__(self) -> None:
        """Takes standard output for itself; what libraries print goes to standard error."""
        self._pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._lock = threading.Lock()
        os.dup2(2, 1)

    def send(self, event: str, **fields: Any) -> None:
        """Sends one event; returns when it is in the pipe, so that a crash right after it loses nothing."""
        with self._lock:
            self._pipe.write(json.dumps({"event": event, **fields}) + "\n")
            self._pipe.flush()


class RefusedError(Exception):
    """The task cannot be done; `fields` go to the parent."""

    def __init__(self, reason: str, **fields: Any) -> None:
        super().__init__(reason)
        self.fields: dict[str, Any] = {"reason": reason, **fields}


def main() -> NoReturn:
    """Does the task on standard input and ends the process without unloading the library, which can crash in that."""
    channel = Channel()
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_watch, args=(task.get("output"),), daemon=True).start()
    try:
        channel.send("result", **_run(task, channel))
    except RefusedError as refusal:
        channel.send("refused", **refusal.fields)
    except OSError as error:
        channel.send("refused", reason="output", text=error.strerror or str(error), errno=error.errno)
    except Exception as error:  # the parent must learn of every failure; it raises an EngineError with this text
        channel.send("refused", reason="failed", text=f"{type(error).__name__}: {error}")
    sys.stderr.flush()
    os._exit(0)


def _watch(output: str | None) -> None:
    sys.stdin.read()
    if output is not None:
        Path(output).unlink(missing_ok=True)
    os._exit(3)


def _run(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    try:
        import tensorrt_rtx as trt
    except (ImportError, OSError) as error:
        raise RefusedError("missing", text=str(error)) from error

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING and not any(noise in message for noise in NOISE):
                channel.send("log", severity=severity.name, text=message)

    logger = Logger()
    channel.send("version", version=trt.__version__)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    channel.send("progress", phase="parse", share=0.0)
    accepted = parser.parse_from_file(task["model"])
    diagnostics = _diagnostics(parser)
    if accepted and not network.num_outputs:  # an empty file parses without complaint
        accepted, diagnostics = False, [{"node": "", "op": "", "message": "there is no output in it"}]
    if task["task"] == "check":
        return {"accepted": accepted, "diagnostics": diagnostics}
    if not accepted:
        raise RefusedError("parse", diagnostics=diagnostics)
    config = builder.create_builder_config()
    _set_capabilities(trt, config, task["sms"])
    _set_workspace(trt, config, task.get("workspace_mb"))
    _add_profiles(builder, network, config, task["profiles"])
    config.progress_monitor = monitor = _monitor(trt, channel)
    plan = builder.build_serialized_network(network, config)
    del monitor
    if plan is None:
        raise RefusedError("build")
    with open(task["output"], "wb") as file:
        file.write(memoryview(plan))
    return {"bytes": plan.nbytes, "peak_rss_mb": _peak_rss_mb()}


def _diagnostics(parser: Any) -> list[dict[str, str]]:
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    return [{"node": e.node_name(), "op": e.node_operator(), "message": e.desc()} for e in errors]


def _set_capabilities(trt: Any, config: Any, sms: list[str]) -> None:
    known = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    config.num_compute_capabilities = len(sms) if sms else config.num_compute_capabilities
    for index, sm in enumerate(sms):
        if sm.upper() not in known:
            raise RefusedError("sm", sm=sm, known=[name.lower() for name in known])
        config.set_compute_capability(trt.ComputeCapability.__members__[sm.upper()], index)


def _set_workspace(trt: Any, config: Any, megabytes: int | None) -> None:
    if megabytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, megabytes << 20)


def _add_profiles(builder: Any, network: Any, config: Any, profiles: list[dict[str, Any]]) -> None:
    given = [Profile(**one) for one in profiles]
    raw = [network.get_input(index) for index in range(network.num_inputs)]
    inputs = [Input(one.name, tuple(one.shape), one.is_shape_tensor) for one in raw]
    wrong = profile_error(inputs, given)
    if wrong is not None:
        raise RefusedError("profile", text=wrong)
    if not any(one.dynamic for one in inputs):
        return
    for index, one in enumerate(given):
        profile = builder.create_optimization_profile()
        for name, shapes in one.shapes.items():
            profile.set_shape(name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise RefusedError("profile", text=f"the library does not accept profile {index}")


def _monitor(trt: Any, channel: Channel) -> Any:
    phases = Phases()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._told = -1.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            share = phases.step(phase_name, step)
            if share - self._told >= 0.01:
                self._told = share
                channel.send("progress", phase="build", share=round(share, 4))
            return True

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


def _peak_rss_mb() -> float | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


if __name__ == "__main__":
    main()
