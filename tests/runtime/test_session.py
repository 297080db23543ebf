"""Session: every kind of source runs, weights are lent, refusals are errors of ours with a readable reason."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompiler.errors import DataError, ModelError
from qcompiler.ir import model as models
from qcompiler.runtime.session import Session, reason
from tests.kit.rewrite import Spec, model, to_graph

RNG = np.random.default_rng(5)
W = RNG.standard_normal((32, 48)).astype(np.float32)
X = RNG.standard_normal((3, 32)).astype(np.float32)


def example() -> onnx.ModelProto:
    return model(("MatMul", "x w", "a"), ("Relu", "a", "y"), inputs={"x": ("n", 32)}, weights={"w": W})


def test_a_path_a_model_a_graph_and_a_proto_with_weights_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(example(), path)
    loaded = models.load(path)
    sources = (str(path), path, loaded, loaded.graph, models.to_proto(loaded.graph))
    for source in sources:
        for options in ({}, {"quick": True}, {"optimize": False}, {"threads": 1}, {"threads": 2}):
            found = Session(source, **options).run({"x": X})
            np.testing.assert_allclose(found["y"], np.maximum(X @ W, 0), atol=1e-5)


def test_any_tensor_can_be_an_output(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(example(), path)
    for source in (path, to_graph(example())):
        session = Session(source, outputs=["a", "y"])
        assert session.outputs == ["a", "y"]
        found = session.run({"x": X})
        np.testing.assert_allclose(found["a"], X @ W, atol=1e-5)
        np.testing.assert_array_equal(found["y"], np.maximum(found["a"], 0))


def test_a_model_is_not_changed_by_asking_for_other_outputs() -> None:
    graph = to_graph(example())
    Session(graph, outputs=["a"])
    assert [tensor.name for tensor in graph.outputs] == ["y"]
    pair = models.to_proto(graph)
    Session(pair)
    assert [value.name for value in pair[0].graph.output] == ["y"]


def test_lent_weights_live_as_long_as_the_session() -> None:
    graph = to_graph(example())
    session = Session(graph, quick=True)
    del graph
    gc.collect()
    np.testing.assert_allclose(session.run({"x": X})["y"], np.maximum(X @ W, 0), atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "element"),
    [
        (np.float16, TensorProto.FLOAT16),
        (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
        (ml_dtypes.float8_e4m3fn, TensorProto.FLOAT8E4M3FN),
    ],
)
def test_weights_of_types_that_numpy_lacks_are_lent_too(dtype: type, element: int) -> None:
    stored: np.ndarray = RNG.standard_normal((64, 64)).astype(dtype)
    tensor = helper.make_tensor("w", element, stored.shape, stored.tobytes(), raw=True)
    nodes = [helper.make_node("Cast", ["w"], ["y"], "cast", to=TensorProto.FLOAT)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (64, 64))
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [], [output], [tensor]), opset_imports=[helper.make_opsetid("", 19)], ir_version=9
    )
    found = Session(to_graph(proto), optimize=False).run({})["y"]
    np.testing.assert_array_equal(found, stored.astype(np.float32))


def test_inputs_have_dtype_and_shape_with_names_of_what_is_open() -> None:
    proto = model(
        ("Relu", "x", "y"),
        ("Identity", "t", "u"),
        ("Identity", "k", "v"),
        inputs={"x": ("n", 4), "t": (np.str_, ("n",)), "k": (np.int64, ())},
        outputs=("y", "u", "v"),
    )
    assert Session(to_graph(proto)).inputs == {
        "x": (np.dtype(np.float32), ("n", 4)),
        "t": (np.dtype(object), ("n",)),
        "k": (np.dtype(np.int64), ()),
    }


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"z": X},
        {"x": X.astype(np.float64)},
        {"x": X[:, :5]},
        {"x": X[0]},
    ],
)
def test_feeds_that_do_not_fit_are_errors_of_the_data(feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match="qcompiler inspect"):
        Session(to_graph(example())).run(feeds)


def test_a_graph_that_onnxruntime_refuses_is_an_error_of_the_model() -> None:
    proto = model(("Strange", "x", "y", {}, "com.acme"), domains=("com.acme",))
    with pytest.raises(ModelError, match="Strange") as caught:
        Session(to_graph(proto))
    assert "onnxruntime_src" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_node_that_fails_while_it_runs_is_named() -> None:
    proto = model(("Reshape", "x s", "y"), inputs={"x": (2, 4), "s": (np.int64, (1,))})
    with pytest.raises(ModelError, match="'Y'"):
        Session(to_graph(proto), optimize=False).run({"x": np.ones((2, 4), np.float32), "s": np.array([3])})


def test_a_reason_has_no_source_paths_and_no_status_codes() -> None:
    text = (
        "[ONNXRuntimeError] : 1 : FAIL : Node (mm)\n"
        "/build/onnxruntime_src/onnxruntime/core/graph/graph.cc:45 void onnxruntime::Graph::Build(int) const failed."
    )
    found = reason(RuntimeError(text))
    assert found.startswith("Node (mm)")
    assert "/build" not in found
    assert "\n" not in found


def test_empty_weights_are_not_lent() -> None:
    proto = model(
        ("Concat", "x w", "y", {"axis": 0}), inputs={"x": (2, 300)}, weights={"w": np.zeros((0, 300), np.float32)}
    )
    x = np.ones((2, 300), np.float32)
    np.testing.assert_array_equal(Session(to_graph(proto)).run({"x": x})["y"], x)


def test_a_sequence_output_is_a_list() -> None:
    proto = model(("SplitToSequence", "x", "y", {"axis": 0}), inputs={"x": (2, 4)})
    found = Session(to_graph(proto)).run({"x": np.ones((2, 4), np.float32)})["y"]
    assert [np.asarray(one).shape for one in found] == [(1, 4), (1, 4)]


def test_numpy_arrays_that_are_not_contiguous_can_be_weights() -> None:
    graph = to_graph(example())
    constant = next(t for node in graph.nodes for t in node.inputs if t.name == "w")
    constant.values = np.asfortranarray(W)
    np.testing.assert_allclose(Session(graph).run({"x": X})["y"], np.maximum(X @ W, 0), atol=1e-5)


def test_a_profile_lists_the_nodes_that_ran(tmp_path: Path) -> None:
    session = Session(to_graph(example()), quick=True, profile=tmp_path / "run")
    session.run({"x": X})
    written = session.profile()
    assert written.parent == tmp_path
    assert '"A_kernel_time"' in written.read_text()


def test_an_older_opset_runs_where_the_newest_operator_has_no_kernel(tmp_path: Path) -> None:
    proto = model(("GlobalLpPool", "x", "a"), ("Relu", "a", "y"), inputs={"x": (1, 2, 3, 3)}, opset=23)
    x = np.ones((1, 2, 3, 3), np.float32)
    wanted = np.full((1, 2, 1, 1), 3, np.float32)
    np.testing.assert_array_equal(Session(to_graph(proto)).run({"x": x})["y"], wanted)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    np.testing.assert_array_equal(Session(path).run({"x": x})["y"], wanted)


def test_an_operator_without_a_kernel_is_named_with_its_opset() -> None:
    inputs = {"x": (1, 2, 3, 3), "s": (3,)}
    proto = model(("GlobalLpPool", "x", "a"), ("RMSNormalization", "a s", "y"), inputs=inputs, opset=23)
    told = r"no kernel for node 'A' \(GlobalLpPool of opset 22\) .* \(float32\): .* an opset below 22"
    with pytest.raises(ModelError, match=told):
        Session(to_graph(proto))


def test_what_was_run_is_told_with_the_error() -> None:
    session = Session(to_graph(model(("Relu", "x", "y"))))
    feed = {"x": np.ones((3, 4), np.float32)}
    with pytest.raises(DataError) as caught:
        session.run(feed)
    assert caught.value.fed is feed


def test_sizes_of_one_name_that_differ_are_named() -> None:
    inputs = {"x": ("n", 64), "b": ("n", 64)}
    nodes: list[Spec] = [("Relu", "x", "c0"), ("Relu", "b", "d0")]
    for i in range(4):
        nodes += [("Neg", f"c{i}", f"c{i + 1}"), ("Neg", f"d{i}", f"d{i + 1}")]
    nodes += [("Abs", "c4", "y"), ("Abs", "d4", "z")]
    session = Session(to_graph(model(*nodes, inputs=inputs, outputs=["y", "z"])))
    feed = {"x": np.ones((40, 64), np.float32), "b": np.ones((3, 64), np.float32)}
    with pytest.raises(ModelError, match="inputs 'x' and 'b' have 40 and 3 where the model says 'n' of both"):
        session.run(feed)


@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.int64])
def test_large_weights_of_a_quick_session_are_read_where_they_lie(dtype: type[np.generic], shift: int) -> None:
    large = RNG.integers(-9, 9, (1024, 1024)).astype(dtype)
    stored = np.frombuffer(b"\0" * shift + large.tobytes(), np.uint8)[shift:].view(dtype).reshape(large.shape)
    graph = to_graph(
        model(
            ("Cast", "w", "f", {"to": TensorProto.FLOAT}),
            ("MatMul", "x f", "a"),
            ("Add", "a b", "y"),
            inputs={"x": ("n", 1024)},
            weights={"w": large, "b": W[0, :1]},
        )
    )
    graph.tensors()["w"].values = stored
    x = RNG.standard_normal((2, 1024)).astype(np.float32)
    session = Session(graph, quick=True)
    assert list(session.inputs) == ["x"]
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ large.astype(np.float32) + W[0, 0], atol=1e-2, rtol=1e-4)
    np.testing.assert_array_equal(session.run({"x": x})["y"], Session(graph, optimize=False).run({"x": x})["y"])


def test_large_weights_are_read_inside_of_branches_and_may_be_outputs() -> None:
    large = RNG.standard_normal((512, 1024)).astype(np.float32)
    reads = helper.make_node("MatMul", ["x", "w"], ["inner"])
    other = helper.make_node("Neg", ["z"], ["outer"])
    branches = [
        helper.make_graph([node], node.op_type, [], [helper.make_tensor_value_info(node.output[0], 1, None)])
        for node in (reads, other)
    ]
    taken = {"then_branch": branches[0], "else_branch": branches[1]}
    proto = model(("If", "c", "y", taken), inputs={"x": (2, 512), "z": (2, 1024)}, weights={"w": large})
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    proto.graph.output.append(helper.make_tensor_value_info("w", 1, [512, 1024]))
    feeds = {"x": X[:2, :1].repeat(512, 1), "z": np.ones((2, 1024), np.float32), "c": np.array(True)}
    found = Session(to_graph(proto), quick=True).run(feeds)
    np.testing.assert_allclose(found["y"], feeds["x"] @ large, atol=1e-3)
    np.testing.assert_array_equal(found["w"], large)


def test_onnx_runtime_reports_to_nobody_and_leaves_no_file_behind(tmp_path: Path) -> None:
    code = "import sys; from qcompiler.runtime.session import Session; Session(sys.argv[1])"
    (tmp_path / "temporary").mkdir()
    onnx.save(example(), tmp_path / "m.onnx")
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.onnx")], env=environment, check=True)
    assert list((tmp_path / "temporary").iterdir()) == []
