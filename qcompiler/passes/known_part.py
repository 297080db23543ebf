"""What of a model can be run here: the door through which every model comes that is to be measured.

First what ONNX Runtime does not know and ONNX has words for is written in these: quantizers of domain `trt`, fused
operators without a CPU kernel. What is unknown then stays behind (`behind.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.errors import EngineError, ModelError
from qcompiler.ir import edit
from qcompiler.ir import model as models
from qcompiler.ir.model import Model
from qcompiler.ir.qdq import MICROSOFT
from qcompiler.passes.base import Fact, Pass, Pipeline, Report
from qcompiler.passes.behind import Unmeasured, apart, joined
from qcompiler.passes.cleanup.inline_functions import InlineFunctions
from qcompiler.passes.cleanup.name_everything import NameEverything
from qcompiler.passes.cleanup.normalize_constants import NormalizeConstants
from qcompiler.passes.foreign.read_trt_quantizers import ReadTrtQuantizers, is_trt_quantizer, opset_for
from qcompiler.passes.foreign.write_out_fused import OLDEST, RULES, WriteOutFused
from qcompiler.passes.opsets.raise_opset import RaiseOpset
from qcompiler.runtime import shapes
from qcompiler.runtime.unknown import unknown_nodes
from qcompiler.target import Target


@dataclass(frozen=True, eq=False)
class Known:
    """A model that can be run.

    Attributes:
        model: it; the one that was given where all of that can be run.
        behind: what cannot; None where there is nothing.
        reports: of the passes that wrote nodes in other words.
    """

    model: Model
    behind: Unmeasured | None = None
    reports: tuple[Report, ...] = ()

    def to_json(self) -> list[dict[str, str]]:
        """For the manifest: the nodes that nobody could run."""
        found = () if self.behind is None else self.behind.unknown
        return [{"node": one.node, "op": one.op, "domain": one.domain} for one in found]


def known_part(model: Model) -> Known:
    """The part of a model that can be run; the model stays as it is.

    Raises:
        ModelError: nothing of it can, or a quantizer of domain `trt` has no form in ONNX.
    """
    unknown = unknown_nodes(model.graph)
    if not unknown:
        return Known(model)
    named = models.copy(model)
    reports = Pipeline(InlineFunctions(), NameEverything(), NormalizeConstants())(named.graph)
    unknown = unknown_nodes(named.graph)
    fused = tuple(sorted({node.op for node in unknown if node.domain == MICROSOFT and node.op in RULES}))
    opset = max(OLDEST if fused else 0, opset_for(named.graph))
    passes: list[Pass] = [RaiseOpset(opset)] if opset else []
    passes += [WriteOutFused(only=fused)] if fused else []
    passes += [ReadTrtQuantizers()] if any(map(is_trt_quantizer, unknown)) else []
    if passes:
        reports += Pipeline(*passes, given=frozenset({Fact.NAMED, Fact.CONSTANTS}))(named.graph)
        unknown = unknown_nodes(named.graph)
    if not unknown:
        return Known(named, None, reports)
    edit.sort(named.graph)
    front, behind = apart(named, {node.name for node in unknown})
    shapes.infer(front)
    types = {tensor.name: tensor.dtype for tensor in front.graph.outputs}
    for tensor in behind.model.graph.inputs:
        tensor.dtype = tensor.dtype if tensor.dtype is not None else types.get(tensor.name)
    return Known(front, behind, reports)


def refuse_unknown(known: Known, target: Target) -> None:
    """Refuses a model with nodes that nobody can run, where the target cannot either.

    Raises:
        EngineError: the target has no plugins.
        ModelError: the target is ONNX Runtime, or the node is one of ONNX Runtime's own, which no other engine has.
    """
    if known.behind is None:
        return
    first = known.behind.unknown[0]
    if target.engine == "tensorrt-rtx":
        raise EngineError(
            f"node {first} is of an operator that neither ONNX Runtime nor TensorRT-RTX knows, and TensorRT-RTX has no "
            "plugins. Export the model with standard operators, end it in front of that node, or choose "
            "'--target tensorrt', with '--plugin LIB' where the plugin is none of TensorRT's own"
        )
    if target.engine == "onnxruntime":
        raise ModelError(
            f"node {first} is of an operator which ONNX Runtime does not know: the model cannot be run over data. Give "
            "the library of its custom operators as '--plugin LIB', export it with standard operators, or give that "
            "operator as a function inside the model"
        )
    own = next((one for one in known.behind.unknown if one.domain == MICROSOFT), None)
    if own is not None:
        raise ModelError(
            f"node {own} is of an operator that only ONNX Runtime has, on other processors, and that is not written "
            "out in ONNX's own. Export the model without that fusion"
        )


def whole(model: Model, behind: Unmeasured | None) -> Model:
    """A first part, whatever became of it, with what stands behind.

    Raises:
        ModelError: what stands behind cannot be raised to the opset of the first part.
    """
    if behind is None:
        return model
    rest = models.copy(behind.model)
    Pipeline(RaiseOpset(int(model.graph.opset)), given=frozenset({Fact.NAMED}))(rest.graph)
    for tensor, declared in zip(rest.graph.outputs, behind.model.graph.outputs, strict=True):
        # Nobody infers what is behind an unknown operator, so what the file says of it stays
        tensor.dtype, tensor.shape = declared.dtype, declared.shape
    return joined(model, rest, behind.outputs)
