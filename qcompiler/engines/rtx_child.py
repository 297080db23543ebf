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

# After each refused call on a machine without a GPU the library adds lines which say only that there is no GPU.
NOISE = ("cudaError 35", "checkMacros.cpp", "CUDA driver version is insufficient", "CUDA initialization failure")


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


class Refusal(Exception):
    """The task cannot be done; `fields` go to the parent."""

    def __init__(self, reason: str, **fields: Any) -> None:
        super().__init__(reason)
        self.fields: dict[str, Any] = {"reason": reason, **fields}


class Phases:
    """Turns nested phases with steps into one share of the whole that never falls."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str | None, int, int]] = {}
        self._share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins inside `parent`."""
        self._open[name] = (parent, max(steps, 1), 0)

    def step(self, name: str, step: int) -> float:
        """Step number `step` of a phase is done; returns the share of the whole."""
        parent, steps, _ = self._open.get(name, (None, 1, 0))
        self._open[name] = (parent, steps, step + 1)
        done, inside = float(step + 1), name
        while True:
            parent, steps, _ = self._open[inside]
            done = min(done / steps, 1.0)
            if parent is None or parent not in self._open:
                break
            done += self._open[parent][2]
            inside = parent
        self._share = max(self._share, done)
        return self._share

    def finish(self, name: str) -> None:
        """A phase ends."""
        self._open.pop(name, None)


def main() -> NoReturn:
    """Does the task on standard input and ends the process without unloading the library, which can crash in that."""
    channel = Channel()
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_watch, args=(task.get("output"),), daemon=True).start()
    try:
        channel.send("result", **_run(task, channel))
    except Refusal as refusal:
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
        raise Refusal("missing", text=str(error)) from error

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
    if not accepted and not any(row["node"] for row in diagnostics):
        diagnostics = _node_by_node(trt, builder, logger, task["model"]) or diagnostics
    if task["task"] == "check":
        return {"accepted": accepted, "diagnostics": diagnostics}
    if not accepted:
        raise Refusal("parse", diagnostics=diagnostics)
    config = builder.create_builder_config()
    _set_capabilities(trt, config, task["sms"])
    _set_workspace(trt, config, task.get("workspace_mb"))
    _add_profiles(builder, network, config, task["profiles"])
    config.progress_monitor = monitor = _monitor(trt, channel)
    plan = builder.build_serialized_network(network, config)
    del monitor
    if plan is None:
        raise Refusal("build")
    with open(task["output"], "wb") as file:
        file.write(memoryview(plan))
    return {"bytes": plan.nbytes, "peak_rss_mb": _peak_rss_mb()}


def _diagnostics(parser: Any) -> list[dict[str, str]]:
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    return [{"node": e.node_name(), "op": e.node_operator(), "message": e.desc()} for e in errors]


def _node_by_node(trt: Any, builder: Any, logger: Any, model: str) -> list[dict[str, str]]:
    """Asks again in the form that reports single nodes, for a refusal that named none."""
    parser = trt.OnnxParser(builder.create_network(0), logger)
    if not os.path.getsize(model) < 1 << 30:
        return []
    with open(model, "rb") as file:
        parser.supports_model_v2(file.read(), model)
    return [row for row in _diagnostics(parser) if row["node"]]


def _set_capabilities(trt: Any, config: Any, sms: list[str]) -> None:
    known = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    config.num_compute_capabilities = len(sms) if sms else config.num_compute_capabilities
    for index, sm in enumerate(sms):
        if sm.upper() not in known:
            raise Refusal("sm", sm=sm, known=[name.lower() for name in known])
        config.set_compute_capability(trt.ComputeCapability.__members__[sm.upper()], index)


def _set_workspace(trt: Any, config: Any, megabytes: int | None) -> None:
    if megabytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, megabytes << 20)


def _add_profiles(builder: Any, network: Any, config: Any, profiles: list[dict[str, Any]]) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    names = [one.name for one in inputs]
    needing = [one for one in inputs if one.is_shape_tensor or any(size < 0 for size in one.shape)]
    for given in profiles:
        unknown = sorted((set(given["shapes"]) | set(given["values"])) - set(names))
        if unknown:
            raise Refusal("profile", text=f"it speaks of '{unknown[0]}', but the model's inputs are {', '.join(names)}")
    if not needing:
        return
    for index, given in enumerate(profiles or [{"shapes": {}, "values": {}}]):
        profile = builder.create_optimization_profile()
        for one in needing:
            _fill(profile, one, given, bool(profiles))
        if config.add_optimization_profile(profile) < 0:
            raise Refusal("profile", text=f"the library does not accept profile {index}")


def _fill(profile: Any, one: Any, given: dict[str, Any], any_profile: bool) -> None:
    shape = tuple(one.shape)
    kind = "values" if one.is_shape_tensor else "shapes"
    if one.name not in given[kind]:
        what = "has no values" if one.is_shape_tensor else "has no shapes"
        where = f"input '{one.name}' {list(shape)} is dynamic but {what} in the profile"
        raise Refusal("profile", text=where if any_profile else where.replace(" in the profile", ": no profile was given"))
    ranges = [tuple(one_shape) for one_shape in given[kind][one.name]]
    if one.is_shape_tensor:
        profile.set_shape_input(one.name, *ranges)
        return
    if len(ranges[0]) != len(shape) or any(
        size >= 0 and size != asked for asked_shape in ranges for size, asked in zip(shape, asked_shape, strict=True)
    ):
        spelled = ", ".join("x".join(map(str, asked)) for asked in ranges)
        raise Refusal("profile", text=f"input '{one.name}' is {list(shape)} in the model, which {spelled} do not fit")
    profile.set_shape(one.name, *ranges)


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
