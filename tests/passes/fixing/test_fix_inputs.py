from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import UsageError
from qcompiler.ir import graph as graphs
from qcompiler.ir.signature import fixed_of, inputs_of
from qcompiler.passes.cleanup.fold_ifs import FoldIfs
from qcompiler.passes.fixing.fix_inputs import FixInputs
from qcompiler.runtime.session import Session
from tests.kit.rewrite import graph_proto, model, to_graph

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def merged(flag: tuple[Any, ...] = (1,)) -> onnx.ModelProto:
    """If(flag) {x · n} else {flag-free Neg}; both branches read inputs of the graph around."""
    branches = {
        "then_branch": graph_proto([("Mul", "x n", "p")], {}, ["p"]),
        "else_branch": graph_proto([("Neg", "x", "q")], {}, ["q"]),
    }
    return model(("If", "flag", "y", branches), inputs={"x": (2, 4), "flag": (bool, flag), "n": (np.float32, ())})


@pytest.mark.parametrize("value", [True, False, 1, 0, [True], np.array([False])])
def test_the_branch_that_is_never_taken_goes(value: Any) -> None:
    graph = to_graph(merged())
    expected = Session(graph, optimize=False).run(
        {"x": X, "n": np.array(3, np.float32), "flag": np.ravel(value).astype(bool)}
    )
    assert FixInputs({"flag": value})(graph).changed == 1
    assert FoldIfs()(graph).changed == 1
    assert [tensor.name for tensor in graph.inputs] == ["x", "n"]
    found = Session(graph, optimize=False).run({"x": X, "n": np.array(3, np.float32)})
    np.testing.assert_array_equal(found["y"], expected["y"])
    assert fixed_of(inputs_of(graph.copy()))["flag"].tolist() == [bool(np.ravel(value)[0])]


def test_a_value_that_only_a_branch_reads() -> None:
    graph = to_graph(merged())
    FixInputs({"n": 3})(graph)
    (y,) = Session(graph, optimize=False).run({"x": X, "flag": np.array([True])}).values()
    np.testing.assert_array_equal(y, X * 3)


def test_an_input_that_is_an_output_as_well_keeps_both_names() -> None:
    graph = to_graph(model(("Neg", "x", "y"), outputs=["y", "x"]))
    FixInputs({"x": X})(graph)
    found = Session(graph, optimize=False).run({})
    np.testing.assert_array_equal(found["x"], X)
    np.testing.assert_array_equal(found["y"], -X)


def test_a_branch_that_gives_the_input_itself() -> None:
    branches = {
        "then_branch": graph_proto([("Identity", "n", "p")], {}, ["p"]),
        "else_branch": graph_proto([("Neg", "x", "q")], {}, ["q"]),
    }
    proto = model(("If", "flag", "y", branches), inputs={"x": (2, 4), "flag": (bool, ()), "n": (np.float32, (2, 4))})
    del proto.graph.node[0].attribute[0].g.node[:]
    proto.graph.node[0].attribute[0].g.output[0].name = "n"
    graph = to_graph(proto)
    FixInputs({"n": X})(graph)
    (y,) = Session(graph, optimize=False).run({"x": -X, "flag": np.array(True)}).values()
    np.testing.assert_array_equal(y, X)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"flog": True}, "did you mean 'flag'"),
        ({"flag": 2}, "takes bool"),
        ({"flag": [True, False]}, "takes the shape 1"),
        ({"n": True}, None),
        ({"n": [1.0, 2.0]}, "a scalar"),
        ({"x": "text"}, "takes float32"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values: dict[str, Any], says: str | None) -> None:
    graph = to_graph(merged())
    if says is None:
        assert FixInputs(values)(graph).changed == 1
        return
    with pytest.raises(UsageError, match=says):
        FixInputs(values)(graph)


def test_a_fraction_is_no_integer_and_a_free_axis_has_no_length() -> None:
    proto = model(("Add", "i i", "y"), inputs={"i": (np.int64, ("batch",))})
    with pytest.raises(UsageError, match="takes int64"):
        FixInputs({"i": [1.5]})(to_graph(proto))
    with pytest.raises(UsageError, match="--fix-shape"):
        FixInputs({"i": 1})(to_graph(proto))
    graph = to_graph(proto)
    FixInputs({"i": [1, 2.0]})(graph)
    assert [graphs.values_of(one).tolist() for one in graph.nodes[0].inputs] == [[1, 2], [1, 2]]
