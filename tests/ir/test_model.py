"""A model keeps its meaning, its bytes and its file through load, copy and save."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcompiler.errors import UsageError
from qcompiler.ir import model as models
from qcompiler.ir.weights import Array as Weight
from tests.kit.onnx_files import WEIGHT, Array, linear, session
from tests.kit.rewrite import model as proto_of

RNG = np.random.default_rng(7)


def test_loading_and_saving_leave_the_input_alone(stored: Callable[[ModelProto], Path]) -> None:
    path = stored(linear())
    before = (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest(), sorted(os.listdir(path.parent)))
    models.to_proto(models.load(path).graph)
    after = (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest(), sorted(os.listdir(path.parent)))
    assert after == before


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


SIZES = {"a": 64, "b": 8, "c": 8, "d": 32}  # columns of weights of 64 rows in float32: 16 kB, 2 kB, 2 kB, 8 kB


@pytest.fixture
def loaded(tmp_path: Path) -> models.Model:
    rng, nodes = np.random.default_rng(0), []
    weights: dict[str, Weight] = {}
    for name, columns in SIZES.items():
        weights[name] = rng.standard_normal((64, columns)).astype(np.float32)
        nodes.append(("MatMul", f"x {name}", f"y{name}"))
    proto = proto_of(*nodes, inputs={"x": (2, 64)}, outputs=[f"y{name}" for name in SIZES], weights=weights)
    onnx.save(proto, tmp_path / "m.onnx")
    return models.load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("shard", "files"),
    [
        (None, []),
        (1 << 20, []),
        (20_000, ["out-00001-of-00002.data", "out-00002-of-00002.data"]),
        (9_000, ["out-00001-of-00003.data", "out-00002-of-00003.data", "out-00003-of-00003.data"]),
        (1, [f"out-{at:05}-of-00004.data" for at in range(1, 5)]),
    ],
)
def test_files_are_no_larger_than_asked_but_for_single_weights(
    loaded: models.Model, tmp_path: Path, shard: int | None, files: list[str]
) -> None:
    (tmp_path / "out").mkdir()
    written = models.save(loaded, tmp_path / "out" / "out.onnx", shard=shard)
    assert [path.name for path in written] == ["out.onnx", *files]
    largest = max(4 * 64 * columns for columns in SIZES.values())
    assert all(path.stat().st_size <= max(shard or 0, largest) for path in written[1:])
    again = models.load(tmp_path / "out" / "out.onnx")
    before, after = (models.to_proto(one.graph)[1] for one in (loaded, again))
    assert {name: array.tobytes() for name, array in after.items()} == {
        name: array.tobytes() for name, array in before.items()
    }
    assert {path.name for path in again.files} == {path.name for path in written}
    onnx.checker.check_model(str(tmp_path / "out" / "out.onnx"))


@pytest.mark.parametrize("external_above", [0, 1 << 30])
def test_large_weights_of_four_bits_lie_packed_in_the_file(tmp_path: Path, external_above: int) -> None:
    values = np.random.default_rng(4).integers(-8, 8, (1025, 1025)).astype(ml_dtypes.int4)
    scale = np.ones((), np.float32)
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1025, 1025])],
        [numpy_helper.from_array(values, "w"), numpy_helper.from_array(scale, "s")],
    )
    source = tmp_path / "source.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), source)
    proto, weights = models.to_proto(models.load(source).graph)
    assert list(weights) == ["w"]
    assert proto.ByteSize() < 1000
    written = models.save(models.load(source), tmp_path / "m.onnx", external_above=external_above)
    assert sum(one.stat().st_size for one in written) < 600_000
    np.testing.assert_array_equal(models.load(tmp_path / "m.onnx").graph.nodes[0].inputs[0].values, values)
    known = onnx.load(tmp_path / "m.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(next(one for one in known if one.name == "w")), values)
