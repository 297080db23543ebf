"""MatMul(x, DQ(W₄))  ⇒  MatMulNBits(x, W₄): ONNX Runtime's own product of floats and INT4 blocks.

ONNX Runtime makes the same of most such pairs when it opens a model, but then chooses by itself whether activations are
rounded to INT8 on the way (its session option `session.qdq_matmulnbits_accuracy_level`, 4 if not set: they are). Here
that is written into the graph. The layout is that of com.microsoft.MatMulNBits, version 1: unsigned values with 8 in
place of 0, two in a byte, [N, K / size, size / 2], and scales [N, K / size].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import INT4, MICROSOFT, block_size, dequantizer, scale_of, stored_type, zero_point_of
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped

if TYPE_CHECKING:
    from numpy.typing import NDArray


_MIDDLE = 8  # what stands for 0 where no zero point is given
_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class MatmulNbits(Pass):
    """Join INT4 weights with their product, for ONNX Runtime.

    Attributes:
        accuracy_level: what it may compute in: 1 FP32, 2 FP16, 3 BF16, 4 INT8 activations, 0 whatever it likes.
    """

    accuracy_level: int = 1

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS})
    exact_to: ClassVar[float | None] = None

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per product of an INT4 weight."""
        names = Names(graph)
        for node in list(graph.nodes):
            back = dequantizer(node.inputs[1]) if graphs.is_op(node, "MatMul", "Gemm") and node.inputs[1:] else None
            if back is None or stored_type(back) != INT4 or dequantizer(node.inputs[0]) is not None:
                continue
            why = _refusal(node, back)
            yield Skipped(node.name, why) if why else self._join(graph, names, node, back)
        if any(node.op == "MatMulNBits" for node in graph.nodes):
            edit.set_opset(graph, graph.opset, {MICROSOFT: 1})
        edit.sort(graph)

    def _join(self, graph: gs.Graph, names: Names, node: gs.Node, back: gs.Node) -> Note:
        stored, scale = graphs.constant_value(back.inputs[0]), scale_of(back)
        assert stored is not None  # `_refusal` has looked
        assert scale is not None
        depth, width = stored.shape
        size = block_size(back)
        packed = gs.Constant(names.fresh(f"{back.inputs[0].name}/packed"), packed_values(stored.astype(np.int8), size))
        steps = gs.Constant(names.fresh(f"{back.inputs[1].name}/transposed"), np.ascontiguousarray(scale.T))
        attrs = {"K": depth, "N": width, "bits": 4, "block_size": size, "accuracy_level": self.accuracy_level}
        x, y = node.inputs[0], node.outputs[0]
        bias = node.inputs[2] if graphs.is_present(node, 2) else None
        out = y
        if bias is not None:
            out = gs.Variable(names.fresh(f"{y.name}/product"), y.dtype, y.shape)
        before = edit.index_of(graph, node)
        edit.detach(node)
        joined = gs.Node("MatMulNBits", node.name, attrs, [x, packed, steps], [out], domain=MICROSOFT)
        graph.nodes[before] = joined
        if bias is not None:
            add = gs.Node("Add", names.fresh(f"{node.name}/Add"), {}, [out, bias], [y])
            edit.insert_at(graph, before + 1, [add])
        if not graphs.consumers(back.outputs[0]):
            edit.remove_node(graph, back)
        return Changed(joined.name, f"MatMulNBits of {depth}x{width} in blocks of {size}")


def _refusal(node: gs.Node, back: gs.Node) -> str:
    """Why a pair stays; empty where it can be joined."""
    stored, scale, zero = graphs.constant_value(back.inputs[0]), scale_of(back), zero_point_of(back)
    if stored is None or scale is None or stored.ndim != 2 or node.inputs[1] is not back.outputs[0]:
        return "its weight is no constant matrix right in front of it"
    size = block_size(back)
    if size not in _SIZES or int(back.attrs.get("axis", 1)) % 2 or stored.shape[0] % size:
        return f"MatMulNBits takes blocks of {', '.join(map(str, _SIZES))} along the depth"
    if zero is not None and np.any(zero.astype(np.int8)):
        return "its zero points are not zero"
    plain = all(float(node.attrs.get(name, 1.0)) == 1.0 for name in ("alpha", "beta"))
    if node.op == "Gemm" and (not plain or node.attrs.get("transA", 0) or node.attrs.get("transB", 0)):
        return "this Gemm is more than a product and a sum"
    return ""


def packed_values(values: NDArray[np.int8], size: int) -> NDArray[np.uint8]:
    """INT4 values [K, N] in the layout of MatMulNBits, uint8 [N, K / size, size / 2]; the low half byte comes first."""
    unsigned = (values.T + _MIDDLE).astype(np.uint8)
    pairs = unsigned.reshape(values.shape[1], -1, size // 2, 2)
    return np.asarray(pairs[..., 0] | pairs[..., 1] << 4, np.uint8)
