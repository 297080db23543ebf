"""A decoder like Llama, of any size, as an ONNX file with its weights beside it, and token ids to calibrate it with.

A few rows of weights are drawn and written at a time, so that the largest is made in a few hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.scale.shape import Shape
from benchmarks.scale.weights import BEGINNING, Floats, Weight, Weights

ALIGNMENT = 64
EPSILON = 1e-5


def make(shape: Shape, folder: Path, samples: int, tokens: int) -> Path:
    """Writes `model.onnx`, `model.onnx.data` and `data/*.npz`.

    Returns:
        The path of the model.

    Raises:
        ValueError: texts are longer than the model's.
    """
    if tokens > shape.positions:
        raise ValueError(f"{tokens} tokens are more than the {shape.positions} positions of the model")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    with (folder / "model.onnx.data").open("wb") as stream:
        model = _Writer(shape, stream).model()
    onnx.save(model, path)
    texts(shape, folder / "data", samples, tokens)
    return path


def texts(shape: Shape, folder: Path, samples: int, tokens: int) -> None:
    """Token ids as people's words are: a few are frequent, most are rare. Each text begins with the same token."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng([shape.seed, 2])
    ranks = np.arange(1, shape.vocabulary - BEGINNING)
    weights = 1 / (ranks + 2.7)
    order = draw.permutation(ranks) + BEGINNING
    for index in range(samples):
        ids = draw.choice(order, (1, tokens), p=weights / weights.sum()).astype(np.int64)
        ids[0, 0] = BEGINNING
        np.savez(folder / f"{index:05d}.npz", input_ids=ids)


class _Writer:
    """The graph, whose weights go to `stream` as they are needed."""

    def __init__(self, shape: Shape, stream: BinaryIO) -> None:
        self._shape, self._stream = shape, stream
        self._weights = Weights(shape)
        self._float = TensorProto.FLOAT16 if shape.half else TensorProto.FLOAT
        self._kind = np.dtype(np.float16 if shape.half else np.float32)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def model(self) -> onnx.ModelProto:
        """All of it, in order: the embedding, the blocks, the head."""
        shape = self._shape
        self._common()
        x = self._node("Gather", [self._stored(self._weights.embedding()), "input_ids"], "embedded")
        for layer in range(shape.layers):
            x = self._block(x, layer)
        x = self._norm(x, "norm")
        self._node("MatMul", [x, self._head()], "logits")
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
        logits = helper.make_tensor_value_info("logits", self._float, ["batch", "sequence", shape.vocabulary])
        graph = helper.make_graph(self._nodes, "decoder", [ids], [logits], self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def _head(self) -> str:
        if self._shape.tied:
            return self._node("Transpose", ["embed"], "embed/turned", perm=[1, 0])
        return self._stored(self._weights.head())

    def _common(self) -> None:
        """What all blocks read: tables of the positions, and small constants."""
        shape = self._shape
        steps = 1 / 10_000 ** (np.arange(0, shape.head, 2) / shape.head)
        angles = np.tile(np.outer(np.arange(shape.positions), steps), 2)
        least = -65504.0 if shape.half else -1e9
        self._given("cosines", np.cos(angles).astype(self._kind))
        self._given("sines", np.sin(angles).astype(self._kind))
        self._given("hidden", np.triu(np.full((shape.positions, shape.positions), least, self._kind), 1))
        self._given("scale", np.array(1 / np.sqrt(shape.head), self._kind))
        self._given("two", np.array(2, np.float32))
        self._given("epsilon", np.array(EPSILON, np.float32))
        repeats = shape.heads // shape.pairs
        integers = {
            "zero": [0],
            "one": [1],
            "last": [-1],
            "half": [shape.head // 2],
            "end": [1 << 62],
            "third": [2],
            "as_queries": [0, 0, shape.heads, shape.head],
            "as_pairs": [0, 0, shape.pairs, shape.head],
            "repeats": [1, 1, repeats, 1, 1],
            "repeated": [0, shape.heads, -1, shape.head],
            "merged": [0, 0, shape.width],
        }
        for name, values in integers.items():
            self._given(name, np.array(values, np.int64))
        self._node("Shape", ["input_ids"], "size")
        self._node("Slice", ["size", "one", "third", "zero"], "length")
        for table, cut in (("cosines", "cosine"), ("sines", "sine"), ("hidden", "rows_hidden")):
            self._node("Slice", [table, "zero", "length", "zero"], cut)
        self._node("Slice", ["rows_hidden", "zero", "length", "one"], "mask")

    def _block(self, x: str, layer: int) -> str:
        at = f"layers.{layer}"
        weights = {weight.name.rsplit(".", 1)[1]: weight for weight in self._weights.block(layer)}
        attended = self._attention(self._norm(x, f"{at}.norm1"), at, weights)
        x = self._node("Add", [x, self._product(attended, weights["o"])], f"{at}.after_attention")
        inner = self._norm(x, f"{at}.norm2")
        gate = self._product(inner, weights["gate"])
        opened = self._node("Mul", [gate, self._node("Sigmoid", [gate], f"{at}.sigmoid")], f"{at}.silu")
        inner = self._node("Mul", [opened, self._product(inner, weights["up"])], f"{at}.inner")
        return self._node("Add", [x, self._product(inner, weights["down"])], f"{at}.out")

    def _attention(self, x: str, at: str, weights: dict[str, Weight]) -> str:
        query = self._turned(self._by_head(x, weights["q"], "as_queries"), f"{at}.q")
        key = self._repeated(self._turned(self._by_head(x, weights["k"], "as_pairs"), f"{at}.k"), f"{at}.k")
        value = self._repeated(self._by_head(x, weights["v"], "as_pairs"), f"{at}.v")
        key = self._node("Transpose", [key], f"{at}.k.columns", perm=[0, 1, 3, 2])
        scores = self._node("MatMul", [query, key], f"{at}.scores")
        scores = self._node("Mul", [scores, "scale"], f"{at}.scaled")
        scores = self._node("Add", [scores, "mask"], f"{at}.masked")
        scores = self._node("Softmax", [scores], f"{at}.softmax", axis=-1)
        mixed = self._node("MatMul", [scores, value], f"{at}.mixed")
        mixed = self._node("Transpose", [mixed], f"{at}.by_token", perm=[0, 2, 1, 3])
        return self._node("Reshape", [mixed, "merged"], f"{at}.merged")

    def _by_head(self, x: str, weight: Weight, size: str) -> str:
        split = self._node("Reshape", [self._product(x, weight), size], f"{weight.name}.split")
        return self._node("Transpose", [split], f"{weight.name}.by_head", perm=[0, 2, 1, 3])

    def _turned(self, x: str, at: str) -> str:
        """Turned by the angle of its position."""
        low = self._node("Slice", [x, "zero", "half", "last"], f"{at}.low")
        high = self._node("Slice", [x, "half", "end", "last"], f"{at}.high")
        other = self._node("Concat", [self._node("Neg", [high], f"{at}.minus"), low], f"{at}.other", axis=-1)
        along = self._node("Mul", [x, "cosine"], f"{at}.along")
        return self._node("Add", [along, self._node("Mul", [other, "sine"], f"{at}.across")], f"{at}.turned")

    def _repeated(self, x: str, at: str) -> str:
        """A head of keys or values for each head of the queries."""
        if self._shape.heads == self._shape.pairs:
            return x
        wide = self._node("Expand", [self._node("Unsqueeze", [x, "third"], f"{at}.apart"), "repeats"], f"{at}.wide")
        return self._node("Reshape", [wide, "repeated"], f"{at}.repeated")

    def _norm(self, x: str, at: str) -> str:
        """In FP32, as exports of FP16 models have it."""
        wide = self._node("Cast", [x], f"{at}.float", to=TensorProto.FLOAT) if self._shape.half else x
        square = self._node("Pow", [wide, "two"], f"{at}.square")
        mean = self._node("ReduceMean", [square], f"{at}.mean", axes=[-1], keepdims=1)
        root = self._node("Sqrt", [self._node("Add", [mean, "epsilon"], f"{at}.positive")], f"{at}.root")
        even = self._node("Div", [wide, root], f"{at}.even")
        if self._shape.half:
            even = self._node("Cast", [even], f"{at}.half", to=TensorProto.FLOAT16)
        gain = self._given(f"{at}.gain", self._weights.gain(at).astype(self._kind))
        return self._node("Mul", [even, gain], f"{at}.out")

    def _product(self, x: str, weight: Weight) -> str:
        return self._node("MatMul", [x, self._stored(weight)], f"{weight.name}.product")

    def _node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _given(self, name: str, values: np.ndarray[Any, Any]) -> str:
        if values.nbytes < 1 << 20:
            self._constants.append(numpy_helper.from_array(values, name))
        else:
            self._beside(name, values.shape, iter([values]))
        return name

    def _stored(self, weight: Weight) -> str:
        self._beside(weight.name, weight.shape, weight.blocks(self._shape.seed))
        return weight.name

    def _beside(self, name: str, size: tuple[int, ...], blocks: Iterator[Floats]) -> None:
        """Writes a tensor behind the others and says in the graph where it is."""
        self._stream.write(bytes(-self._stream.tell() % ALIGNMENT))
        start = self._stream.tell()
        for block in blocks:
            self._stream.write(block.astype(self._kind).data)
        tensor = TensorProto(name=name, data_type=self._float, dims=size, data_location=TensorProto.EXTERNAL)
        entries = {"location": "model.onnx.data", "offset": start, "length": self._stream.tell() - start}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self._constants.append(tensor)
