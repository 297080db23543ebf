"""Weights: views of the mapped file, of every element type, also where a cache keeps files as links."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcompiler.errors import ModelError
from qcompiler.ir import model as models
from qcompiler.ir import weights
from qcompiler.support.memory import PIECE, release
from tests.kit.onnx_files import WEIGHT, linear, normal, proto, round_trip

RNG = np.random.default_rng(7)


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
    release(values[10:2000])
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


def test_an_empty_file_is_an_empty_array_and_a_map_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert weights.map_file(tmp_path / "empty").shape == (0,)
    (tmp_path / "some").write_bytes(b"\x01\x02")
    mapped = weights.map_file(tmp_path / "some")
    assert mapped.tolist() == [1, 2]
    assert not mapped.flags.writeable


@pytest.mark.parametrize("values", [np.zeros((0, 3), np.float32), np.array(2.5), np.array(["ü", ""], object)], ids=str)
def test_an_array_becomes_a_tensor_that_reads_back_equal(values: Any) -> None:
    back = weights.Weights(Path("m"), np.empty(0, np.uint8)).read(weights.to_tensor("w", values), "w")
    np.testing.assert_array_equal(back, values, strict=True)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (TensorProto(dims=[2], data_type=1, raw_data=bytes(7)), "has 7 bytes where its shape .* need 8"),
        (TensorProto(dims=[-1], data_type=1), "has the impossible shape"),
        (TensorProto(dims=[1], data_type=99), "has element type 99, which ONNX .* does not define"),
        (TensorProto(dims=[1], data_type=TensorProto.STRING, raw_data=b"a"), "strings"),
        (TensorProto(dims=[3], data_type=1, float_data=[1]), "does not have as many values"),
        (weights.to_external_tensor("w", np.ones(2), "../w"), "lies outside the folder of the model"),
        (weights.to_external_tensor("w", np.ones(2), "/etc/hostname"), "lies outside the folder of the model"),
        (weights.to_external_tensor("w", np.ones(2), ""), "names no file"),
        (weights.to_external_tensor("w", np.ones(2), "none"), "cannot be read from"),
        (weights.to_external_tensor("w", np.ones(2), "folder"), "is not a regular file"),
        (weights.to_external_tensor("w", np.ones(2), "short"), "which has only 3: the file is cut short"),
        (weights.to_external_tensor("w", np.ones(2), "short", -1), "gives '-1' as the offset"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tensor_that_cannot_be_read_is_named(tensor: TensorProto, says: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "short").write_bytes(b"abc")
    reader = weights.Weights(tmp_path / "m.onnx", np.empty(0, np.uint8))
    with pytest.raises(ModelError, match=f"^initializer 'w' .*{says}"):
        reader.read(tensor, "initializer 'w'")


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "float4_e2m1fn", "int8", "float32", "bool", "object"])
def test_small_types_share_bytes(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    assert weights.is_packed(dtype) is (name in ("int4", "uint4", "int2", "float4_e2m1fn"))


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1])
def test_pieces_are_the_bytes_in_their_order(size: int) -> None:
    values = np.arange(size, dtype=np.uint8)
    found = list(weights.pieces(values))
    assert b"".join(found) == values.tobytes()
    assert all(len(piece) <= PIECE for piece in found)
