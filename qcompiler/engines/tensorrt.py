"""TensorRT 10.12 and later on the GPU of this machine, through polygraphy.

polygraphy speaks to `tensorrt` or to `tensorrt_rtx`, decided by an environment variable when it is imported; here it is
always `tensorrt` (TensorRT-RTX runs in a process of its own and needs no polygraphy).
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from qcompiler.engines.base import (
    Diagnostic,
    Engine,
    EngineFile,
    Input,
    Phases,
    Profile,
    Progress,
    Runner,
    model_file,
    profile_error,
)
from qcompiler.engines.gpu import check_feeds, read_plan, require_gpu
from qcompiler.errors import BuildError, DataError, EngineError, UsageError
from qcompiler.support.atomic import staged

REQUIREMENT = "tensorrt>=10.12"
OLDEST = (10, 12)
HARDWARE = {"ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True)
class TensorRT(Engine):
    """TensorRT, strongly typed.

    Attributes:
        sms: compute capabilities that the engine is meant for, such as ("sm89",); the builder can only serve the GPU
            of this machine (and, with `hardware_compatible`, others), so anything else is refused. Empty for this GPU.
        timing_cache: file of kernel timings that is read before a build and extended after it; None for none.
        version_compatible: the engine also loads in later versions of the library.
        hardware_compatible: `ampere+` or `same-capability`: also for other GPUs than this one; None for this one only.
        workspace_mb: limit for scratch memory in MiB; None for all there is.
        optimization_level: 0..5, how long the builder looks for faster kernels; None for its default.
        plugins: shared libraries whose plugins the parser and the runtime find beside TensorRT's own.

    Raises:
        UsageError: an option outside of what is written here.
    """

    name: ClassVar[str] = "tensorrt"

    sms: tuple[str, ...] = ()
    timing_cache: str | None = None
    version_compatible: bool = False
    hardware_compatible: str | None = None
    workspace_mb: int | None = None
    optimization_level: int | None = None
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.hardware_compatible is not None and self.hardware_compatible not in HARDWARE:
            raise UsageError(
                f"unknown hardware compatibility '{self.hardware_compatible}': choose one of {', '.join(HARDWARE)}"
            )
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"optimization level {self.optimization_level} is not in 0..5")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise UsageError(f"a workspace of {self.workspace_mb} MiB is impossible: give at least 1, or leave it out")

    def check(self, model_path: str | Path) -> list[Diagnostic]:
        """See `Engine.check`."""
        model = model_file(model_path)
        trt = _library()
        _load(self.plugins)
        require_gpu("parsing with TensorRT")
        return _Parsed(trt, model, self._native_norm()).diagnostics

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
        trt = _library()
        _load(self.plugins)
        self._require(require_gpu("building with TensorRT"))
        with staged(output) as draft:
            if progress is not None:
                progress("parse", 0.0)
            parsed = _Parsed(trt, model, self._native_norm())
            if parsed.diagnostics:
                raise EngineError(
                    f"TensorRT refuses '{model}' at {str(parsed.diagnostics[0]).rstrip('. ')}. If it was "
                    "quantized, keep it in high precision with --keep; else change it in the model."
                )
            wrong = profile_error(parsed.inputs(), profiles)
            if wrong is not None:
                raise EngineError(
                    f"the optimization profile does not fit the model: {wrong}. Give the smallest, typical and "
                    "largest shape of every dynamic input, as in --shapes x=1x3x224x224,8x3x224x224,32x3x224x224"
                )
            draft.write_bytes(self._plan(trt, parsed, profiles, progress, model))
            size = draft.stat().st_size
        if progress is not None:
            progress("build", 1.0)
        return EngineFile(
            output, self.name, size, time.perf_counter() - started, self.sms, str(trt.__version__),
            warnings=tuple(dict.fromkeys(parsed.logger.warnings)),
        )  # fmt: skip

    def quick(self) -> TensorRT:
        """See `Engine.quick`: the first kernels that work, and no timings are kept."""
        return replace(self, optimization_level=0, timing_cache=None)

    def open(self, engine_file: EngineFile | str | Path) -> Runner:
        """See `Engine.open`."""
        path = engine_file.path if isinstance(engine_file, EngineFile) else Path(engine_file)
        plan = read_plan(path)
        trt = _library()
        _load(self.plugins)
        trt.init_libnvinfer_plugins(_logger(trt), "")
        require_gpu(f"running '{path}'")
        return _PolygraphyRunner(path, plan)

    def _native_norm(self) -> bool:
        return self.version_compatible or self.hardware_compatible is not None

    def _require(self, here: str) -> None:
        for sm in self.sms:
            if sm != here and self.hardware_compatible is None:
                raise EngineError(
                    f"TensorRT builds for the GPU of this machine, which is {here}, not {sm}: build there, or choose "
                    "'--target tensorrt-rtx', which builds for other GPUs"
                )

    def _plan(
        self, trt: Any, parsed: _Parsed, profiles: Sequence[Profile], progress: Progress | None, model: Path
    ) -> Any:
        from polygraphy.backend.trt import CreateConfig, engine_bytes_from_network
        from polygraphy.exception import PolygraphyException

        try:
            config = CreateConfig(**self.settings(trt, profiles, _monitor(trt, progress)))
            return engine_bytes_from_network(
                (parsed.builder, parsed.network), config=config, save_timing_cache=self.timing_cache
            )
        except PolygraphyException as error:
            words = " | ".join(parsed.logger.errors[-3:]) or " ".join(str(error).split())
            raise BuildError.of(
                f"TensorRT {trt.__version__} could not build '{model}'",
                words,
                "If it names a quantized node, keep that in high precision with --keep.",
                "\n".join(parsed.logger.errors),
            ) from error

    def settings(self, trt: Any, profiles: Sequence[Profile], monitor: Any = None) -> dict[str, Any]:
        """What polygraphy's `CreateConfig` is given: only what this version of the library has.

        Raises:
            EngineError: an option was asked for that this version lacks.
        """
        from polygraphy.backend.trt import Profile as Shapes

        chosen: dict[str, Any] = {"profiles": [_shapes(Shapes(), profile) for profile in profiles] or None}
        if self.timing_cache is not None and os.path.exists(self.timing_cache):
            chosen["load_timing_cache"] = self.timing_cache
        if self.version_compatible:
            _require_flag(trt, "BuilderFlag", "VERSION_COMPATIBLE")
            chosen["version_compatible"] = True
        if self.hardware_compatible is not None:
            level = HARDWARE[self.hardware_compatible]
            chosen["hardware_compatibility_level"] = _require_flag(trt, "HardwareCompatibilityLevel", level)
        if self.workspace_mb is not None:
            chosen["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: self.workspace_mb << 20}
        if self.optimization_level is not None:
            chosen["builder_optimization_level"] = self.optimization_level
        if monitor is not None:
            chosen["progress_monitor"] = monitor
        return chosen


class _Parsed:
    """A parsed model and what the parser said."""

    def __init__(self, trt: Any, model: Path, native_norm: bool) -> None:
        from polygraphy.backend.trt import create_network
        from polygraphy.backend.trt import util as polygraphy_trt

        self.logger = _logger(trt)
        polygraphy_trt.TRT_LOGGER = self.logger
        self.builder, self.network = create_network(strongly_typed=True)
        trt.init_libnvinfer_plugins(self.logger, "")
        self.parser = trt.OnnxParser(self.network, self.logger)
        if native_norm:
            self.parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)
        accepted = self.parser.parse_from_file(os.fspath(model))
        errors = [self.parser.get_error(index) for index in range(self.parser.num_errors)]
        self.diagnostics = [Diagnostic(one.node_name(), one.node_operator(), one.desc()) for one in errors]
        if not accepted and not self.diagnostics:
            self.diagnostics = [Diagnostic("", "", " | ".join(self.logger.errors[-3:]) or "refused without a reason")]

    def inputs(self) -> list[Input]:
        """The network's inputs."""
        found = [self.network.get_input(index) for index in range(self.network.num_inputs)]
        return [Input(one.name, tuple(one.shape), bool(one.is_shape_tensor)) for one in found]


class _PolygraphyRunner(Runner):
    def __init__(self, path: Path, plan: bytes) -> None:
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner
        from polygraphy.exception import PolygraphyException

        self._path = path
        self._errors = PolygraphyException
        self._runner: Any = TrtRunner(EngineFromBytes(plan))
        try:
            self._runner.activate()
        except PolygraphyException as error:
            raise EngineError(
                f"TensorRT does not take '{path}': {' '.join(str(error).split())}; build it on this machine"
            ) from error

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._runner is None:
            raise EngineError(f"the runner of '{self._path}' is closed: open the engine again")
        check_feeds(feeds, list(self._runner.get_input_metadata()))
        try:
            found = self._runner.infer(dict(feeds), check_inputs=True)
        except self._errors as error:
            raise DataError(f"the feed does not fit '{self._path}': {' '.join(str(error).split())}") from error
        return {name: np.array(value) for name, value in found.items()}  # polygraphy reuses its own arrays

    def close(self) -> None:
        if self._runner is not None:
            self._runner.deactivate()
        self._runner = None


def _library() -> Any:
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise EngineError(
            f"TensorRT is not installed here ({error}): run pip install '{REQUIREMENT}' on a machine with an NVIDIA "
            "GPU, or choose '--target tensorrt-rtx', which builds without one"
        ) from error
    version = tuple(int(part) for part in re.findall(r"\d+", tensorrt.__version__)[:2])
    if version < OLDEST:
        raise EngineError(
            f"TensorRT {tensorrt.__version__} is too old for strongly typed graphs: run pip install '{REQUIREMENT}'"
        )
    try:
        import polygraphy.config
    except ImportError as error:
        raise EngineError(f"polygraphy is not installed here ({error}): run pip install 'polygraphy>=0.53'") from error
    if polygraphy.config.USE_TENSORRT_RTX:
        raise EngineError(
            "polygraphy is set to TensorRT-RTX by POLYGRAPHY_USE_TENSORRT_RTX: unset it to build with TensorRT"
        )
    return tensorrt


def _load(plugins: Sequence[str]) -> None:
    """Loads libraries, which register their plugins by themselves when they are."""
    for library in plugins:
        try:
            ctypes.CDLL(os.path.abspath(library))
        except OSError as error:
            raise UsageError(f"plugin '{library}' cannot be loaded: {error}; check what it links to") from error


def _require_flag(trt: Any, kind: str, name: str) -> Any:
    found = getattr(getattr(trt, kind, None), name, None)
    if found is None:
        raise EngineError(f"TensorRT {trt.__version__} has no {kind}.{name}: leave the option out or upgrade it")
    return found


def _shapes(shapes: Any, profile: Profile) -> Any:
    for name, (low, opt, high) in profile.shapes.items():
        shapes.add(name, low, opt, high)  # polygraphy asks the network which of them are contents
    return shapes


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps messages; the library calls it from C++, where nothing may be raised."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            text = " ".join(message.split())
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(text)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(text)

    return Logger()


def _monitor(trt: Any, progress: Progress | None) -> Any:
    if progress is None or not hasattr(trt, "IProgressMonitor"):
        return None
    tell, phases = progress, Phases()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            tell("build", phases.step(phase_name, step))
            return True

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
