"""What ONNX can say comes back from a file: nodes in order, uniquely named, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from qcompiler.ir import model as models
from tests.kit.onnx_files import SPARSE, UNUSUAL, linear, normal, proto, round_trip

STRINGS = numpy_helper.from_array(np.array(["a", "ü", ""], object), "words")


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_graphs_come_back_as_they_were(case: str, stored: Callable[[ModelProto], Path]) -> None:
    original = proto(UNUSUAL[case], *([STRINGS] if case == "strings" else []))
    original.graph.name = "gräf 図"
    back = round_trip(stored(original))
    assert normal(back.graph) == normal(original.graph)
    assert back.opset_import == original.opset_import


def test_names_in_any_alphabet_come_back(stored: Callable[[ModelProto], Path]) -> None:
    original = linear()
    add = original.graph.node[1]
    add.name = "Ädd 加 'quoted'"
    add.input[1] = original.graph.initializer[1].name = "bïas 重み"
    add.output[0] = original.graph.output[0].name = "выход /0"
    back = round_trip(stored(original))
    assert back.graph.node[1].name == add.name
    assert normal(back.graph) == normal(original.graph)


def test_functions_custom_domains_metadata_and_docs_come_back(stored: Callable[[ModelProto], Path]) -> None:
    original = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21, "local" : 2, "made.up" : 3], producer_name: "p", model_version: 4,
         metadata_props: ["k": "v", "ü": "図"]>
        g (float[4] x) => (float[4] y) { t = local.twice <factor = 2.5> (x) y = made.up.Thing <empty: ints = []> (t) }
        <domain: "local", opset_import: ["" : 21]>
        twice <factor> (x) => (y) { c = Constant<value_float: float = @factor>() y = Mul(x, c) }
    """)
    original.doc_string = "model doc"
    original.graph.node[0].doc_string = "node doc"
    original.graph.node[0].metadata_props.add(key="namespace", value="a/b")
    original.graph.node[1].overload = "second"
    original.graph.input[0].doc_string = "input doc"
    original.graph.doc_string = "graph doc"
    original.graph.metadata_props.add(key="g", value="h")
    annotation = original.graph.quantization_annotation.add(tensor_name="t")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="t")
    path = stored(original)
    models.save(models.copy(models.load(path)), path.with_name("out.onnx"))
    back = onnx.load(path.with_name("out.onnx"))
    assert normal(back.graph) == normal(original.graph)
    back.ClearField("graph")
    original.ClearField("graph")
    assert back == original
    assert models.load(path).metadata == {"k": "v", "ü": "図"}


def test_attributes_that_gs_has_no_form_for_come_back(stored: Callable[[ModelProto], Path]) -> None:
    make = helper.make_node("Optional", [], ["nothing"])
    make.attribute.append(helper.make_attribute("type", helper.make_tensor_type_proto(TensorProto.FLOAT, [2])))
    sparse = helper.make_node("Constant", [], ["s"], sparse_value=SPARSE)
    blob = helper.make_node("Blob", ["s"], ["y"], domain="made.up", bytes=b"\xff\xfe", many=[b"\xff", b"a"])
    blob.attribute.append(AttributeProto(name="floats", type=AttributeProto.FLOATS))
    blob.attribute.append(helper.make_attribute("whole", [1.0, 2.0]))
    graph = helper.make_graph(
        [make, sparse, blob],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None), onnx.ValueInfoProto(name="nothing")],
    )
    original = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("made.up", 1)])
    path = stored(original)
    models.save(models.load(path), path.with_name("out.onnx"))
    back = onnx.load(path.with_name("out.onnx"))
    assert [node.attribute for node in back.graph.node] == [node.attribute for node in original.graph.node]


def test_nodes_get_unique_names_that_are_the_same_each_time(stored: Callable[[ModelProto], Path]) -> None:
    original = proto(UNUSUAL["an If whose branches read outer tensors and have weights"])
    inner = [node for one in original.graph.node[1].attribute for node in one.g.node]
    original.graph.node[0].name, inner[0].name, inner[1].name = "Añd", "Mul_0", "Añd"
    path = stored(original)

    def names(graph: gs.Graph) -> list[str]:
        return [name for node in graph.nodes for name in (node.name, *(n for g in node.subgraphs() for n in names(g)))]

    found = names(models.load(path).graph)
    assert found[0] == "Añd"
    assert "Mul_0" in found
    assert len(set(found)) == len(found) == 6
    assert all(found)
    assert names(models.load(path).graph) == found
    assert names(models.copy(models.load(path)).graph) == found


def test_nodes_out_of_order_are_sorted_and_others_stay(stored: Callable[[ModelProto], Path]) -> None:
    original = linear()
    first, second = original.graph.node[0], original.graph.node[1]
    reversed_ = ModelProto()
    reversed_.CopyFrom(original)
    reversed_.graph.node[0].CopyFrom(second)
    reversed_.graph.node[1].CopyFrom(first)
    assert [node.op for node in models.load(stored(reversed_)).graph.nodes] == ["MatMul", "Add"]


def test_inputs_that_are_initializers_are_weights(stored: Callable[[ModelProto], Path]) -> None:
    original = linear()
    original.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 32]))
    graph = models.load(stored(original)).graph
    assert [tensor.name for tensor in graph.inputs] == ["x"]
    assert isinstance(graph.nodes[0].inputs[1], gs.Constant)
