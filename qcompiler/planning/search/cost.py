"""What a layer costs in a format on a target: the time that products and memory traffic take at best.

    time = Σ over kernels  max(2 · MACs / (share · tops), bytes / (share · bandwidth)) + time between two kernels

Bytes are those that TensorRT-RTX's own listings show (`engines/roofline.py` reads them), h = 2 for FP16:

    float product          reads x and W and writes y, all at h; a convolution takes bias, Relu and a residual sum with
                           it, a matrix product what follows of it alone up to the next product (GELU); anything else
                           behind a matrix product is a kernel of its own and reads y again
    quantized product      reads x and W at 1 byte; with one scale for the weight it writes y at h, with a scale per
                           output channel raw accumulators at 4 bytes; what stands behind it reads them
    rounding of x          behind a convolution a kernel of its own, which reads x at h; else it is part of the kernel
                           that makes x. x is also written at h where somebody else reads it (a residual sum)
    grouped convolution    is quantized only with channels padded to 4 per group: x is written and read that many times
                           as large, and the padding is read from constants

so a quantized convolution is two kernels where a float one is one, and INT8 with a scale per channel moves more bytes
than FP16. TensorRT (not RTX) fuses rounding and scales into its products; there both formats write what they need.

Caches are not modelled, nor is how well a product fills the GPU: costs compare formats of one layer, they predict no
latency. Rates are those of one GPU per compute capability (`engines/rates.py`). What a whole engine takes is predicted
from its own listing (`engines/roofline.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from qcompiler.engines.rates import Kernel, gpus_of
from qcompiler.ir import graph as graphs
from qcompiler.ir.macs import Shapes, macs_of
from qcompiler.ir.operators import LINEAR, PRODUCTS
from qcompiler.plan import Candidate
from qcompiler.planning.search.safety_net import HIGH
from qcompiler.planning.simulation.simulator import Use
from qcompiler.target import DType, Target

LONGEST = 16  # nodes of a chain that is fused
PADDED = 4  # channels per group of a quantized convolution
POINTWISE = frozenset(
    "Abs Add Cast Clip Div Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Log Max Min Mul Neg Pow Relu "
    "Sigmoid Softplus Sqrt Sub Tanh".split()
)
BYTES = {DType.FP32: 4.0, DType.FP16: 2.0, DType.BF16: 2.0, DType.INT8: 1.0, DType.FP8: 1.0, DType.INT4: 0.5}


class Costs:
    """Costs of groups of layers that share an activation.

    Args:
        graph: the normalised float graph.
        shapes: of all tensors that linear nodes read and write, at the size that is optimised for.
        target: engine and GPUs.
        per_channel: INT8 weights have a scale per output channel.
        fp8_per_channel: FP8 weights have.
    """

    def __init__(
        self,
        graph: gs.Graph,
        shapes: Shapes,
        target: Target,
        *,
        per_channel: bool = True,
        fp8_per_channel: bool = False,
    ) -> None:
        self._nodes = {node.name: node for node in graph.nodes}
        self._shapes, self._target = shapes, target
        self._channel = {DType.INT8: per_channel, DType.FP8: fp8_per_channel}
        self._gpus = gpus_of(target)

    def kernels(self, activation: str, members: Sequence[Candidate], dtype: DType) -> list[Kernel]:
        """What a group is compiled to: the writing of its activation, its products, and what they force behind them.

        Args:
            activation: the tensor that all members read.
            members: the layers.
            dtype: INT8, FP8, or the high-precision type.
        """
        size, high = BYTES[dtype], BYTES[self._target.high_precision]
        x = math.prod(self._shapes.get(activation, (0,)))
        padding = max((self._padding(one) for one in members), default=1) if dtype.quantized else 1
        found = self._activation(members, dtype, x, padding)
        made = len(found)
        together = len(members) > 1 and all(one.op in PRODUCTS for one in members)
        for index, one in enumerate(members):
            node = self._nodes[one.node]
            weight = math.prod(self._shapes.get(node.inputs[1].name) or tuple(node.inputs[1].shape or (0,)))
            y = math.prod(self._shapes.get(node.outputs[0].name, (0,)))
            read = 0.0 if together and index else x * size * padding + self._saved(members, dtype, x)
            written, behind = self._output(one, dtype, y * high, y)
            found.append(Kernel(macs_of(node, self._shapes) or 0, dtype, read + weight * size + written))
            if behind:
                found.append(Kernel(0, dtype, behind))
        if together:  # q, k and v become one product
            products = [kernel for kernel in found[made:] if kernel.macs]
            rest = [kernel for kernel in found[made:] if not kernel.macs]
            joint = Kernel(sum(one.macs for one in products), dtype, sum(one.bytes for one in products))
            found = [*found[:made], joint, *rest]
        return found

    def _activation(self, members: Sequence[Candidate], dtype: DType, x: int, padding: int) -> list[Kernel]:
        """The kernel that writes what the members read, if it is not that of a product."""
        high = BYTES[self._target.high_precision]
        behind = behind_convolution(self._nodes[members[0].node].inputs[0])
        if not dtype.quantized:
            return [] if behind else [Kernel(0, dtype, x * high)]
        if behind and self._target.engine != "tensorrt-rtx":
            return []  # the convolution rounds what it writes
        writing = x * BYTES[dtype] * (2 * padding - 1)
        reading = x * high if behind else 0.0
        copy = x * high if self._others(members) else 0.0
        return [Kernel(0, dtype, writing + reading + copy)]

    def _saved(self, members: Sequence[Candidate], dtype: DType, x: int) -> float:
        """Bytes more (or fewer) that a convolution in front of a quantized layer writes because it rounds itself."""
        rtx = self._target.engine == "tensorrt-rtx"
        if rtx or not dtype.quantized or not behind_convolution(self._nodes[members[0].node].inputs[0]):
            return 0.0
        high = 0.0 if self._others(members) else BYTES[self._target.high_precision]
        return x * (BYTES[dtype] - high)

    def _others(self, members: Sequence[Candidate]) -> bool:
        """Whether the activation has readers beside these layers."""
        own = {one.node for one in members}
        tensor = self._nodes[members[0].node].inputs[0]
        return any(reader.name not in own and reader.op != "Shape" for reader, _ in graphs.consumers(tensor))

    def _padding(self, one: Candidate) -> int:
        """How many times as large a quantized convolution wants its input."""
        node = self._nodes[one.node]
        groups = int(node.attrs.get("group", 1)) if one.op == "Conv" else 1
        if groups == 1 or self._target.engine != "tensorrt-rtx":
            return 1
        depth = int((self._shapes.get(node.inputs[1].name) or tuple(node.inputs[1].shape))[1])
        return max(1, math.ceil(depth / PADDED) * PADDED // depth)

    def _output(self, one: Candidate, dtype: DType, narrow: float, y: int) -> tuple[float, float]:
        """Bytes that the product writes, and those that a kernel of its own behind it reads."""
        product = one.op in PRODUCTS
        if not dtype.quantized or self._target.engine != "tensorrt-rtx":
            if not product:
                return narrow, 0.0
            return (0.0, 0.0) if leads_to_product(self._nodes[one.node]) else (narrow, narrow)
        wide = 4.0 * y if self._channel[dtype] and one.axis is not None else narrow
        return (wide, wide) if product else (2 * wide - narrow, 0.0)

    def seconds(self, activation: str, members: Sequence[Candidate], dtype: DType) -> float:
        """Time of a group, the mean over the target's GPUs; inf where one of them lacks the type."""
        kernels = self.kernels(activation, members, dtype)
        times = [sum(kernel.seconds(gpu) for kernel in kernels) for gpu in self._gpus]
        return sum(times) / len(times)

    def table(
        self, groups: Mapping[str, Sequence[Candidate]], offers: Mapping[str, Sequence[Use]]
    ) -> dict[str, dict[str, float]]:
        """Time of each group in each of its formats, and in high precision under the key `HIGH`."""
        return {
            name: {
                HIGH: self.seconds(name, members, self._target.high_precision),
                **{str(use.dtype): self.seconds(name, members, use.dtype) for use in offers[name]},
            }
            for name, members in groups.items()
        }

    def bytes(self, activation: str, members: Sequence[Candidate], dtype: DType) -> float:
        """Bytes that a group moves."""
        return sum(kernel.bytes for kernel in self.kernels(activation, members, dtype))

    @property
    def where(self) -> str:
        """The GPUs, for a sentence."""
        return " and ".join(gpu.sm for gpu in self._gpus)


def behind_convolution(tensor: gs.Tensor) -> bool:
    """Whether a tensor is what a convolution writes, seen through what is fused into it: bias, Relu, residual sums."""
    todo, seen = [tensor], 0
    while todo and seen < LONGEST:
        node, seen = graphs.producer(todo.pop()), seen + 1
        if node is None:
            continue
        if node.op in ("Conv", "ConvTranspose"):
            return True
        if node.op in POINTWISE:
            todo += [one for one in node.inputs if not graphs.is_constant(one)]
    return False


def leads_to_product(node: gs.Node) -> bool:
    """Whether what is computed of a product's result alone, element by element, goes straight into other products.

    Such a chain (bias, GELU, but not the Mul with another branch of a GLU) is fused into a float product.
    """
    chain: dict[str, gs.Node] = {}
    todo, ends = [node], False
    while todo:
        for reader, _ in graphs.consumers(todo.pop().outputs[0]):
            if reader.op in LINEAR:
                ends = True
            elif reader.op not in POINTWISE or len(chain) == LONGEST:
                return False
            elif reader.name not in chain:
                chain[reader.name] = reader
                todo.append(reader)
    known = {one.outputs[0].name for one in (node, *chain.values())}
    read = (tensor for one in chain.values() for tensor in one.inputs)
    return ends and all(graphs.is_constant(tensor) or not tensor.name or tensor.name in known for tensor in read)


def tensors_for_costs(graph: gs.Graph, found: Sequence[Candidate]) -> list[str]:
    """Names of the tensors whose shapes `Costs` needs."""
    wanted = {one.node for one in found}
    names = [
        tensor.name
        for node in graph.nodes
        if node.name in wanted
        for tensor in (*node.inputs[:2], node.outputs[0])
        if not graphs.is_constant(tensor)
    ]
    return list(dict.fromkeys(names))
