"""FP16 and BF16 twins of float models, compiled beside the models: the same share, the same score.

    python -m benchmarks.twins MODELS NAME... [--target T] [--types float16 bfloat16]
    python -m benchmarks.twins --write MODEL.onnx TWIN.onnx float16

MODELS/NAME holds model.onnx and load.py (`calibration`, `evaluate(run)`). A twin is the model with all of its floats in
the other type, weights, constants, inputs and outputs, and Casts where an operator takes float32 only. All are
quantized with the same data and judged by the same metric, each against its own float model; the last columns are
against the FP32 source.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

import qcompiler
from qcompiler.errors import QCompilerError
from qcompiler.ir import edit, element_types
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.element_types import FP32
from qcompiler.ir.names import Names
from qcompiler.passes.types.widen_floats import STATED
from qcompiler.recipe.recipe import Recipe
from qcompiler.runtime import shapes

TYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float64": np.dtype(np.float64)}


def twin(model: models.Model, dtype: np.dtype[Any]) -> models.Model:
    """The model with every float32 in another type; what an operator takes as float32 only stays so behind a Cast."""
    other = models.copy(model)
    shapes.infer(other)
    _Narrowing(other.graph, dtype).apply()
    shapes.infer(other)
    return other


class _Narrowing:
    def __init__(self, graph: gs.Graph, dtype: np.dtype[Any]) -> None:
        self._graph, self._dtype = graph, dtype
        self._types = element_types.infer_all(graph)
        self._names = Names(graph)
        self._made: dict[int, np.ndarray[Any, Any]] = {}

    def apply(self) -> None:
        for inner in list(graphs.graphs(self._graph)):
            for node in list(inner.nodes):
                self._only_float32(inner, node)
                for name, value in list(node.attrs.items()):
                    node.attrs[name] = self._attribute(node, name, value)
        for inner in graphs.graphs(self._graph):
            for tensor in graphs.tensors(inner):
                if self._types.get(id(tensor)) == FP32:
                    self._retype(tensor)

    def _retype(self, tensor: gs.Tensor) -> None:
        if not isinstance(tensor, gs.Constant):
            tensor.dtype = self._dtype
            return
        values = graphs.values_of(tensor)
        if values.dtype == FP32:
            tensor.values = self._made.setdefault(id(values), self._cast(values))

    def _cast(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        held = values
        if self._dtype == np.float16:  # as converters do it: masks end where the type ends
            held = np.where(np.isfinite(values), np.clip(values, -65504, 65504), values)
        return np.asarray(held).astype(self._dtype)

    def _attribute(self, node: gs.Node, name: str, value: Any) -> Any:
        if isinstance(value, gs.Constant) and graphs.dtype_of(value) == FP32:
            return gs.Constant(value.name, self._cast(graphs.values_of(value)))
        writes = any(self._types.get(id(tensor)) == FP32 for tensor in node.outputs)
        if name in STATED and name != "stash_type" and value == onnx.TensorProto.FLOAT and writes:
            return graphs.onnx_type(self._dtype)
        return value

    def _only_float32(self, graph: gs.Graph, node: gs.Node) -> None:
        """Inputs and outputs whose type the operator leaves no choice of."""
        schema = onnx.defs.get_schema(node.op, graph.opset, node.domain or "") if self._known(graph, node) else None
        if schema is None:
            return
        for i, tensor in enumerate(node.inputs):
            if self._types.get(id(tensor)) == FP32 and _fixed(schema.inputs, i):
                edit.set_input(node, i, self._float32(graph, node, tensor))
        for i, tensor in enumerate(node.outputs):
            if self._types.get(id(tensor)) == FP32 and _fixed(schema.outputs, i):
                own = gs.Variable(self._names.fresh(f"{tensor.name}/float32"), FP32)
                edit.set_output(node, i, own)
                cast = self._node(own, tensor, self._dtype)
                edit.insert_after(graph, node, cast)

    def _known(self, graph: gs.Graph, node: gs.Node) -> bool:
        return graphs.is_standard(node) and bool(onnx.defs.has(node.op, graph.opset, ""))

    def _float32(self, graph: gs.Graph, node: gs.Node, tensor: gs.Tensor) -> gs.Tensor:
        name = self._names.fresh(f"{tensor.name}/float32")
        if isinstance(tensor, gs.Constant):
            return gs.Constant(name, graphs.values_of(tensor))
        out = gs.Variable(name, FP32)
        edit.insert_before(graph, node, self._node(tensor, out, FP32))
        return out

    def _node(self, source: gs.Tensor, out: gs.Tensor, dtype: np.dtype[Any]) -> gs.Node:
        attrs = {"to": graphs.onnx_type(dtype)}
        return gs.Node("Cast", self._names.fresh(f"{source.name}/Cast"), attrs, [source], [out])


def _fixed(formal: Sequence[Any], index: int) -> bool:
    return bool(formal) and formal[min(index, len(formal) - 1)].type_str == "tensor(float)"


@dataclass(frozen=True)
class Row:
    """What became of one model.

    Attributes:
        share: of the multiply-accumulates that is quantized, 0 to 1.
        float_score: the metric of the float model.
        score: of the result.
        sqnr_db: of the result against its float model.
    """

    share: float
    float_score: float
    score: float
    sqnr_db: float


def row(path: Path, loader: Path, target: str, folder: Path) -> Row:
    """Quantizes a file and reads its manifest."""
    recipe = Recipe(target=target, metric=f"{loader}:evaluate", allow_broken=True)
    data = f"{loader}:calibration"
    made = qcompiler.quantize(path, data=data, recipe=recipe, output=folder / f"{path.stem}.qdq.onnx").manifest
    score, verification = made["verification"]["score"], made["verification"]
    share = float(made["macs"]["quantized_share"] or 0.0)
    return Row(share, score["float_score"], score["quantized_score"], float(verification["worst_sqnr_db"] or 0.0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 where a twin misses its source, or one of them cannot be compiled."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.twins", description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--target", default="tensorrt-rtx:sm89")
    parser.add_argument("--types", nargs="+", default=["float16", "bfloat16"], choices=TYPES)
    parser.add_argument("--write", action="store_true", help="MODEL.onnx TWIN.onnx TYPE: write a twin and stop")
    asked = parser.parse_args(arguments)
    if asked.write:
        out, dtype = asked.names
        models.save(twin(models.load(asked.models), TYPES[dtype]), Path(out))
        return 0
    print("| model | type | share | float | quantized | SQNR dB | share like FP32 | score against FP32's |")
    print("|---|---|---|---|---|---|---|---|")
    missed = [_table(asked.models / name, asked.types, asked.target) for name in asked.names]
    return int(any(missed))


def _table(folder: Path, types: Sequence[str], target: str) -> bool:
    """The rows of a model; whether one of them misses."""
    missed, source = False, None
    with TemporaryDirectory() as temporary:
        made = Path(temporary)
        for name in ("float32", *types):
            path = folder / "model.onnx"
            if name != "float32":
                path = made / f"{name}.onnx"
                models.save(twin(models.load(folder / "model.onnx"), TYPES[name]), path)
            try:
                found = row(path, folder / "load.py", target, made)
            except QCompilerError as error:
                missed = True
                print(f"| {folder.name} | {name} | {type(error).__name__}: {str(error)[:120]} | | | | | |", flush=True)
                continue
            source = source or found
            same = found.share > source.share - 0.005  # the safety net may give back one layer less
            drop = (source.score - found.score) / abs(source.score) if source.score else 0.0
            missed |= not same or drop > 0.003
            print(
                f"| {folder.name} | {name} | {found.share:.1%} | {found.float_score:.4f} | {found.score:.4f} | "
                f"{found.sqnr_db:.1f} | {'yes' if same else 'no'} | {-drop:+.2%} |",
                flush=True,
            )
    return missed


if __name__ == "__main__":
    sys.exit(main())
