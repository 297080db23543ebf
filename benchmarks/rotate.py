"""A copy of a decoder of the Llama kind whose weights are on no grid: rotated exactly, so it computes the same.

    python -m benchmarks.rotate MODEL.onnx OUT.onnx [--seed N]

With a random orthogonal Q in the residual stream x' = x·Q:

    embedding              E' = E·Q
    what reads a norm      W' = Qᵀ·diag(g)·W, its gain g' = 1 (RMSNorm commutes with a rotation, but for its gain)
    what writes into x     W' = W·Q

(Ashkboos et al. 2024, "SliceGPT", §3.) SmolLM2 comes from a 4-bit file, so its own weights are exact in blocks of 32
and would flatter every 4-bit format; rotated they are those of a model that was never rounded. Its logits get a table
of their own, because the gain of the last norm is in it. The model must have no cache; both are run on random ids and
compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.measure import BenchmarkError
from qcompiler.runtime.session import Session

ALIKE = 1e-3  # largest difference of the logits, relative to the largest


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the copy and its weights beside it; 0: done, 1: the model is of another kind."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rotate", description="A rotated copy of a decoder.")
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="input_ids to logits, without a cache")
    parser.add_argument("out", type=Path, metavar="OUT.onnx", help="the copy; its weights go into OUT.onnx.data")
    parser.add_argument("--seed", type=int, default=0, help="of the rotation (default: 0)")
    options = parser.parse_args(arguments)
    try:
        proto = onnx.load(options.model)
        readers, writers = rotate(proto, options.seed)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        (options.out.parent / f"{options.out.name}.data").unlink(missing_ok=True)
        onnx.save(proto, options.out, save_as_external_data=True, location=f"{options.out.name}.data")
        error = difference(options.model, options.out)
    except (BenchmarkError, OSError) as error_:
        print(f"error: {error_}", file=sys.stderr)
        return 1
    print(
        f"{options.out}: {readers} products behind norms, {writers} into the residual stream; logits within {error:.1e}"
    )
    return 0


def rotate(proto: onnx.ModelProto, seed: int = 0) -> tuple[int, int]:
    """Rotates in place; returns how many products read a norm and how many write into the residual stream.

    Raises:
        BenchmarkError: the model is not of the Llama kind.
    """
    graph = proto.graph
    held = {one.name: one for one in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    tables = [node.input[0] for node in graph.node if node.op_type == "Gather" and node.input[0] in held]
    table = next((name for name in tables if len(held[name].dims) == 2), None)
    if table is None:
        raise BenchmarkError("the model has no embedding table: it is no decoder of the Llama kind")
    width = held[table].dims[1]
    turn = _orthogonal(width, seed)
    made: dict[str, Any] = {table: _values(held[table]) @ turn}
    counts = [0, 0]
    for node in [one for one in graph.node if one.op_type == "MatMul"]:
        weight = _weight(node.input[1], held, producers)
        if weight is None:
            continue
        gain = _gain(node.input[0], held, producers, width)
        if producers.get(node.input[1]) is not None:  # the embedding, turned: from here on they differ
            node.input[1] = f"{node.name or node.output[0]}/rotated"
        made[node.input[1]] = weight @ turn if gain is None else turn.T @ (_values(held[gain])[:, None] * weight)
        counts[gain is None] += 1
        if gain is not None:
            made[gain] = np.ones(width)
    if 0 in counts:
        raise BenchmarkError(
            "no product reads an RMSNorm with a gain, or none writes back: no decoder of the Llama kind"
        )
    for name, values in made.items():
        tensor = numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name)
        held[name].CopyFrom(tensor) if name in held else graph.initializer.append(tensor)
    used = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    for node in [one for one in graph.node if not used & set(one.output)]:
        graph.node.remove(node)
    return counts[0], counts[1]


def difference(model: Path, other: Path) -> float:
    """Largest difference of the logits on random ids, relative to the largest logit.

    Raises:
        BenchmarkError: it is too large for a rotation.
    """
    ids = {"input_ids": np.random.default_rng(1).integers(0, 1000, (1, 64))}
    first, second = (Session(path).run(ids)["logits"] for path in (model, other))
    found = float(np.abs(first - second).max() / np.abs(first).max())
    if found > ALIKE:
        raise BenchmarkError(f"the logits of the copy differ by {found:.1e}: the model is not of the Llama kind")
    return found


def _orthogonal(width: int, seed: int) -> Any:
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    return q * np.sign(np.diag(r))


def _values(tensor: onnx.TensorProto) -> Any:
    return numpy_helper.to_array(tensor).astype(np.float64)


def _weight(name: str, held: dict[str, onnx.TensorProto], producers: dict[str, onnx.NodeProto]) -> Any:
    """The matrix that a product reads, also turned; None where it is computed."""
    if name in held:
        return _values(held[name])
    node = producers.get(name)
    if node is not None and node.op_type == "Transpose" and node.input[0] in held:
        return _values(held[node.input[0]]).T
    return None


def _gain(name: str, held: dict[str, onnx.TensorProto], producers: dict[str, onnx.NodeProto], width: int) -> str | None:
    """The gain of the norm that wrote a tensor; None where no norm did."""
    node = producers.get(name)
    if node is None or node.op_type != "Mul":
        return None
    return next((one for one in node.input if one in held and list(held[one].dims) == [width]), None)


if __name__ == "__main__":
    sys.exit(main())
