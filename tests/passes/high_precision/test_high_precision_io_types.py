"""Float inputs and outputs of the model in the lower type: no Casts at the border, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from qcompiler.errors import UsageError
from qcompiler.ir import graph as graphs
from qcompiler.ir.model import Model
from qcompiler.passes.high_precision.high_precision import HighPrecision
from qcompiler.statistics import ranges
from qcompiler.target import DType
from qcompiler.verification.compare import verify
from tests.kit.rewrite import graph_proto, model, random_feeds, to_graph, whole
from tests.kit.typed import bordered, interface, ops, weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]


F16 = np.dtype(np.float16)


def test_inputs_and_outputs_that_fit_are_half_and_no_cast_is_left() -> None:
    graph, report = bordered(model(("MatMul", "x w", "m"), ("Relu", "m", "y"), weights={"w": weight(4, 4)}))
    assert ops(graph) == ["MatMul", "Relu"]
    assert interface(graph) == [("x", F16), ("y", F16)]
    assert not report.kept


def test_keep_is_the_default_and_integers_are_never_touched() -> None:
    assert HighPrecision().io_types == "keep"
    proto = model(("Gather", "x i", "y"), inputs={"x": (2, 4), "i": (np.int64, (3,))})
    assert interface(bordered(proto)[0]) == [("x", F16), ("i", np.dtype(np.int64)), ("y", F16)]


def test_an_unknown_value_of_the_option_is_refused() -> None:
    with pytest.raises(UsageError, match="not 'half'"):
        HighPrecision(io_types="half")


def test_text_form_names_the_option_where_it_is_set() -> None:
    assert str(HighPrecision(io_types="high-precision")) == "high-precision{io_types=high-precision}"


def test_fp32_nodes_at_the_border_get_their_casts_inside() -> None:
    graph, _ = bordered(model(("Exp", "x", "e"), ("Reciprocal", "e", "y")))
    assert ops(graph) == ["Cast", "Exp", "Reciprocal", "Cast"]
    assert interface(graph) == [("x", F16), ("y", F16)]


def test_an_output_that_fp32_nodes_read_too_is_cast_once() -> None:
    graph, _ = bordered(
        model(("MatMul", "x w", "m"), ("Exp", "m", "y"), ("Log", "y", "z"), outputs=("m", "y", "z"),
              weights={"w": weight(4, 4)})
    )  # fmt: skip
    assert [dtype for _, dtype in interface(graph)] == [F16] * 4
    assert ops(graph).count("Cast") == 3  # m for Exp, and the outputs of Exp and Log


def test_a_result_of_an_if_leaves_the_model_as_half() -> None:
    branches = {
        "then_branch": graph_proto([("MatMul", "x w", "t")], {}, ["t"]),
        "else_branch": graph_proto([("MatMul", "x w", "a"), ("Neg", "a", "e")], {}, ["e"]),
    }
    proto = model(("If", "c", "y", branches), inputs={"x": (2, 4), "c": (np.bool_, ())}, weights={"w": weight(4, 4)})
    graph = to_graph(proto)
    feeds = {"x": weight(2, 4)}
    both = [{**feeds, "c": np.array(flag)} for flag in (True, False)]
    HighPrecision(ranges=ranges.measure(graph, both), io_types="high-precision")(graph)
    onnx.checker.check_model(whole(graph), full_check=True)
    assert "Cast" not in [node.op for node in graphs.walk(graph)]
    assert interface(graph)[-1] == ("y", F16)


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
def test_verification_feeds_and_compares_across_the_types(dtype: DType) -> None:
    proto = model(("MatMul", "x w", "m"), ("Relu", "m", "y"), weights={"w": weight(4, 4)}, opset=21)
    proto.ir_version = 10
    graph, _ = bordered(proto, dtype=dtype)
    feeds = [random_feeds(to_graph(proto), seed) for seed in range(3)]
    found = verify(Model(to_graph(proto), {}, None, 10), Model(graph, {}, None, 10), feeds, drift=False)
    least = 55 if dtype is DType.FP16 else 35
    assert found.worst_sqnr_db is not None
    assert least < found.worst_sqnr_db < 100


def test_a_second_run_changes_nothing() -> None:
    proto = model(("MatMul", "x w", "m"), ("Exp", "m", "y"), weights={"w": weight(4, 4)})
    (graph, _), before = bordered(proto), to_graph(proto)
    written = whole(graph).SerializeToString(deterministic=True)
    seen = ranges.measure(before, [random_feeds(before)])
    assert not HighPrecision(ranges=seen, io_types="high-precision")(graph).changed
    assert whole(graph).SerializeToString(deterministic=True) == written
