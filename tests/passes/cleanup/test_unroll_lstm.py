from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.passes.cleanup.unroll_lstm import UnrollLSTM
from tests.kit.rewrite import check, check_skipped, check_untouched, graph_proto, model

RNG = np.random.default_rng(0)


def weights(gates: int = 4) -> dict[str, Any]:
    shapes = {"w": (1, gates * 5, 3), "r": (1, gates * 5, 5), "b": (1, gates * 10)}
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def branched(
    reads: str = "x w r b _ h c",
    writes: str = "_ t _",
    op: str = "LSTM",
    attrs: Mapping[str, Any] | None = None,
    steps: int | str = 1,
) -> onnx.ModelProto:
    """If(flag) {a recurrent layer} else {Relu(h)}; the branch returns `t`."""
    rank4 = writes.startswith("t")
    other = [("Relu", "h", "e")] if not rank4 else [("Unsqueeze", "h first", "e")]
    return model(
        (
            "If",
            "flag",
            "y",
            {
                "then_branch": graph_proto([(op, reads, writes, {"hidden_size": 5, **(attrs or {})})], {}, ["t"]),
                "else_branch": graph_proto(other, {}, ["e"]),
            },
        ),
        inputs={"x": (steps, 2, 3), "h": (1, 2, 5), "c": (1, 2, 5), "flag": (bool, ())},
        weights={**weights(4 if op == "LSTM" else 3), "first": np.array([0]), "lengths": np.full(2, 1, np.int32)},
    )


def feeds() -> dict[str, Any]:
    shapes = {"x": (1, 2, 3), "h": (1, 2, 5), "c": (1, 2, 5)}
    return {**{n: RNG.standard_normal(s).astype(np.float32) for n, s in shapes.items()}, "flag": np.array(True)}


@pytest.mark.parametrize("reads", ["x w r b _ h c", "x w r _ _ h c", "x w r b _ h", "x w r b", "x w r"])
@pytest.mark.parametrize("writes", ["_ t _", "_ _ t", "t _ _", "t", "_ t"])
def test_one_step_in_a_branch_is_written_out(reads: str, writes: str) -> None:
    graph, _ = check(UnrollLSTM(), branched(reads, writes), feeds(), tolerance=1e-5)
    found = Counter(node.op for node in graphs.walk(graph))
    assert found["LSTM"] == 0
    assert found["MatMul"] == (2 if " h" in reads else 1)


def test_all_outputs_at_once() -> None:
    then = graph_proto([("LSTM", "x w r b _ h c", "s t u", {"hidden_size": 5})], {}, ["s", "t", "u"])
    other = graph_proto([("Unsqueeze", "h first", "e"), ("Relu", "h", "f"), ("Neg", "c", "g")], {}, ["e", "f", "g"])
    proto = model(
        ("If", "flag", "p q r2", {"then_branch": then, "else_branch": other}),
        outputs=["p", "q", "r2"],
        inputs={"x": (1, 2, 3), "h": (1, 2, 5), "c": (1, 2, 5), "flag": (bool, ())},
        weights={**weights(), "first": np.array([0])},
    )
    check(UnrollLSTM(), proto, feeds(), ops=["If"], tolerance=1e-5)


@pytest.mark.parametrize(
    ("attrs", "why"),
    [
        ({"direction": "reverse"}, "direction"),
        ({"clip": 1.0}, "clip"),
        ({"input_forget": 1}, "input_forget"),
        ({"activations": ["Sigmoid", "Relu", "Tanh"]}, "activations"),
    ],
)
def test_variants_stay(attrs: dict[str, Any], why: str) -> None:
    check_skipped(UnrollLSTM(), branched(attrs=attrs), f"it has {why}")


def test_sequence_lengths_stay() -> None:
    check_skipped(UnrollLSTM(), branched("x w r b lengths h c"), "sequence lengths")


@pytest.mark.parametrize("steps", [2, "steps"])
def test_more_steps_stay(steps: int | str) -> None:
    check_skipped(UnrollLSTM(), branched(steps=steps), "more than one step")


def test_weights_that_are_computed_stay() -> None:
    check_skipped(UnrollLSTM(), _computed(), "its weights are not constant")


def _computed() -> onnx.ModelProto:
    proto = branched()
    for one in proto.graph.node[0].attribute:
        if one.name == "then_branch":
            one.g.node[0].input[1] = "v"
    proto.graph.node.insert(0, onnx.helper.make_node("Mul", ["w", "scale"], ["v"], name="V"))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, []))
    return proto


def test_a_gru_in_a_branch_stays() -> None:
    check_skipped(UnrollLSTM(), branched("x w r b _ h", "_ t", "GRU"), "GRU is not written out")


def test_an_lstm_outside_of_branches_is_left_alone() -> None:
    proto = model(("LSTM", "x w r b", "_ y", {"hidden_size": 5}), inputs={"x": (1, 2, 3)}, weights=weights())
    check_untouched(UnrollLSTM(), proto)
