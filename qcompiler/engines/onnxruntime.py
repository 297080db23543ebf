"""ONNX Runtime: the quantized graph, optimised once and stored, for serving on CPU or CUDA."""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from qcompiler.engines.base import Diagnostic, Engine, EngineFile, Profile, Progress, Runner, graph_of, model_file
from qcompiler.engines.gpu import check_feeds
from qcompiler.errors import DataError, EngineError, QCompilerError, UsageError
from qcompiler.runtime import fp8, plugins
from qcompiler.support.atomic import staged, unwritable
from qcompiler.support.held import workshop

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
LEVELS = {
    "off": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
EXTERNAL_ABOVE = 1 << 30  # one protobuf message holds less than 2 GiB
_NODE = re.compile(r"[Nn]ode(?: with name)?[:\s]*[('\"]+([^'\")]+)['\")]")
_OPERATOR = re.compile(r"(?:implementation for |Op ?\(|:)(\w+)\(-?\d+\)|Op ?\((\w+)\)")


@dataclass(frozen=True)
class OnnxRuntime(Engine):
    """ONNX Runtime.

    Attributes:
        provider: `cpu` or `cuda`.
        level: how far the stored graph is optimised: `off`, `basic`, `extended` (the default: all fusions, but no
            layouts that only the building machine's processor likes) or `all`. FP8 graphs on the CPU are always stored
            and run with `off`, because ONNX Runtime's optimisations break them there.
        threads: threads of one operator; 0 for one a core.

    Raises:
        UsageError: an unknown provider or level.
    """

    name: ClassVar[str] = "onnxruntime"

    provider: str = "cpu"
    level: str = "extended"
    threads: int = 0

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise UsageError(f"unknown provider '{self.provider}': choose one of {', '.join(PROVIDERS)}")
        if self.level not in LEVELS:
            raise UsageError(f"unknown optimisation level '{self.level}': choose one of {', '.join(LEVELS)}")

    def check(self, model_path: str | Path) -> list[Diagnostic]:
        """See `Engine.check`: whether ONNX Runtime has a kernel for every node."""
        model = model_file(model_path)
        library = self._library()
        try:
            self._session(library, model, self._options(library, "off"))
        except Exception as error:  # the library's exceptions have no base of their own
            return [_diagnostic(error)]
        return []

    def build(
        self,
        model_path: str | Path,
        output_path: str | Path,
        profiles: Sequence[Profile] = (),
        *,
        progress: Progress | None = None,
    ) -> EngineFile:
        """See `Engine.build`. The file is ONNX whatever its suffix; above 1 GiB its weights lie in `<output>.data`.

        Profiles are not needed: the graph takes every shape that the model takes.
        """
        started = time.perf_counter()
        model, output = model_file(model_path), Path(output_path)
        library = self._library()
        options = self._options(library, self._level(model))
        options.add_session_config_entry("session.save_model_format", "ONNX")
        large = sum(_sizes(model)) > EXTERNAL_ABOVE
        with staged(output) as draft, workshop(output.parent) as folder:
            written = folder / output.name
            options.optimized_model_filepath = os.fspath(written)
            if large:
                data = f"{output.name}.data"
                options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
                options.add_session_config_entry(
                    "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
                )
            if progress is not None:
                progress("optimise", 0.0)
            try:
                self._session(library, model, options)
            except Exception as error:  # the library's exceptions have no base of their own
                raise self._error(error, model, output) from error
            size = written.stat().st_size
            if large:
                size += (folder / data).stat().st_size
                os.replace(folder / data, output.with_name(data))
            os.replace(written, draft)
        if progress is not None:
            progress("optimise", 1.0)
        return EngineFile(output, self.name, size, time.perf_counter() - started, (), str(library.__version__))

    def open(self, engine_file: EngineFile | str | Path) -> Runner:
        """See `Engine.open`."""
        path = engine_file.path if isinstance(engine_file, EngineFile) else Path(engine_file)
        if not path.is_file():
            raise EngineError(f"there is no engine '{path}': build it first")
        library = self._library()
        try:
            options = self._options(library, "off" if self._level(path) == "off" else "all")
            return _SessionRunner(self._session(library, path, options), path)
        except Exception as error:  # the library's exceptions have no base of their own
            raise self._error(error, path, path) from error

    def session(self, path: str | Path) -> Any:
        """ONNX Runtime's own session over a model file, fully optimised, for those who bind memory themselves.

        Its threads rest as soon as a run is over, so that they take nothing from other sessions on this machine.

        Raises:
            ModelError: there is no such file.
            EngineError: the provider is not here, or ONNX Runtime refuses the model.
        """
        model = model_file(path)
        library = self._library()
        options = self._options(library, "off" if self._level(model) == "off" else "all")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            try:
                return self._session(library, model, options)
            except Exception as error:  # see below
                if "output_dtype INT8 does not match" not in str(error):
                    raise
            options.add_session_config_entry("session.qdqisint8allowed", "1")  # onnxruntime#25526, open in 1.31
            return self._session(library, model, options)
        except Exception as error:  # the library's exceptions have no base of their own
            raise self._error(error, model, model) from error

    def _library(self) -> Any:
        try:
            import onnxruntime
        except (ImportError, OSError) as error:
            raise EngineError(f"ONNX Runtime is not installed here ({error}): run pip install onnxruntime") from error
        if self.provider not in available():
            raise EngineError(
                f"ONNX Runtime {onnxruntime.__version__} cannot run on {self.provider} here, only on "
                f"{', '.join(available())}: install onnxruntime-gpu and the CUDA and cuDNN that it asks for, on a "
                "machine with an NVIDIA GPU"
            )
        return onnxruntime

    def _options(self, library: Any, level: str) -> Any:
        options = library.SessionOptions()
        plugins.load_into(options)
        options.graph_optimization_level = getattr(library.GraphOptimizationLevel, LEVELS[level])
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        # Without this, weights in few bits are multiplied with activations rounded to INT8, and in FP16 graphs the
        # level `extended` gives zeros (1.31)
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        return options

    def _session(self, library: Any, path: Path, options: Any) -> Any:
        return library.InferenceSession(os.fspath(path), options, providers=[PROVIDERS[self.provider]])

    def _level(self, model: Path) -> str:
        return "off" if self.provider == "cpu" and fp8.in_file(model) else self.level

    def _error(self, error: Exception, model: Path, output: Path) -> QCompilerError:
        if isinstance(error, OSError):
            return unwritable(output, error)
        said = _diagnostic(error)
        return EngineError(f"ONNX Runtime refuses '{model}' at {said}; change the node, or choose another target")


class _SessionRunner(Runner):
    def __init__(self, session: Any, path: Path) -> None:
        self._session = session
        self._path = path
        self._inputs = [one.name for one in session.get_inputs()]
        self._outputs = [one.name for one in session.get_outputs()]

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._session is None:
            raise EngineError(f"the runner of '{self._path}' is closed: open the engine again")
        check_feeds(feeds, self._inputs)
        try:
            found = self._session.run(self._outputs, dict(feeds))
        except Exception as error:  # the library's exceptions have no base of their own
            if type(error).__name__ in ("InvalidArgument", "ValueError"):
                raise DataError(f"the feed does not fit '{self._path}': {' '.join(str(error).split())}") from error
            raise EngineError(f"running '{self._path}' failed at {_diagnostic(error)}") from error
        return dict(zip(self._outputs, found, strict=True))

    def close(self) -> None:
        self._session = None


@functools.cache
def available() -> tuple[str, ...]:
    """The providers that really load here; a build of ONNX Runtime lists some whose libraries are not there."""
    import onnx.parser
    import onnxruntime

    text = '<ir_version: 8, opset_import: ["": 13]> probe (float[1] x) => (float[1] y) { y = Relu(x) }'
    probe = onnx.parser.parse_model(text).SerializeToString()
    listed = onnxruntime.get_available_providers()
    onnxruntime.set_default_logger_severity(4)  # a library that is not there is the question here, not an error
    try:
        return tuple(name for name, long in PROVIDERS.items() if long in listed and _loads(onnxruntime, probe, long))
    finally:
        onnxruntime.set_default_logger_severity(2)


def _loads(library: Any, probe: bytes, provider: str) -> bool:
    try:
        return bool(library.InferenceSession(probe, providers=[provider]).get_providers()[0] == provider)
    except Exception:  # whatever keeps it from loading, the answer is no
        return False


def _diagnostic(error: Exception) -> Diagnostic:
    text = " ".join(str(error).split())
    node, operator = _NODE.search(text), _OPERATOR.search(text)
    return Diagnostic(node.group(1) if node else "", next(filter(None, operator.groups())) if operator else "", text)


def _sizes(model: Path) -> Iterator[int]:
    yield model.stat().st_size
    files = {
        entry.value for one in graph_of(model).initializer for entry in one.external_data if entry.key == "location"
    }
    yield from (path.stat().st_size for path in (model.parent / name for name in files) if path.is_file())
