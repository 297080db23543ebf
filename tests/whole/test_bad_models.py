"""What is wrong with a model is said in one paragraph that names the file, the node or the tensor."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcompiler.errors import ModelError
from qcompiler.ir import model as models

WEIGHT = np.arange(2048, dtype=np.float32).reshape(64, 32)
Edit = Callable[[ModelProto], None]


def linear() -> ModelProto:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1, 64] x) => (float[1, 32] y) { [mul] t = MatMul(x, w) [out] y = Relu(t) }
    """)
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT, "w"))
    return model


def refused(path: Path) -> str:
    """The message that `load` refuses the file with."""
    with pytest.raises(ModelError) as caught:
        models.load(path)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in message
    return message


def write(path: Path, edit: Edit) -> Path:
    model = linear()
    edit(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "there is no file" in refused(tmp_path / "none.onnx")


def test_a_folder_and_a_pipe_are_no_models(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"PK\x03\x04 and so on", "zip archive"),
        (b"\x18\x00\x00\x00ORTM", "ONNX Runtime's own format"),
        (b"<html><body>404</body></html>", "not a readable ONNX model"),
        (np.random.default_rng(0).bytes(5000), "not a readable ONNX model"),
        (b"\x08\x0a", "holds no graph"),
    ],
)
def test_what_is_not_onnx_is_told_apart(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    message = refused(tmp_path / "m.onnx")
    assert why in message
    assert "m.onnx" in message


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_damaged_file_is_refused_or_read_but_never_crashes(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(linear().SerializeToString())
    content = content[: data.draw(st.integers(1, len(content)))]
    for _ in range(data.draw(st.integers(0, 4))):
        spot = data.draw(st.integers(0, min(len(content), 200) - 1) | st.integers(0, len(content) - 1))
        content[spot] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    try:
        model = models.load(path)
    except ModelError:
        return
    models.save(model, tmp_path / "out.onnx")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", lambda model: model.graph.node[0].input.append("NAME"))
    path.write_bytes(path.read_bytes().replace(b"NAME", b"N\xff\xfeE"))
    assert "not UTF-8" in refused(path)


def test_a_file_cut_in_half_is_refused(tmp_path: Path) -> None:
    content = linear().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content[: len(content) // 2])
    assert "cut short" in refused(tmp_path / "m.onnx")


def cycle(model: ModelProto) -> None:
    model.graph.node[0].input[0] = "back"
    model.graph.node.add(op_type="Neg", name="neg", input=["t"], output=["back"])


def inner_cycle(model: ModelProto) -> None:
    branch = onnx.parser.parse_graph("b () => (float[1, 32] z) { [one] z = Add(q, t) [two] q = Neg(z) }")
    model.graph.node.add(op_type="If", name="if", input=["x"], output=["u"])
    model.graph.node[2].attribute.append(helper.make_attribute("then_branch", branch))


def twice_out(model: ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


def set_opset(version: int) -> Edit:
    def edit(model: ModelProto) -> None:
        model.opset_import[0].version = version

    return edit


def no_opset(model: ModelProto) -> None:
    del model.opset_import[:]


def two_writers(model: ModelProto) -> None:
    model.graph.node.add(op_type="Neg", name="neg", input=["x"], output=["t"])


def writes_weight(model: ModelProto) -> None:
    model.graph.node.add(op_type="Neg", name="neg", input=["x"], output=["w"])


def nothing_writes(model: ModelProto) -> None:
    model.graph.node[1].input[0] = "ghost"


def inner_nothing(model: ModelProto) -> None:
    branch = onnx.parser.parse_graph("b () => (float[1, 32] z) { [inside] z = Neg(ghost) }")
    model.graph.node.add(op_type="If", name="if", input=["x"], output=["u"])
    model.graph.node[2].attribute.append(helper.make_attribute("then_branch", branch))


def output_from_nowhere(model: ModelProto) -> None:
    model.graph.output[0].name = "ghost"


def no_outputs(model: ModelProto) -> None:
    del model.graph.output[:]


def untyped_input(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 0


def unknown_type(model: ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def undefined_type(model: ModelProto) -> None:
    model.graph.initializer[0].data_type = 0


def unknown_input_type(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 98


def wrong_size(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 65


def negative_dim(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -64


def too_few_values(model: ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("v", TensorProto.FLOAT, [3], [1, 2, 3]))
    del model.graph.initializer[1].float_data[1:]


def too_few_strings(model: ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="v", data_type=TensorProto.STRING, dims=[3], string_data=[b"a"]))


def raw_strings(model: ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="v", data_type=TensorProto.STRING, dims=[1], raw_data=b"a"))
    model.graph.initializer[1].data_location = TensorProto.EXTERNAL
    model.graph.initializer[1].external_data.add(key="location", value="m.onnx")


def twice_initialized(model: ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def twice_in(model: ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


def newer_ir(model: ModelProto) -> None:
    model.ir_version = 1000


def constant_of_no_type(model: ModelProto) -> None:
    model.graph.node.add(op_type="Constant", name="const", output=["c"])
    model.graph.node[2].attribute.append(helper.make_attribute("value", TensorProto(data_type=77)))


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (cycle, ["cyclic", "'mul'", "'neg'"]),
        (inner_cycle, ["cyclic", "'one'", "'two'"]),
        (twice_out, ["output 'y'", "declared twice"]),
        (set_opset(6), ["opset 6", "oldest", "7"]),
        (set_opset(999), ["opset 999", "newer onnx"]),
        (newer_ir, ["IR version 1000", "newer onnx"]),
        (no_opset, ["none at all"]),
        (two_writers, ["tensor 't'", "'neg'", "'mul'"]),
        (writes_weight, ["tensor 'w'", "'neg'", "an initializer"]),
        (nothing_writes, ["node 'out' (Relu)", "tensor 'ghost'"]),
        (inner_nothing, ["node 'inside' (Neg)", "tensor 'ghost'"]),
        (output_from_nowhere, ["output 'ghost'", "no node"]),
        (no_outputs, ["no graph with outputs"]),
        (untyped_input, ["input 'x'", "no element type"]),
        (unknown_type, ["initializer 'w'", "element type 99"]),
        (undefined_type, ["initializer 'w'", "element type 0"]),
        (unknown_input_type, ["tensor 'x'", "element type 98"]),
        (constant_of_no_type, ["attribute 'value' of node 'const'", "element type 77"]),
        (wrong_size, ["initializer 'w'", "8192 bytes", "need 8320"]),
        (negative_dim, ["initializer 'w'", "[-64, 32]"]),
        (too_few_values, ["initializer 'v'", "[3]"]),
        (too_few_strings, ["initializer 'v'", "1 strings"]),
        (raw_strings, ["initializer 'v'", "strings as raw bytes"]),
        (twice_initialized, ["initializer 'w'", "twice"]),
        (twice_in, ["input 'x'", "declared twice"]),
    ],
    ids=lambda value: getattr(value, "__name__", "") if callable(value) else "",
)
def test_a_malformed_graph_is_refused_by_name(edit: Edit, names: list[str], tmp_path: Path) -> None:
    message = refused(write(tmp_path / "m.onnx", edit))
    for name in (*names, "m.onnx"):
        assert name in message


def external(folder: Path, **entries: str) -> Path:
    """A model whose weight is external with these entries, and 8192 bytes in `w.bin` beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    model = linear()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.parametrize("entries", [{}, {"offset": "0"}, {"length": "8192"}, {"offset": "0", "length": "8192"}])
def test_external_data_is_read_with_whatever_entries_are_given(entries: dict[str, str], tmp_path: Path) -> None:
    model = models.load(external(tmp_path, location="w.bin", **entries))
    np.testing.assert_array_equal(model.graph.nodes[0].inputs[1].values, WEIGHT)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"location": "none.bin"}, "'none.bin', which cannot be read"),
        ({"location": "../out.bin"}, "'../out.bin', which lies outside"),
        ({"location": "sub/../../out.bin"}, "lies outside"),
        ({"location": "/etc/hostname"}, "'/etc/hostname', which lies outside"),
        ({"location": "C:\\w.bin"}, "lies outside"),
        ({"location": "link.bin"}, "'link.bin', which lies outside"),
        ({"location": "linked/out.bin"}, "lies outside"),
        ({"location": "pipe"}, "not a regular file"),
        ({"location": "."}, "not a regular file"),
        ({"location": ""}, "names no file"),
        ({}, "names no file"),
        ({"location": "w.bin", "offset": "4"}, "has 8188 bytes"),
        ({"location": "w.bin", "offset": "8000", "length": "8192"}, "which has only 8192"),
        ({"location": "w.bin", "offset": "99999", "length": "8192"}, "which has only 8192"),
        ({"location": "w.bin", "length": "8000"}, "has 8000 bytes"),
        ({"location": "w.bin", "offset": "-4"}, "'-4' as the offset"),
        ({"location": "w.bin", "offset": "0x10"}, "'0x10' as the offset"),
        ({"location": "w.bin", "length": "lots"}, "'lots' as the length"),
        ({"location": "empty.bin", "length": "8192"}, "which has only 0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_external_data_that_cannot_be_used_names_initializer_and_file(
    entries: dict[str, str], why: str, tmp_path: Path
) -> None:
    (tmp_path / "out.bin").write_bytes(WEIGHT.tobytes())
    path = external(tmp_path / "inner", **entries)
    (path.parent / "link.bin").symlink_to(tmp_path / "out.bin")
    (path.parent / "linked").symlink_to(tmp_path)
    (path.parent / "empty.bin").write_bytes(b"")
    os.mkfifo(path.parent / "pipe")
    message = refused(path)
    assert "initializer 'w'" in message
    assert "m.onnx" in message
    assert why in message


def test_a_blob_of_another_cached_model_is_outside(tmp_path: Path) -> None:
    snapshot, blobs, other = (tmp_path / name for name in ("models--a/snapshots/1", "models--a/blobs", "models--b"))
    for folder in (snapshot, blobs, other):
        folder.mkdir(parents=True)
    path = external(tmp_path / "made", location="w.bin")
    path.rename(blobs / "model")
    (path.parent / "w.bin").rename(other / "weights")
    (snapshot / "m.onnx").symlink_to(blobs / "model")
    (snapshot / "w.bin").symlink_to(other / "weights")
    assert "lies outside" in refused(snapshot / "m.onnx")


def finite(tmp_path: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]], graph: str) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {graph}')
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    onnx.save(model, tmp_path / "m.onnx")
    models.check_finite(models.load(tmp_path / "m.onnx"))


MATMUL = "g (float[1, 64] x) => (float[1, 32] y) { [mul] y = MatMul(x, w) }"
BEHIND = "g (float[1, 64] x) => (float[1, 32] y) { [turn] t = Transpose(w) u = Cast<to = 1>(t) y = MatMul(x, u) }"
MASK = "g (float[64, 32] x) => (float[64, 32] y) { [mask] y = Add(x, w) }"
INSIDE = """g (bool c, float[1, 64] x) => (float[1, 32] y) {
    y = If (c) < then_branch = a () => (float[1, 32] p) { [mul] p = MatMul(x, w) },
                 else_branch = b () => (float[1, 32] q) { q = MatMul(x, w) } > }"""


@pytest.mark.parametrize(
    ("graph", "value", "node"),
    [
        (MATMUL, np.nan, "mul"),
        (MATMUL, np.inf, "mul"),
        (BEHIND, -np.inf, "turn"),
        (MASK, np.nan, "mask"),
        (INSIDE, np.inf, "mul"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_weight_that_is_not_finite_is_named(
    graph: str, value: float, node: str, dtype: type[np.generic], tmp_path: Path
) -> None:
    values = WEIGHT.astype(dtype)
    values[63, 31] = value
    with pytest.raises(ModelError, match=f"weight 'w' of node '{node}'.* has 1 of 2048 values"):
        finite(tmp_path, values, graph)


def test_the_last_chunk_of_a_large_weight_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "PIECE", 1000)
    values = WEIGHT.copy()
    values[0, 0] = values[63, 31] = np.nan
    with pytest.raises(ModelError, match="has 2 of 2048 values"):
        finite(tmp_path, values, MATMUL)


def test_masks_of_minus_infinity_and_whole_numbers_pass(tmp_path: Path) -> None:
    finite(tmp_path, np.full((64, 32), -np.inf, np.float32), MASK)
    finite(tmp_path, WEIGHT, MATMUL)
    finite(tmp_path, WEIGHT.astype(np.int64), "g (int64[64, 32] x) => (int64[64, 32] y) { y = Add(x, w) }")
    finite(tmp_path, np.array(np.nan, np.float32), "g (float[2] x) => (float[2] y) { y = Add(x, w) }")
