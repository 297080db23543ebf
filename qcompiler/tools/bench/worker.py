"""The other end of `child`: starts the process of a model, hands it tasks, raises what it fails with."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from qcompiler import errors
from qcompiler.errors import EngineError, InternalError, QCompilerError

if TYPE_CHECKING:
    from qcompiler.ir.signature import Inputs


CHILD = "qcompiler.tools.bench.child"


class Worker:
    """A model in a process of its own. Use it as a context manager: however the block is left, the process is gone.

    Attributes:
        name: what the model is called in results.
        path: its file.
        peak_memory_mb: largest resident memory of the process so far, in MiB; None where the system does not tell.
    """

    def __init__(self, name: str, path: Path, engine: str, provider: str, threads: int) -> None:
        self.name, self.path, self.engine = name, path, engine
        self.inputs: Inputs = {}
        self.outputs: Inputs = {}
        self.where = self.version = ""
        self.open_s = 0.0
        self.peak_memory_mb: float | None = None
        self._task = {"model": os.fspath(path.resolve()), "engine": engine, "provider": provider, "threads": threads}

    def __enter__(self) -> Self:
        """Starts the process; the model is loaded by `open`."""
        paths = [os.path.abspath(entry) for entry in sys.path]
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C comes to this process alone, which then ends the child
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._errors.close()

    def open(self) -> None:
        """Loads the model.

        Raises:
            ModelError: there is no such file.
            EngineError: it cannot run here.
        """
        told = self._ask({"task": "open", **self._task})
        self.inputs, self.outputs = _described(told["inputs"]), _described(told["outputs"])
        self.where, self.version, self.open_s = told["where"], told["version"], told["seconds"]

    def infer(self, feeds: Path, count: int) -> list[float]:
        """Seconds of each of `count` runs on the arrays of an archive.

        Raises:
            DataError: they do not fit.
        """
        return list(self._ask({"task": "infer", "feeds": os.fspath(feeds), "count": count})["seconds"])

    def write(self, tokens: Path, prompt: int, count: int) -> dict[str, Any]:
        """See `loaded.write`; `tokens` is the archive that holds them, `count` how often the prompt is read."""
        return self._ask({"task": "write", "feeds": os.fspath(tokens), "prompt": prompt, "count": count})

    def _ask(self, task: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._died()
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise _error(told)
        self.peak_memory_mb = told.pop("peak_memory_mb")
        return told

    def _died(self) -> EngineError:
        code = self._process.wait()
        self._errors.seek(0)
        said = " ".join(self._errors.read()[-2000:].decode(errors="replace").split())[-400:] or "nothing"
        memory = " Out of memory is the usual cause: try smaller batches or lengths." * (code == -9)
        return EngineError(
            f"the process that runs '{self.path}' ended with exit code {code}; the last it said was: {said}.{memory}"
        )


def _described(told: dict[str, Any]) -> Inputs:
    return {name: (_dtype(dtype), None if shape is None else tuple(shape)) for name, (dtype, shape) in told.items()}


def _dtype(name: str | None) -> np.dtype[Any] | None:
    import ml_dtypes

    return None if name is None else np.dtype(getattr(ml_dtypes, name, name))


def _error(told: dict[str, Any]) -> QCompilerError:
    kind = getattr(errors, told["error"], InternalError)
    found: QCompilerError = kind(told["text"])
    return found
