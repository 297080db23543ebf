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
        EngineError: it refuses the model; the message names the nodes.
    """
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
