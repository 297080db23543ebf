"""The stage in which the engine's real parser reads the float graph, before anything long is started."""

from __future__ import annotations

from qcompiler.compiler.artefacts import Paths, workshop
from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.engines import for_target
from qcompiler.errors import EngineError
from qcompiler.ir import model as models
from qcompiler.passes.base import Pipeline
from qcompiler.passes.legalize.legalize import Legalize
from qcompiler.passes.pipelines import NORMAL
from qcompiler.target import Target


@stage(kept=False)
def preflight(run: Compilation, model: models.Model, target: Target, paths: Paths) -> Done[None]:
    """Asks the target's parser.

    Args:
        model: the normal float model.
        target: with the engine that is asked.
        paths: the artefacts; the file that is read stands beside them for as long as it takes.

    Raises:
        EngineError: it refuses the model; the message names the nodes. Or an output is an input.
    """
    _refuse_handed_through(model, target)
    with run.working(), workshop(paths) as shop:
        path = shop / "preflight.onnx"
        legal = models.copy(model)
        Pipeline(Legalize(target), given=NORMAL)(legal.graph)  # a model that came quantized may need repairs
        models.save(legal, path)
        found = for_target(target).check(path)
    if found:
        listed = "; ".join(str(one) for one in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise EngineError(
            f"{target.engine} refuses this model: {listed}. Replace or remove the named operators before "
            "compiling, or choose '--target onnxruntime'."
        )
    return Done(None)


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
