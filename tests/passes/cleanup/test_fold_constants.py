from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper

from qcompiler.passes.cleanup.fold_constants import FoldConstants
from tests.kit.rewrite import check, check_skipped, check_untouched, graph_proto, model, to_graph

W = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_a_chain_of_constants_is_computed_in_one_run() -> None:
    proto = model(
        ("Unsqueeze", "n a", "u"),
        ("Concat", "u m", "s", {"axis": 0}),
        ("Reshape", "x s", "y"),
        weights={"n": np.int64(4), "a": np.array([0]), "m": np.array([-1])},
    )
    graph, report = check(FoldConstants(), proto, ops=["Reshape"])
    assert graph.nodes[0].inputs[1].values.tolist() == [4, -1]
    assert report.notes[-1].text == "Concat computed: [4, -1]"


def test_all_outputs_of_a_split_are_computed() -> None:
    proto = model(
        ("Split", "w s", "a b", {"axis": 1}),
        ("MatMul", "x a", "c"),
        ("MatMul", "x b", "d"),
        ("Add", "c d", "y"),
        inputs={"x": (2, 3)},
        weights={"w": W, "s": np.array([2, 2])},
    )
    check(FoldConstants(), proto, ops=["MatMul", "MatMul", "Add"])


def test_a_weight_stored_as_half_is_cast_now() -> None:
    half = (np.arange(16).reshape(4, 4) / 8).astype(np.float16)
    proto = model(("Cast", "w", "c", {"to": TensorProto.FLOAT}), ("MatMul", "x c", "y"), weights={"w": half})
    graph, _ = check(FoldConstants(), proto, ops=["MatMul"])
    assert graph.nodes[0].inputs[1].values.dtype == np.float32


def test_the_shape_of_a_fixed_tensor_is_known() -> None:
    proto = model(
        ("Shape", "x", "s"),
        ("Gather", "s i", "d"),
        ("Cast", "d", "f", {"to": 1}),
        ("Mul", "x f", "y"),
        weights={"i": np.int64(1)},
    )
    graph, _ = check(FoldConstants(), proto, ops=["Mul"])
    assert graph.nodes[0].inputs[1].values == 4


def test_one_fixed_dimension_of_an_open_shape_is_known() -> None:
    proto = model(
        ("Shape", "x", "s"),
        ("Gather", "s i", "d"),
        ("Cast", "d", "f", {"to": 1}),
        ("Mul", "x f", "y"),
        inputs={"x": ("batch", 4)},
        weights={"i": np.array([1])},
    )
    graph, _ = check(FoldConstants(), proto, ops=["Shape", "Mul"])
    assert graph.nodes[1].inputs[1].values.tolist() == [4]


def test_part_of_a_shape_is_known() -> None:
    proto = model(
        ("Shape", "x", "s", {"start": 1}),
        ("Cast", "s", "f", {"to": 1}),
        ("Mul", "x f", "y"),
        inputs={"x": ("batch", 2, 2)},
    )
    graph, _ = check(FoldConstants(), proto, ops=["Mul"])
    assert graph.nodes[0].inputs[1].values.tolist() == [2, 2]


def test_the_size_of_a_fixed_tensor_is_known() -> None:
    check(FoldConstants(), model(("Size", "x", "s"), ("Cast", "s", "f", {"to": 1}), ("Mul", "x f", "y")), ops=["Mul"])


def test_the_transposed_weight_of_a_matmul_is_a_view_even_where_it_is_tied() -> None:
    table = np.random.default_rng(0).standard_normal((2048, 256)).astype(np.float32)
    proto = model(
        ("Gather", "w i", "g"),
        ("Transpose", "w", "t", {"perm": [1, 0]}),
        ("MatMul", "g t", "y"),
        inputs={"i": (np.int64, (3,))},
        weights={"w": table},
    )
    graph, _ = check(FoldConstants(), proto, ops=["Gather", "MatMul"], tolerance=1e-5)
    assert np.shares_memory(graph.nodes[0].inputs[0].values, graph.nodes[1].inputs[1].values)


def test_constants_inside_a_branch_are_computed() -> None:
    then = graph_proto([("Neg", "c", "n"), ("Mul", "x n", "t")], {}, ["t"], {"c": np.float32(2)})
    other = graph_proto([("Relu", "x", "o")], {}, ["o"])
    proto = model(
        ("If", "flag", "y", {"then_branch": then, "else_branch": other}), inputs={"x": (2, 4), "flag": (bool, ())}
    )
    graph, _ = check(FoldConstants(), proto, ops=["If"])
    assert [node.op for node in graph.nodes[0].attrs["then_branch"].nodes] == ["Mul"]


def test_a_result_that_lets_the_model_grow_stays_a_node() -> None:
    value = numpy_helper.from_array(np.ones(1, np.float32))
    proto = model(
        ("ConstantOfShape", "s", "c", {"value": value}), ("MatMul", "x c", "y"), weights={"s": np.array([4, 100_000])}
    )
    check_skipped(FoldConstants(), proto, "its result of 1600000 bytes would replace 16 bytes")


def test_the_limit_is_an_option() -> None:
    value = numpy_helper.from_array(np.ones(1, np.float32))
    proto = model(
        ("ConstantOfShape", "s", "c", {"value": value}), ("MatMul", "x c", "y"), weights={"s": np.array([4, 100_000])}
    )
    check(FoldConstants(max_bytes=1 << 21), proto, ops=["MatMul"])


def test_large_results_are_welcome_where_as_much_goes_away() -> None:
    large = np.zeros((1024, 512), np.float32)
    proto = model(("Neg", "w", "n"), ("MatMul", "x n", "y"), inputs={"x": (1, 1024)}, weights={"w": large})
    check(FoldConstants(max_bytes=1024), proto, ops=["MatMul"])


def test_a_large_input_that_others_read_does_not_count_as_going_away() -> None:
    large = np.zeros((1024, 512), np.float32)
    proto = model(
        ("Neg", "w", "n"),
        ("MatMul", "x n", "a"),
        ("MatMul", "x w", "b"),
        ("Add", "a b", "y"),
        inputs={"x": (1, 1024)},
        weights={"w": large},
    )
    check_skipped(FoldConstants(max_bytes=1024), proto, "would replace 0 bytes")


def test_random_numbers_stay_random() -> None:
    proto = model(("RandomNormalLike", "c", "r"), ("Add", "x r", "y"), weights={"c": np.float32(1)})
    check_skipped(FoldConstants(), proto, "random")
    held = {"c": np.ones(4, np.float32), "ratio": np.float32(0.5), "training": np.array(True)}
    proto = model(("Dropout", "c ratio training", "r"), ("Add", "x r", "y"), weights=held)
    check_skipped(FoldConstants(), proto, "random")


def test_quantized_weights_stay_quantized() -> None:
    proto = model(
        ("DequantizeLinear", "q s z", "w"),
        ("MatMul", "x w", "y"),
        weights={"q": np.ones((4, 3), np.int8), "s": np.float32(0.1), "z": np.int8(0)},
    )
    check_skipped(FoldConstants(), proto, "quantized weights stay quantized")


def test_a_constant_graph_output_stays() -> None:
    proto = model(("Neg", "c", "n"), ("Relu", "x", "y"), outputs=["n", "y"], weights={"c": np.float32(1)})
    check_skipped(FoldConstants(), proto, "'n' is a graph output")


def test_an_if_on_a_constant_stays() -> None:
    then, other = (graph_proto([(op, "x", out)], {}, [out]) for op, out in (("Relu", "t"), ("Neg", "o")))
    proto = model(("If", "flag", "y", {"then_branch": then, "else_branch": other}), weights={"flag": np.array(True)})
    check_skipped(FoldConstants(), proto, "nested graphs")


def test_operators_of_other_domains_stay() -> None:
    proto = model(
        ("Secret", "c", "d", {}, "com.acme"), ("Add", "x d", "y"), weights={"c": np.float32(1)}, domains=["com.acme"]
    )
    check_skipped(FoldConstants(), proto, "domain 'com.acme'")


def test_what_onnx_runtime_cannot_compute_stays_with_its_reason() -> None:
    proto = model(
        ("Reshape", "c s", "d"), ("Add", "x d", "y"), weights={"c": np.ones(4, np.float32), "s": np.array([3, 3])}
    )
    check_skipped(FoldConstants(), proto, "ONNX Runtime cannot compute it")


def test_a_graph_without_constant_nodes_is_left_alone() -> None:
    check_untouched(FoldConstants(), model(("MatMul", "x w", "y"), inputs={"x": ("n", 3)}, weights={"w": W}))


def test_an_open_shape_stays() -> None:
    check_untouched(FoldConstants(), model(("Shape", "x", "y"), inputs={"x": ("n", 4)}))


def test_arrays_that_came_from_the_file_are_not_written_to() -> None:
    graph = to_graph(model(("Neg", "w", "n"), ("MatMul", "x n", "y"), weights={"w": np.eye(4, dtype=np.float32)}))
    held = graph.nodes[0].inputs[0].values
    FoldConstants()(graph)
    np.testing.assert_array_equal(held, np.eye(4))
