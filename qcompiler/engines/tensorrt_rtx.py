"""TensorRT-RTX: builds engines on machines without a GPU, for the GPU generations asked for.

Each parse or build runs in a process of its own (`rtx_child`), which isolates crashes of the library, frees its
memory, and keeps its one-logger-per-process rule out of this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

from qcompiler.engines.base import (
    Diagnostic,
    Engine,
    EngineFile,
    Profile,
    Progress,
    Runner,
    graph_of,
    model_file,
    nodes_in,
)
from qcompiler.engines.rtx_words import remedy, why
from qcompiler.errors import BuildError, EngineError, QCompilerError, UsageError
from qcompiler.support.atomic import staged, unwritable
from qcompiler.target import RTX_SMS

REQUIREMENT = "tensorrt-rtx>=1.7.1,<1.8"
OLDEST = (1, 7, 1)  # before it: no build without a GPU (1.4) or no INT8 convolution (1.6)
CHILD = "qcompiler.engines.rtx_child"

# A warning that means wrong numbers: the library reads UINT8 as INT8, so that 128..255 saturate at 127. It warns only
# where a zero point says UINT8, and not where a missing one means it.
READ_AS_INT8 = "Defaulting to INT8 instead"


@dataclass(frozen=True)
class TensorRTRTX(Engine):
    """TensorRT-RTX on the CPU, ahead of time.

    Attributes:
        sms: compute capabilities such as ("sm89", "sm120"); empty for the portable plan, which runs from sm80 up
            (sm89 up with FP8).
        workspace_mb: limit for scratch memory of one kernel in MiB; None for the library's default.

    Raises:
        EngineError: an SM that the library does not have.
    """

    name: ClassVar[str] = "tensorrt-rtx"

    sms: tuple[str, ...] = ()
    workspace_mb: int | None = None

    def __post_init__(self) -> None:
        for sm in self.sms:
            if sm not in RTX_SMS:
                raise EngineError(
                    f"TensorRT-RTX has no {sm}: it compiles for {', '.join(RTX_SMS)}. "
                    "Choose one of these, or '--target tensorrt' on a machine with that GPU."
                )
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise UsageError(f"a workspace of {self.workspace_mb} MiB is impossible: give at least 1, or leave it out")

    def check(self, model_path: str | Path) -> list[Diagnostic]:
        """See `Engine.check`. UINT8 quantization, which the library would read as INT8, is reported as well."""
        model = model_file(model_path)
        done = _run({"task": "check", "model": os.fspath(model.resolve())}, model, None)
        found = [Diagnostic(**row) for row in done.result["diagnostics"]]
        if done.result["accepted"]:
            return found + done.read_as_int8(model)
        return found or [Diagnostic("", "", done.last_words() or "the parser refused it without a reason")]

    def build(
        self,
        model_path: str | Path,
        output_path: str | Path,
        profiles: Sequence[Profile] = (),
        *,
        progress: Progress | None = None,
    ) -> EngineFile:
        """See `Engine.build`."""
        started = time.perf_counter()
        model, output = model_file(model_path), Path(output_path)
        with staged(output) as draft:
            task = {
                "task": "build",
                "model": os.fspath(model.resolve()),
                "output": os.fspath(draft.resolve()),
                "sms": list(self.sms),
                "workspace_mb": self.workspace_mb,
                "profiles": [profile.to_json() for profile in profiles],
            }
            done = _run(task, model, progress, output)
            wrong = done.read_as_int8(model)
            if wrong:
                raise EngineError(
                    f"TensorRT-RTX would read the UINT8 quantization of {len(wrong)} nodes in '{model}' as INT8 and "
                    f"compute wrong numbers, first at node '{wrong[0].node}': quantize to INT8 with zero point 0"
                )
        if progress is not None:
            progress("build", 1.0)
        return EngineFile(
            path=output,
            engine=self.name,
            bytes=done.result["bytes"],
            seconds=time.perf_counter() - started,
            sms=self.sms,
            version=done.version,
            peak_rss_mb=done.result["peak_rss_mb"],
            warnings=tuple(dict.fromkeys(text for severity, text in done.log if severity == "WARNING")),
        )

    def open(self, engine_file: EngineFile | str | Path) -> Runner:
        """See `Engine.open`. Needs an NVIDIA driver and a GPU that TensorRT-RTX supports."""
        from qcompiler.engines.gpu import PlanRunner

        path = engine_file.path if isinstance(engine_file, EngineFile) else Path(engine_file)
        return PlanRunner("tensorrt_rtx", path, f"pip install '{REQUIREMENT}'")


@dataclass
class _Outcome:
    """What the process said until its end."""

    version: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    refusal: dict[str, Any] | None = None
    log: list[tuple[str, str]] = field(default_factory=list)

    def last_words(self, count: int = 3) -> str:
        """The last error messages (all messages if there are no errors), in one line."""
        errors = [text for severity, text in self.log if severity != "WARNING"]
        return " | ".join(" ".join(text.split()) for text in (errors or [text for _, text in self.log])[-count:])

    def all_words(self) -> str:
        """Everything that was logged, a line each."""
        return "\n".join(f"{severity}: {text}" for severity, text in self.log)

    def read_as_int8(self, model: Path) -> list[Diagnostic]:
        """One diagnostic for each UINT8 Q/DQ node."""
        warned = any(READ_AS_INT8 in text for _, text in self.log)
        found = list(_unsigned_nodes(model)) or ([("", "")] if warned else [])
        text = "UINT8 quantization would be read as INT8, which computes wrong numbers: use INT8 with zero point 0"
        return [Diagnostic(node, op, text) for node, op in found]


def _run(task: dict[str, Any], model: Path, progress: Progress | None, output: Path | None = None) -> _Outcome:
    with tempfile.TemporaryFile() as errors, _child(task, errors) as process:
        outcome = _listen(process, progress)
        process.wait()
        errors.seek(0)
        spoken = errors.read()[-4000:].decode(errors="replace")
    if outcome.refusal is not None:
        raise _error(outcome, model, output)
    if not outcome.result:
        raise _crash(process.returncode, outcome, model, spoken)
    return outcome


@contextlib.contextmanager
def _child(task: dict[str, Any], errors: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """Starts the process and hands it the task; however the block is left, the process is gone afterwards."""
    paths = [os.path.abspath(entry) for entry in sys.path]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C comes to this process alone, which then ends the child
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it died at once; its exit is reported by the caller
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _listen(process: subprocess.Popen[str], progress: Progress | None) -> _Outcome:
    outcome = _Outcome()
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        kind = event.pop("event")
        if kind == "progress" and progress is not None:
            progress(event["phase"], event["share"])
        elif kind == "log":
            outcome.log.append((event["severity"], event["text"]))
        elif kind == "version":
            outcome.version = event["version"]
            _require(outcome.version)
        elif kind == "result":
            outcome.result = event
        elif kind == "refused":
            outcome.refusal = event
    return outcome


def _require(version: str) -> None:
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < OLDEST:
        raise EngineError(f"TensorRT-RTX {version} is too old for INT8: run pip install '{REQUIREMENT}'")


def _error(outcome: _Outcome, model: Path, output: Path | None) -> QCompilerError:
    said = outcome.refusal or {}
    reason, text = said["reason"], said.get("text", "")
    if reason == "missing":
        return EngineError(f"TensorRT-RTX is not installed here ({text}): run pip install '{REQUIREMENT}'")
    if reason == "output" and output is not None:
        return unwritable(output, OSError(said.get("errno") or 0, text))
    if reason == "sm":
        return EngineError(
            f"the TensorRT-RTX {outcome.version} installed here has no {said['sm']}: it compiles for "
            f"{', '.join(said['known'])}"
        )
    if reason == "profile":
        return EngineError(
            f"the optimization profile does not fit the model: {text}. Give the smallest, typical and largest shape "
            "of every dynamic input, as in --shapes x=1x3x224x224,8x3x224x224,32x3x224x224"
        )
    if reason == "parse":
        return _refused([Diagnostic(**row) for row in said["diagnostics"]], outcome, model)
    words = text or outcome.last_words() or "it gave no reason"
    head = f"TensorRT-RTX {outcome.version} could not build '{model}'"
    return BuildError.of(
        head, why(words, nodes_in(words, graph_of(model))), remedy(words), outcome.all_words() or words
    )


def _refused(found: list[Diagnostic], outcome: _Outcome, model: Path) -> EngineError:
    named = [one for one in found if one.node]
    if not named:
        words = (found[0].message if found else outcome.last_words()).rstrip(". ")
        return EngineError(
            f"TensorRT-RTX refuses '{model}': {words}. Is it a valid ONNX model, with its external data beside it?"
        )
    more = f" (and {len(named) - 1} more nodes)" if len(named) > 1 else ""
    return EngineError(
        f"TensorRT-RTX refuses '{model}' at node {str(named[0]).rstrip('. ')}{more}. If it was quantized, keep it "
        "in high precision with --keep; else change it in the model."
    )


def _crash(code: int, outcome: _Outcome, model: Path, spoken: str) -> EngineError:
    how = f"ended with exit code {code}"
    if code < 0:
        with contextlib.suppress(ValueError):
            how = f"was killed by {signal.Signals(-code).name}"
    words = outcome.last_words() or " ".join(spoken.split())[-600:] or "nothing"
    memory = " Out of memory is the usual cause: a build takes about three times the size of the weights." * (
        code == -9
    )
    return EngineError(
        f"the process that builds '{model}' with TensorRT-RTX {how}; the last it said was: {words}.{memory} "
        "This is a failure of the library: if it names a quantized node, keep that in high precision with --keep; or "
        "build for other SMs."
    )


def _unsigned_nodes(model: Path) -> Iterator[tuple[str, str]]:
    """Name and operator of each Q/DQ node whose zero point is UINT8 or, being absent, means UINT8."""
    import onnx

    graphs = [graph_of(model)]
    unsigned: set[str] = set()
    while graphs:
        graph = graphs.pop()
        unsigned.update(one.name for one in graph.initializer if one.data_type == onnx.TensorProto.UINT8)
        for node in graph.node:
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
            zero = node.input[2] if len(node.input) > 2 else ""
            if node.op_type == "Constant" and any(a.t.data_type == onnx.TensorProto.UINT8 for a in node.attribute):
                unsigned.update(node.output)
            elif node.op_type == "QuantizeLinear" and (zero in unsigned or (not zero and not _typed(node))):
                unsigned.update(node.output)
                yield node.name, node.op_type
            elif node.op_type == "DequantizeLinear" and (zero in unsigned or node.input[0] in unsigned):
                yield node.name, node.op_type


def _typed(quantize: Any) -> bool:
    return any(a.name == "output_dtype" and a.i not in (0, 2) for a in quantize.attribute)  # 2 is UINT8
