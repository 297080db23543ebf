from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.passes.base import Changed, Skipped
from qcompiler.passes.products import write_recurrent
from qcompiler.passes.products.write_recurrent import WriteRecurrent
from tests.kit.rewrite import check, check_skipped, model, to_graph

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS, WIDTH, STEPS = 20, 16, 5


def _layer(
    op: str, *, ways: int = 1, reads: str = "x w r b", outputs: str = "y", steps: Any = STEPS, **attrs: Any
) -> onnx.ModelProto:
    rng = np.random.default_rng(5)
    gates = GATES[op] * WIDTH
    weights = {
        "w": rng.standard_normal((ways, gates, INPUTS)).astype(np.float32) / 4,
        "r": rng.standard_normal((ways, gates, WIDTH)).astype(np.float32) / 4,
        "b": rng.standard_normal((ways, 2 * gates)).astype(np.float32) / 4,
        "n": np.array([3, 2], np.int32),
    }
    inputs = {"x": (steps, 2, INPUTS), **{name: (ways, 2, WIDTH) for name in "hc" if name in reads.split()}}
    direction = {} if ways == 1 else {"direction": "bidirectional"}
    return model(
        (op, reads, outputs, {"hidden_size": WIDTH, **direction, **attrs}),
        inputs=inputs,
        outputs=[name for name in outputs.split() if name != "_"],
        opset=18,
        weights={name: value for name, value in weights.items() if name in reads.split()},
    )


@pytest.mark.parametrize(
    ("op", "outputs", "reads"),
    [
        pytest.param("LSTM", "y", "x w r b", id="LSTM"),
        pytest.param("LSTM", "y yh yc", "x w r b _ h c", id="LSTM with states"),
        pytest.param("LSTM", "y yh yc", "x w r b _ _ c", id="LSTM with a cell and no hidden state"),
        pytest.param("LSTM", "y yh yc", "x w r b _ h", id="LSTM with a hidden state and no cell"),
        pytest.param("LSTM", "_ yh", "x w r", id="LSTM, the last step of no bias"),
        pytest.param("GRU", "y yh", "x w r b", id="GRU"),
        pytest.param("GRU", "y yh", "x w r b _ h", id="GRU with a state"),
        pytest.param("RNN", "y yh", "x w r b _ h", id="RNN"),
    ],
)
@pytest.mark.parametrize("ways", [1, 2])
def test_the_steps_are_written_out(op: str, outputs: str, reads: str, ways: int) -> None:
    graph, _ = check(WriteRecurrent(), _layer(op, ways=ways, reads=reads, outputs=outputs), tolerance=1e-5)
    assert not {node.op for node in graph.nodes} & set(GATES)
    assert sum(len(node.inputs[0].shape or ()) == 3 for node in graph.nodes if node.op == "MatMul") == ways


@pytest.mark.parametrize("op", list(GATES))
def test_backwards(op: str) -> None:
    check(WriteRecurrent(), _layer(op, outputs="y yh", direction="reverse"), tolerance=1e-5)


@pytest.mark.parametrize("reads", ["x w r b", "x w r b _ h"])
def test_a_gru_may_multiply_before_it_resets(reads: str) -> None:
    check(WriteRecurrent(), _layer("GRU", reads=reads, linear_before_reset=1), tolerance=1e-5)


@pytest.mark.parametrize("reads", ["x w r b _ h c", "x w r b"])
@pytest.mark.parametrize("op", list(GATES))
def test_a_step_has_no_more_nodes_than_are_counted(op: str, reads: str) -> None:
    reads = reads if op == "LSTM" else reads.removesuffix(" c")
    for attrs in ({}, {"linear_before_reset": 1}) if op == "GRU" else ({},):
        sizes = []
        for steps in (STEPS, STEPS + 1):
            graph = to_graph(_layer(op, reads=reads, outputs="y yh", steps=steps, **attrs))
            WriteRecurrent()(graph)
            sizes.append(len(graph.nodes))
        assert sizes[1] - sizes[0] <= write_recurrent._NODES[op]


def _stack(layers: int, width: int, steps: int) -> onnx.ModelProto:
    rng = np.random.default_rng(5)
    nodes: list[Any] = []
    weights: dict[str, Any] = {"one": np.array([1])}
    for index in range(layers):
        weights[f"w{index}"] = rng.standard_normal((1, 4 * width, width)).astype(np.float32) / width
        weights[f"r{index}"] = rng.standard_normal((1, 4 * width, width)).astype(np.float32) / width
        nodes.append(("LSTM", f"x{index} w{index} r{index}", f"h{index}", {"hidden_size": width}))
        nodes.append(("Squeeze", f"h{index} one", f"x{index + 1}"))
    inputs = {"x0": (steps, 1, width)}
    return model(*nodes, inputs=inputs, outputs=[f"x{layers}"], opset=18, weights=weights)


@pytest.mark.parametrize(
    ("layers", "width", "steps", "written", "why"),
    [
        pytest.param(6, 16, 64, 4, "it would become 896 nodes, and 512 of the 4096", id="nodes"),
        pytest.param(3, 256, 14, 2, "14680064 bytes of weights, and 4194304 of the 33554432", id="bytes"),
    ],
)
def test_all_layers_of_a_model_share_what_it_gets(layers: int, width: int, steps: int, written: int, why: str) -> None:
    graph, report = check(WriteRecurrent(), _stack(layers, width, steps), tolerance=1e-5, settles=False)
    assert sum(node.op == "LSTM" for node in graph.nodes) == layers - written
    assert [type(note) for note in report.notes] == [Changed] * written + [Skipped] * (layers - written)
    assert all(why in note.text for note in report.notes[written:])


@pytest.mark.parametrize(
    ("proto", "why"),
    [
        pytest.param(_layer("LSTM", steps="t"), "not known", id="an open number of steps"),
        pytest.param(_layer("LSTM", steps=65), "65 steps", id="many"),
        pytest.param(_layer("LSTM", reads="x w r b n"), "sequence lengths", id="sequence lengths"),
        pytest.param(_layer("LSTM", clip=1.0), "clip", id="clipped"),
        pytest.param(_layer("RNN", activations=["Relu"]), "activations", id="another activation"),
    ],
)
def test_others_stay(proto: onnx.ModelProto, why: str) -> None:
    check_skipped(WriteRecurrent(), proto, why)
