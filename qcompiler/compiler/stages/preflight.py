"""The stage in which the engine is built once from the float graph, before anything long is started.

What a parser takes its builder may still refuse: an operator without a kernel, a TopK that asks for too many values. So
the float graph is built, typed as most of the result will be, for the shapes that the result must serve. That costs
about what the build at the end costs; what is built is thrown away. Nothing has been observed yet, so every value is
taken for one that fits: what ranges keep in FP32 later is not known, and so no build at the end is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from qcompiler.compiler.artefacts import Paths, workshop
from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.serving import BuildOptions, profiles_of
from qcompiler.compiler.subject import Subject
from qcompiler.data.samples import Keep, ShapeRange
from qcompiler.engines import Engine, Profile, for_target
from qcompiler.errors import BuildError, EngineError
from qcompiler.ir import model as models
from qcompiler.passes.base import Pass, Pipeline
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.passes.known_part import whole
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.passes.pipelines import NORMAL
from qcompiler.statistics.observe import Observations
from qcompiler.statistics.ranges import Range, Ranges, wanted
from qcompiler.target import DType, Target

_FITS = Range(-1.0, 1.0)
_LOOKED_AT = 64  # feeds whose shapes the trial is built for; the engine at the end serves those of all


@stage(kept=False)
def preflight(run: Compilation, subject: Subject, target: Target, paths: Paths, options: BuildOptions) -> Done[None]:
    """Asks the target's parser, then its builder.

    Args:
        run: shows the work.
        subject: with the normal float model.
        target: with the engine that is asked.
        paths: the artefacts; the files of the trial stand beside them for as long as it takes.
        options: what the engine must serve.

    Raises:
        DataError: the shapes of the data have no smallest or largest ones that fit together.
        EngineError: it refuses the model; the message names the nodes. Or an output is an input.
    """
    _refuse_handed_through(subject.model, target)
    engine = for_target(target)
    with run.working(), workshop(paths) as shop:
        path = shop / "preflight.onnx"
        _refuse_unknown(engine, _written(subject, path, Legalize(target)), target)
        if target.engine != "onnxruntime":
            _build(engine, subject, target, options, path)
    return Done(None)


def _build(engine: Engine, subject: Subject, target: Target, options: BuildOptions, path: Path) -> None:
    """Builds the float graph, and where that fails, with everything in FP32: what neither can is no matter of types."""
    served = profiles_of(subject.model, _shapes(subject), subject.inputs, options, _untold)
    output, failed = path.with_suffix(".engine"), None
    for typing in _typings(subject.model, target):
        written = _written(subject, path, *typing, Legalize(target))
        try:
            engine.quick().build(written, output, served)
        except BuildError as error:
            failed = error
        else:
            return
    if failed is not None:
        raise _refusal(engine, failed, served) from failed


def _typings(model: models.Model, target: Target) -> Iterator[tuple[Pass, ...]]:
    """What stands in front of the legality pass, one trial each."""
    if target.high_precision is not DType.FP32:
        fits = Ranges(dict.fromkeys(wanted(model), _FITS))
        yield (HighPrecision(target.high_precision, ranges=fits, typed_dequantize=target.typed_dequantize),)
    yield ()


def _written(subject: Subject, path: Path, *passes: Pass) -> Path:
    """A copy of the model behind some passes, with what stands behind it, as a file."""
    legal = models.copy(subject.model)
    Pipeline(*passes, given=NORMAL)(legal.graph)  # a model that came quantized may need repairs
    models.save(whole(legal, subject.behind), path)
    return path


def _shapes(subject: Subject) -> Observations:
    """The shapes of the first feeds, and one of these."""
    shapes, kept = ShapeRange(), Keep(1)
    for feed in islice(subject.samples or (), _LOOKED_AT):
        shapes.watch(feed)
        kept.offer(feed)
    return Observations(kept=tuple(kept.feeds), shapes=shapes, axes=subject.axes)


def _untold(_: str) -> None:
    """The build at the end warns of the same."""


def _refusal(engine: Engine, failed: BuildError, served: list[Profile]) -> EngineError:
    for_shapes = " for the shapes that it must serve" if served else ""
    refusal = EngineError(
        f"{engine.name} takes this model and cannot build it{for_shapes}, not even in float: {failed.why}. "
        f"{failed.remedy} Nothing was calibrated yet; --debug shows what the builder said."
    )
    refusal.said = failed.said
    return refusal


def _refuse_unknown(engine: Engine, path: Path, target: Target) -> None:
    found = engine.check(path)
    if not found:
        return
    listed = "; ".join(str(one) for one in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    raise EngineError(
        f"{target.engine} refuses this model: {listed}. Replace or remove the named operators before "
        "compiling, or choose '--target onnxruntime'."
    )


def _refuse_handed_through(model: models.Model, target: Target) -> None:
    """TensorRT gives the input another name where an output is an input, so that no caller finds it."""
    inputs = {id(tensor) for tensor in model.graph.inputs}
    same = [tensor.name for tensor in model.graph.outputs if id(tensor) in inputs]
    if target.engine == "onnxruntime" or not same:
        return
    listed = ", ".join(f"'{name}'" for name in same)
    raise EngineError(
        f"output {listed} of the model is an input that is handed through, which {target.engine} cannot give under one "
        "name. Remove that output, as its reader has the input already, or export it behind an Identity with a name of "
        "its own; '--target onnxruntime' takes it as it is."
    )
