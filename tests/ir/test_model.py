"""A model keeps its meaning, its bytes and its file through load, copy and save."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from qcompiler.errors import InternalError, UsageError
from qcompiler.ir import model as models
from qcompiler.ir import weights

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(7)
WEIGHT = RNG.standard_normal((64, 32)).astype(np.float32)


def proto(text: str, *weights: TensorProto, ir_version: int = 10, opset: int = 21) -> ModelProto:
    """A model written as ONNX text without its header, and with these initializers."""
    model = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}, "local": 1]> {text}')
    model.graph.initializer.extend(weights)
    return model


def linear() -> ModelProto:
    """MatMul with a large weight, then Add with a small one."""
    return proto(
        "g (float[batch, 64] x) => (float[batch, 32] y) { t = MatMul(x, w) y = Add(t, b) }",
        numpy_helper.from_array(WEIGHT, "w"),
        numpy_helper.from_array(WEIGHT[0], "b"),
    )


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[ModelProto], Path]:
    def store(model: ModelProto) -> Path:
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return store


def session(source: Path | bytes, arrays: dict[str, Array] | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if arrays:
        options.add_external_initializers(
            list(arrays), [ort.OrtValue.ortvalue_from_numpy(one) for one in arrays.values()]
        )
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def round_trip(path: Path) -> ModelProto:
    """Loads, copies, saves, and returns what was saved."""
    out = path.with_name("round.onnx")
    models.save(models.copy(models.load(path)), out)
    onnx.checker.check_model(out)
    return onnx.load(out)


STRINGS = numpy_helper.from_array(np.array(["a", "ü", ""], object), "words")
SPARSE = helper.make_sparse_tensor(
    numpy_helper.from_array(np.array([1.5, 2.5], np.float32), "s"), numpy_helper.from_array(np.array([1, 6])), [2, 4]
)

UNUSUAL = {
    "an If whose branches read outer tensors and have weights": """
        g (bool c, float[4] x) => (float[4] y) <float[4] outer = {1, 2, 3, 4}> {
            t = Relu(x)
            y = If (c) <
                then_branch = one () => (float[4] a) <float[4] w = {1, 1, 1, 1}> { b = Add(t, w) a = Mul(b, outer) },
                else_branch = two () => (float[4] a) <float[4] w = {2, 2, 2, 2}> { b = Mul(t, w) a = Sub(b, outer) }
            >
        }""",
    "a Loop with a carried tensor and a scan output": """
        g (int64 n, float[4] x) => (float[4] y, float[k, 4] all) {
            c = Constant<value = bool {1}>()
            y, all = Loop (n, c, x) <
                body = b (int64 i, bool ci, float[4] v) => (bool co, float[4] w, float[4] o) {
                    co = Identity(ci) w = Mul(v, x) o = Relu(w)
                }
            >
        }""",
    "a Scan": """
        g (float[4] s, float[k, 4] x) => (float[4] y, float[k, 4] z) {
            y, z = Scan <num_scan_inputs = 1, body = b (float[4] a, float[4] e) => (float[4] a2, float[4] o) {
                a2 = Add(a, e) o = Identity(a2)
            }> (s, x)
        }""",
    "sequences": """
        g (float[4] x) => (seq(float[4]) y, float[1, 4] first) {
            s = SequenceConstruct(x, x) y = SequenceInsert(s, x) zero = Constant<value_int = 0>()
            f = SequenceAt(y, zero) first = Reshape <allowzero = 0> (f, shape) shape = Constant<value_ints = [1, 4]>()
        }""",
    "optional values": """
        g (optional(float[4]) x) => (float[4] y, bool there) {
            there = OptionalHasElement(x) y = OptionalGetElement(x)
        }""",
    "strings": "g (string[3] x) => (string[3] y) { y = StringConcat(x, words) }",
}


def normal(graph: onnx.GraphProto, main: bool = True) -> onnx.GraphProto:
    """The graph in a form that does not depend on node names, node order and the order of weights."""
    result = onnx.GraphProto()
    result.CopyFrom(graph)
    nodes = sorted(graph.node, key=lambda node: node.output[0])
    del result.node[:], result.initializer[:], result.value_info[:]
    for node in nodes:
        twin = result.node.add()
        twin.CopyFrom(node)
        twin.ClearField("name")
        if not twin.domain:
            twin.ClearField("domain")  # set to nothing by the text parser
        for attribute in twin.attribute:
            if attribute.type == AttributeProto.GRAPH:
                attribute.g.CopyFrom(normal(attribute.g, main=False))
            if attribute.type == AttributeProto.TENSOR:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t), attribute.t.name))
    for tensor in sorted(graph.initializer, key=lambda one: one.name):
        result.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return result


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


def test_a_sparse_initializer_comes_back_and_can_be_read(stored: Callable[[ModelProto], Path]) -> None:
    original = proto("g (float[2, 4] x) => (float[2, 4] y) { y = Add(x, s) }")
    original.graph.sparse_initializer.append(SPARSE)
    path = stored(original)
    assert list(round_trip(path).graph.sparse_initializer) == [SPARSE]
    (node,) = models.load(path).graph.nodes
    assert node.inputs[1].values.dtype == np.float32
    np.testing.assert_array_equal(node.inputs[1].values, [[0, 1.5, 0, 0], [0, 0, 2.5, 0]])


@pytest.mark.parametrize(
    "dtype",
    [np.int8, np.bool_, np.float16, np.complex64, np.uint64]
    + [getattr(ml_dtypes, name) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2fnuz", "int4", "uint4", "int2")],
    ids=lambda dtype: np.dtype(dtype).name,
)
@pytest.mark.parametrize("size", [7, 5001])
def test_every_element_type_comes_back(dtype: Any, size: int, tmp_path: Path) -> None:
    values = RNG.integers(0, 2, size).astype(np.float32).astype(dtype)
    tensor = numpy_helper.from_array(values, "w")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"], "n")],
        "g",
        [],
        [helper.make_tensor_value_info("y", tensor.data_type, [size])],
        [tensor],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)]), tmp_path / "a.onnx")
    loaded = models.load(tmp_path / "a.onnx")
    assert loaded.graph.nodes[0].inputs[0].dtype == np.dtype(dtype)
    assert loaded.graph.outputs[0].dtype == np.dtype(dtype)
    for above in (0, 1 << 30):
        models.save(loaded, tmp_path / "b.onnx", external_above=above)
        back = models.load(tmp_path / "b.onnx").graph.nodes[0].inputs[0].values
        assert back.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(back.astype(np.complex64), values.astype(np.complex64))


def test_large_weights_are_views_of_the_file_and_read_only(stored: Callable[[ModelProto], Path]) -> None:
    path = stored(linear())
    matmul = models.load(path).graph.nodes[0]
    weight = matmul.inputs[1].values
    base = weight
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert base.filename is not None
    assert os.path.samefile(base.filename, path)
    np.testing.assert_array_equal(weight, WEIGHT)
    with pytest.raises(ValueError, match="read-only"):
        weight[0, 0] = 1


def test_pages_that_were_given_back_are_read_again(stored: Callable[[ModelProto], Path]) -> None:
    original = linear()
    large = RNG.standard_normal((3000, 1000)).astype(np.float32)
    original.graph.initializer.append(numpy_helper.from_array(large, "large"))
    original.graph.node.add(op_type="Neg", input=["large"], output=["z"])
    original.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [3000, 1000]))
    values = models.load(stored(original)).graph.nodes[2].inputs[0].values
    assert b"".join(bytes(piece) for piece in weights.pieces(values)) == large.tobytes()
    assert b"".join(bytes(piece) for piece in weights.pieces(values.T)) == large.T.tobytes()
    weights.release(values[10:2000])
    np.testing.assert_array_equal(values, large)


def test_weights_in_constant_nodes_are_views_too(stored: Callable[[ModelProto], Path]) -> None:
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT, "anything"))
    original = proto("g (float[1, 64] x) => (float[1, 32] y) { y = MatMul(x, w) }")
    original.graph.node.insert(0, constant)
    path = stored(original)
    value = models.load(path).graph.nodes[0].attrs["value"]
    assert not value.values.flags.owndata
    np.testing.assert_array_equal(value.values, WEIGHT)
    assert normal(round_trip(path).graph) == normal(original.graph)


def test_loading_and_saving_leave_the_input_alone(stored: Callable[[ModelProto], Path]) -> None:
    path = stored(linear())
    before = (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest(), sorted(os.listdir(path.parent)))
    models.to_proto(models.load(path).graph)
    after = (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest(), sorted(os.listdir(path.parent)))
    assert after == before


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


def test_a_copy_shares_arrays_and_nothing_else(stored: Callable[[ModelProto], Path]) -> None:
    model = models.load(stored(linear()))
    before = models.to_proto(model.graph)[0].SerializeToString()
    twin = models.copy(model)
    assert twin.graph.nodes[0].inputs[1].values is model.graph.nodes[0].inputs[1].values
    twin.graph.nodes[0].inputs[1].values = np.zeros((64, 32), np.float16)
    twin.graph.nodes[1].name = "other"
    twin.graph.inputs[0].shape[0] = 3
    twin.graph.outputs.clear()
    twin.metadata["new"] = "entry"
    assert models.to_proto(model.graph)[0].SerializeToString() == before
    assert model.metadata == {}


def test_a_copy_keeps_subgraphs_wired_to_its_own_outer_tensors(stored: Callable[[ModelProto], Path]) -> None:
    model = models.load(stored(proto(UNUSUAL["an If whose branches read outer tensors and have weights"])))
    twin = models.copy(model).graph
    relu, branch = twin.nodes
    inner = branch.attrs["then_branch"].nodes
    assert inner[0].inputs[0] is relu.outputs[0]
    assert inner[1].inputs[1] is branch.attrs["else_branch"].nodes[1].inputs[1]
    assert inner[0].inputs[0] is not model.graph.nodes[0].outputs[0]


@pytest.mark.parametrize("above", [0, 1 << 30], ids=["external", "embedded"])
def test_saved_models_compute_the_same_and_are_the_same_bytes_each_time(
    above: int, stored: Callable[[ModelProto], Path], tmp_path: Path
) -> None:
    path = stored(linear())
    files = [
        models.save(models.load(path), tmp_path / name / "out.onnx", external_above=above) for name in ("one", "two")
    ]
    assert [file.name for file in files[0]] == (["out.onnx"] if above else ["out.onnx", "out.data"])
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert sorted(os.listdir(tmp_path / "one")) == sorted(file.name for file in files[0])
    x = {"x": RNG.standard_normal((5, 64)).astype(np.float32)}
    expected = session(path).run(None, x)
    np.testing.assert_array_equal(session(files[0][0]).run(None, x), expected)
    models.save(models.load(files[0][0]), tmp_path / "again.onnx")
    np.testing.assert_array_equal(session(tmp_path / "again.onnx").run(None, x), expected)


def test_external_tensors_begin_on_pages(stored: Callable[[ModelProto], Path], tmp_path: Path) -> None:
    original = linear()
    original.graph.initializer.append(numpy_helper.from_array(WEIGHT.ravel()[:300], "v"))
    original.graph.node.append(helper.make_node("Add", ["v", "v"], ["z"]))
    original.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [300]))
    models.save(models.load(stored(original)), tmp_path / "out.onnx", external_above=0)
    back = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    offsets = [
        int(entry.value) for one in back.graph.initializer for entry in one.external_data if entry.key == "offset"
    ]
    assert offsets == [0, 8192]
    assert all(one.inputs[1].values.flags.aligned for one in models.load(tmp_path / "out.onnx").graph.nodes)


def test_to_proto_keeps_large_weights_outside_and_a_session_takes_them(stored: Callable[[ModelProto], Path]) -> None:
    path = stored(linear())
    graph = models.load(path).graph
    first, arrays = models.to_proto(graph)
    assert list(arrays) == ["w"]
    assert arrays["w"] is graph.nodes[0].inputs[1].values
    assert first.SerializeToString() == models.to_proto(graph)[0].SerializeToString()
    assert len(first.SerializeToString()) < 1000
    x = {"x": RNG.standard_normal((5, 64)).astype(np.float32)}
    np.testing.assert_array_equal(session(first.SerializeToString(), arrays).run(None, x), session(path).run(None, x))


def test_an_outer_weight_that_only_subgraphs_read_is_written_once(stored: Callable[[ModelProto], Path]) -> None:
    text = """g (bool c, float[2, 64] x) => (float[2, 32] y) {
        y = If (c) < then_branch = one () => (float[2, 32] a) { a = MatMul(x, w) },
                     else_branch = two () => (float[2, 32] a) { b = MatMul(x, w) a = Neg(b) } > }"""
    graph = models.load(stored(proto(text, numpy_helper.from_array(WEIGHT, "w")))).graph
    written, arrays = models.to_proto(graph)
    assert list(arrays) == ["w"]
    assert [one.name for one in written.graph.initializer] == ["w"]
    assert not any(attribute.g.initializer for attribute in written.graph.node[0].attribute)


def test_edited_graphs_are_written_as_they_stand(stored: Callable[[ModelProto], Path]) -> None:
    graph = models.load(stored(linear())).graph
    graph.opset = 23
    graph.nodes[0].inputs[1].values = WEIGHT.astype(np.float16).T.copy().T
    graph.outputs[0].dtype = np.dtype(np.float16)
    graph.nodes[1].attrs = {"to": np.float16, "axes": [], "list": [1, 2.5], "size": np.int64(3)}
    graph.nodes[1].domain = "somewhere"
    written, arrays = models.to_proto(graph)
    assert {one.domain: one.version for one in written.opset_import} == {"": 23, "local": 1, "somewhere": 1}
    assert written.ir_version >= 11
    assert arrays["w"].dtype == np.float16
    assert arrays["w"].flags.c_contiguous
    assert written.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    values = {one.name: helper.get_attribute_value(one) for one in written.graph.node[1].attribute}
    assert values == {"to": TensorProto.FLOAT16, "axes": [], "list": [1.0, 2.5], "size": 3}


def test_an_empty_list_gets_the_type_of_the_schema(stored: Callable[[ModelProto], Path]) -> None:
    graph = models.load(stored(linear())).graph
    graph.nodes[1].op = "RandomNormal"  # has float, int and list attributes
    graph.nodes[1].attrs = {"shape": []}
    assert models.to_proto(graph)[0].graph.node[1].attribute[0].type == AttributeProto.INTS


def test_two_tensors_of_one_name_are_not_written(stored: Callable[[ModelProto], Path]) -> None:
    graph = models.load(stored(linear())).graph
    graph.nodes[1].inputs[1] = gs.Constant("w", WEIGHT[1])
    with pytest.raises(InternalError, match="two different tensors are named 'w'"):
        models.to_proto(graph)


def test_the_source_is_never_overwritten(stored: Callable[[ModelProto], Path], tmp_path: Path) -> None:
    path = stored(linear())
    model = models.load(path)
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    for target in (path, link, tmp_path / "." / "model.onnx"):
        with pytest.raises(UsageError, match="inputs are never overwritten"):
            models.save(model, target)


def test_the_external_data_of_the_source_is_never_overwritten(tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "in.onnx", save_as_external_data=True, location="out.data", size_threshold=0)
    model = models.load(tmp_path / "in.onnx")
    assert model.files == (tmp_path / "in.onnx", tmp_path / "out.data")
    with pytest.raises(UsageError, match=r"out\.data' is a file that the model was read from"):
        models.save(model, tmp_path / "out.onnx", external_above=0)


def test_an_unwritable_place_is_named_and_nothing_is_left(stored: Callable[[ModelProto], Path], tmp_path: Path) -> None:
    model = models.load(stored(linear()))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match=r"out\.onnx.*writable"):
        models.save(model, tmp_path / "file" / "out.onnx")
    assert sorted(os.listdir(tmp_path)) == ["file", "model.onnx"]


@pytest.mark.parametrize("above", [0, 1 << 30], ids=["external", "embedded"])
def test_a_full_disk_leaves_nothing_behind(
    above: int, stored: Callable[[ModelProto], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.load(stored(linear()))
    calls = []

    def full(values: Array) -> None:
        calls.append(values)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "pieces", full)
    with pytest.raises(UsageError, match="No space left on device"):
        models.save(model, tmp_path / "out.onnx", external_above=above)
    assert calls
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_metadata_is_saved_and_the_ir_version_rises_with_the_opset(
    stored: Callable[[ModelProto], Path], tmp_path: Path
) -> None:
    original = linear()
    original.ir_version = 8
    original.opset_import[0].version = 17
    model = models.load(stored(original))
    model.metadata["made by"] = "a test"
    models.save(model, tmp_path / "same.onnx")
    model.graph.opset = 21
    models.save(model, tmp_path / "higher.onnx")
    same, higher = onnx.load(tmp_path / "same.onnx"), onnx.load(tmp_path / "higher.onnx")
    assert (same.ir_version, higher.ir_version) == (8, 10)
    assert [(one.key, one.value) for one in same.metadata_props] == [("made by", "a test")]


def test_hugging_face_cache_links_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1" / "onnx"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    onnx.save(linear(), tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx_data", size_threshold=0)
    for name, blob in (("m.onnx", "aaa"), ("m.onnx_data", "bbb")):
        (tmp_path / name).rename(blobs / blob)
        (snapshot / name).symlink_to(blobs / blob)
    np.testing.assert_array_equal(models.load(snapshot / "m.onnx").graph.nodes[0].inputs[1].values, WEIGHT)
    link = tmp_path / "folder"
    link.symlink_to(snapshot)
    np.testing.assert_array_equal(models.load(link / "m.onnx").graph.nodes[0].inputs[1].values, WEIGHT)


def test_a_model_in_a_linked_folder_finds_its_data(tmp_path: Path) -> None:
    (tmp_path / "real" / "weights").mkdir(parents=True)
    onnx.save(
        linear(), tmp_path / "real" / "m.onnx", save_as_external_data=True, location="weights/w", size_threshold=0
    )
    (tmp_path / "link").symlink_to(tmp_path / "real")
    np.testing.assert_array_equal(models.load(tmp_path / "link" / "m.onnx").graph.nodes[0].inputs[1].values, WEIGHT)
