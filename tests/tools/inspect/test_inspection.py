"""`inspect`: what is said of a model without data, what data adds, and that awkward models do not stop it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from qcompiler.cli.main import main
from qcompiler.errors import DataError, ModelError
from qcompiler.recipe.recipe import Recipe
from qcompiler.statistics.histogram import Histogram
from qcompiler.tools.inspect.inspection import inspect
from qcompiler.tools.inspect.layers import InspectedLayer
from tests.kit.rewrite import graph_proto, model

RNG = np.random.default_rng(3)


def weights(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    onnx.save(proto, path)
    return path


def convnet(dims: tuple[Any, ...] = (1, 3, 16, 16)) -> onnx.ModelProto:
    """Conv, Relu, Conv, mean over pixels, Gemm: one of everything that is common."""
    return model(
        ("Conv", "x w1", "c1", {"pads": [1, 1, 1, 1]}),
        ("Relu", "c1", "r1"),
        ("Conv", "r1 w2", "c2", {"pads": [1, 1, 1, 1]}),
        ("GlobalAveragePool", "c2", "p"),
        ("Flatten", "p", "f"),
        ("Gemm", "f w3", "y"),
        inputs={"x": dims},
        weights=weights(w1=(16, 3, 3, 3), w2=(32, 16, 3, 3), w3=(32, 20)),
    )


def layers(found: Any) -> dict[str, InspectedLayer]:
    return {one.node: one for one in found.layers}


def test_without_data_it_says_what_is_in_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, convnet())
    before = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
    found = inspect(path)
    assert (found.file, found.opset, found.ir_version) == ("m.onnx", 17, 8)
    assert found.inputs == {"x": ("float32", (1, 3, 16, 16))}
    assert found.outputs == {"y": ("float32", (1, 20))}
    assert found.parameters == 16 * 27 + 32 * 144 + 640
    assert found.weights == {"float32": 4 * found.parameters}
    assert found.operators["Conv"] == 2
    assert next(iter(found.operators)) == "Conv"
    assert (found.data, found.spikes, found.problems, found.custom, found.control_flow) == ("", (), (), {}, ())
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) == before


def test_multiply_accumulates_are_those_of_the_shapes(tmp_path: Path) -> None:
    found = inspect(saved(tmp_path, convnet()))
    first, second, last = found.layers
    assert (first.macs, second.macs, last.macs) == (256 * 16 * 27, 256 * 32 * 144, 640)
    assert found.macs == sum(one.macs or 0 for one in found.layers)
    assert sum(one.share or 0 for one in found.layers) == pytest.approx(1)
    assert (last.quantizable, last.rule) == (False, "gemv")
    assert found.quantizable == pytest.approx(1 - 640 / found.macs)


def test_an_open_batch_counts_as_one_sample(tmp_path: Path) -> None:
    assert inspect(saved(tmp_path, convnet(("n", 3, 16, 16)))).macs == 256 * (16 * 27 + 32 * 144) + 640


def test_open_pixels_leave_multiply_accumulates_unknown_until_data_or_shapes_tell(tmp_path: Path) -> None:
    path = saved(tmp_path, convnet(("n", 3, "h", "w")))
    found = inspect(path)
    assert (found.macs, found.quantizable) == (None, None)
    assert all(one.share is None for one in found.layers)
    assert "give --data" in found.problems[0]
    shapes = {"x": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}
    assert inspect(path, recipe=Recipe(shapes=shapes)).macs == 2 * (64 * (16 * 27 + 32 * 144) + 640)
    # A batch of samples is looked at one by one
    assert inspect(path, data=[{"x": np.ones((3, 3, 8, 8), np.float32)}]).macs == 64 * (16 * 27 + 32 * 144) + 640


def test_what_stays_float_has_rule_and_reason(tmp_path: Path) -> None:
    proto = model(
        ("MatMul", "x w1", "a"),
        ("MatMul", "a b", "c"),
        ("MatMul", "c w2", "y"),
        inputs={"x": (2, 8, 32), "b": (2, 32, 32)},
        weights=weights(w1=(32, 32), w2=(32, 8)),
    )
    found = inspect(saved(tmp_path, proto), recipe=Recipe(keep=("^A$",)))
    assert {name: one.rule for name, one in layers(found).items()} == {"A": "kept", "C": "attention", "Y": "tiny"}
    assert all(one.why for one in found.layers)
    rows = found.to_json()["stays_float"]
    assert [row["rule"] for row in rows] == ["kept", "attention", "tiny"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_the_target_decides_what_can_be_quantized(tmp_path: Path) -> None:
    proto = model(("ConvTranspose", "x w", "y"), inputs={"x": (1, 16, 8, 8)}, weights=weights(w=(16, 32, 2, 2)))
    path = saved(tmp_path, proto)
    assert layers(inspect(path))["Y"].rule == "no-kernel"
    assert layers(inspect(path, recipe=Recipe(target="tensorrt")))["Y"].quantizable


def spiking(channel: int | None = None, token: int | None = None) -> list[dict[str, Any]]:
    """Four feeds [1, 24, 32] of bell curves; one channel or one token is 50 times as large."""
    rng = np.random.default_rng(0)
    feeds = []
    for _ in range(4):
        x = rng.standard_normal((1, 24, 32)).astype(np.float32)
        if channel is not None:
            x[:, :, channel] *= 50
        if token is not None:
            x[:, token] *= 50
        feeds.append({"x": x})
    return feeds


def mlp() -> onnx.ModelProto:
    nodes = [("MatMul", "x w1", "a"), ("Relu", "a", "b"), ("MatMul", "b w2", "y")]
    return model(*nodes, inputs={"x": ("n", 24, 32)}, weights=weights(w1=(32, 64), w2=(64, 32)))


def test_data_shows_how_well_int8_holds_each_activation(tmp_path: Path) -> None:
    feeds = spiking()
    found = inspect(saved(tmp_path, mlp()), data=feeds)
    assert "4 feeds" in found.data
    spikes = {one.tensor: one for one in found.spikes}
    assert {name: one.readers for name, one in spikes.items()} == {"x": ("A",), "b": ("Y",)}
    values = np.stack([feed["x"] for feed in feeds]).astype(np.float64)
    x = spikes["x"]
    assert x.amax == np.abs(values).max()
    assert x.p99_99 == pytest.approx(np.percentile(np.abs(values), 99.99), rel=0.05)
    assert x.crest == pytest.approx(np.abs(values).max() / np.sqrt((values**2).mean()), rel=1e-2)
    errors = []
    for amax in np.abs(values).max() * np.linspace(0.3, 1, 71):
        grid = np.clip(np.round(values / amax * 127), -128, 127) * amax / 127
        errors.append(((values - grid) ** 2).mean())
    assert x.int8_db == pytest.approx(10 * np.log10((values**2).mean() / min(errors)), abs=0.3)
    assert x.kurtosis == pytest.approx((values**4).mean() / (values**2).mean() ** 2, rel=0.01)
    tokens = np.abs(values).max(axis=3)[:, 0]
    assert x.ratio == pytest.approx((tokens.max(axis=1) / np.median(tokens, axis=1)).mean())
    assert x.over_channels is not None
    assert max(x.ratio, x.over_channels) < 3
    assert {name: one.depth for name, one in spikes.items()} == {"x": 0, "b": 1}


def test_spikes_of_a_channel_and_of_a_token_are_told_apart(tmp_path: Path) -> None:
    path = saved(tmp_path, mlp())
    channel = next(one for one in inspect(path, data=spiking(channel=5)).spikes if one.tensor == "x")
    token = next(one for one in inspect(path, data=spiking(token=7)).spikes if one.tensor == "x")
    assert channel.over_channels is not None
    assert channel.over_channels > 30
    assert channel.ratio < 5
    assert (channel.top_channels[0]["channel"], channel.top_channels[0]["over_median"]) == (5, channel.over_channels)
    assert token.ratio > 30
    assert token.top_tokens[0]["position"] == 7
    assert token.top_tokens[0]["value"] == token.amax
    plain = next(one for one in inspect(path, data=spiking()).spikes if one.tensor == "x")
    assert channel.int8_db < plain.int8_db - 8
    assert token.int8_db < plain.int8_db - 8


def test_the_worst_activation_comes_first(tmp_path: Path) -> None:
    found = inspect(saved(tmp_path, mlp()), data=spiking(channel=5))
    assert [one.int8_db for one in found.spikes] == sorted(one.int8_db for one in found.spikes)


def test_ranges_at_residual_adds_are_those_of_the_tensors(tmp_path: Path) -> None:
    nodes = [("MatMul", "x w1", "a"), ("Relu", "a", "b"), ("MatMul", "b w2", "c"), ("Add", "c x", "y")]
    path = saved(tmp_path, model(*nodes, inputs={"x": ("n", 24, 32)}, weights=(w := weights(w1=(32, 64), w2=(64, 32)))))
    feeds = spiking()
    (one,) = inspect(path, data=feeds).residuals
    x = np.concatenate([feed["x"] for feed in feeds])
    branch = np.maximum(x @ w["w1"], 0) @ w["w2"]
    assert (one.add, one.kind) == ("Y", "feed-forward")
    assert one.stream_amax == np.abs(x).max()
    assert one.branch_amax == pytest.approx(np.abs(branch).max(), rel=1e-5)
    assert one.sum_amax == pytest.approx(np.abs(branch + x).max(), rel=1e-5)
    assert one.ratio == pytest.approx(one.branch_amax / one.stream_amax)
    assert one.branch_p99_99 == pytest.approx(Histogram.of(branch).quantile(99.99), rel=1e-3)


def test_a_batch_is_measured_as_its_samples_are(tmp_path: Path) -> None:
    path, feeds = saved(tmp_path, mlp()), spiking(token=3)
    one, other = (inspect(path, data=feeds, recipe=Recipe(batch=batch)).spikes for batch in (None, 4))
    assert [(row.tensor, row.top_tokens[0]["sample"]) for row in one] == [
        (row.tensor, row.top_tokens[0]["sample"]) for row in other
    ]
    x, y = (next(row for row in rows if row.tensor == "x") for rows in (one, other))
    assert (x.ratio, x.top_channels, x.top_tokens) == (y.ratio, y.top_channels, y.top_tokens)


def test_a_model_that_overflows_is_reported_with_the_node(tmp_path: Path) -> None:
    proto = model(
        ("MatMul", "x w1", "a"),
        ("Mul", "a a", "e"),
        ("Sub", "e e", "d"),
        ("MatMul", "d w2", "y"),
        inputs={"x": ("n", 16, 32)},
        weights=weights(w1=(32, 32), w2=(32, 32)),
    )
    good, bad = (np.full((1, 16, 32), value, np.float32) for value in (0.0, 1e25))
    found = inspect(saved(tmp_path, proto), data=[{"x": good}, {"x": bad}])
    assert "NaN or infinite values on feed 1" in found.overflow
    assert "'E' (Mul)" in found.overflow  # Sub makes NaN of infinities that Mul made of numbers
    assert "1 feed" in found.data


def test_control_flow_and_its_layers_are_listed(tmp_path: Path) -> None:
    inner = weights(w=(32, 32))
    then = graph_proto([("MatMul", "x w", "t")], {}, ["t"], inner)
    other = graph_proto([("Identity", "x", "o")], {}, ["o"])
    nodes = [("If", "flag", "m", {"then_branch": then, "else_branch": other}), ("MatMul", "m v", "y")]
    proto = model(*nodes, inputs={"flag": (np.bool_, ()), "x": (4, 32)}, weights=weights(v=(32, 32)))
    path = saved(tmp_path, proto)
    found = inspect(path)
    assert found.control_flow == ("M (If)",)
    assert found.operators["MatMul"] == 2
    assert {one.rule for one in found.layers} == {"linear", "subgraph"}
    assert found.parameters == 2 * 32 * 32
    feeds = [{"flag": np.array(value), "x": np.ones((4, 32), np.float32)} for value in (True, False)]
    assert [one.readers for one in inspect(path, data=feeds).spikes] == [("Y",)]


def test_operators_that_nobody_knows_are_listed_and_data_does_not_stop_it(tmp_path: Path) -> None:
    proto = model(
        ("Strange", "x", "s", {}, "com.acme"),
        ("MatMul", "s w", "y"),
        inputs={"x": (4, 32)},
        weights=weights(w=(32, 32)),
        domains=("com.acme",),
    )
    path = saved(tmp_path, proto)
    found = inspect(path)
    assert found.custom == {"com.acme::Strange": 1}
    assert {one.op: one.quantizable for one in found.layers} == {"Strange": False, "MatMul": True}
    found = inspect(path, data=[{"x": np.ones((4, 32), np.float32)}])
    assert found.spikes == ()
    assert any("Strange of domain 'com.acme'" in one and "not measured" in one for one in found.problems)


def test_strings_and_sequences_are_described(tmp_path: Path) -> None:
    proto = model(
        ("SplitToSequence", "x", "s", {"axis": 0}),
        ("Identity", "t", "u"),
        inputs={"x": (2, 4), "t": (np.str_, ("n",))},
        outputs=("s", "u"),
    )
    found = inspect(saved(tmp_path, proto))
    assert found.inputs["t"] == ("string", ("n",))
    assert found.outputs["s"] == ("sequence", None)
    assert (found.macs, found.problems) == (None, ())


def test_what_came_quantized_is_said(tmp_path: Path) -> None:
    proto = model(
        ("QuantizeLinear", "x s z", "q"),
        ("DequantizeLinear", "q s z", "d"),
        ("DequantizeLinear", "w s z", "v"),
        ("MatMul", "d v", "y"),
        inputs={"x": (4, 32)},
        weights={"s": np.float32(0.1), "z": np.int8(0), "w": RNG.integers(-9, 9, (32, 32)).astype(np.int8)},
    )
    found = inspect(saved(tmp_path, proto))
    assert found.quantized == {"QuantizeLinear": 1, "DequantizeLinear": 2}
    assert [one.rule for one in found.layers] == ["quantized-already"]
    assert found.weights["int8"] == 1025


def test_weights_in_constant_nodes_and_packed_weights_are_counted(tmp_path: Path) -> None:
    constant = onnx.numpy_helper.from_array(RNG.standard_normal((32, 32)).astype(np.float32))
    proto = model(("Constant", "", "w", {"value": constant}), ("MatMul", "x w", "y"), inputs={"x": (4, 32)})
    found = inspect(saved(tmp_path, proto))
    assert (found.parameters, found.weights) == (1024, {"float32": 4096})
    assert [one.quantizable for one in found.layers] == [True]


def test_a_model_without_layers_is_no_problem(tmp_path: Path) -> None:
    found = inspect(saved(tmp_path, model(("Relu", "x", "y"))), data=[{"x": np.ones((2, 4), np.float32)}])
    assert (found.layers, found.macs, found.spikes, found.problems) == ((), None, (), ())
    assert found.to_json()["layers_that_can_be_int8"] == "0 of 0"
    assert not {"spikes", "residuals"} & found.to_json().keys()


def test_data_that_does_not_fit_and_files_that_are_none_are_errors(tmp_path: Path) -> None:
    path = saved(tmp_path, mlp())
    with pytest.raises(DataError, match="'x'"):
        inspect(path, data=[{"x": np.ones((1, 24, 31), np.float32)}])
    with pytest.raises(DataError, match="has no samples"):
        inspect(path, data=[])
    path.write_bytes(b"\x08\x08\xff\xff")
    with pytest.raises(ModelError, match="m.onnx"):
        inspect(path)


def test_the_json_has_only_what_there_is_and_no_infinities(tmp_path: Path) -> None:
    zeros = [{"x": np.zeros((1, 24, 32), np.float32)}]
    for found in (inspect(saved(tmp_path, mlp())), inspect(saved(tmp_path, mlp()), data=zeros)):
        document = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert "custom_operators" not in document
        assert document["macs_that_can_be_int8"] == 1
        assert [row["int8"] for row in document["layers"]] == ["yes", "yes"]


def test_the_command_prints_tables_and_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, convnet())
    np.savez(tmp_path / "d.npz", x=RNG.standard_normal((3, 3, 16, 16)).astype(np.float32))
    assert main(["inspect", str(path), "--data", str(tmp_path / "d.npz")]) == 0
    out = capfd.readouterr().out
    for text in ("Conv 2", "100.0 %", "matrix-vector", "gemv", " dB", "[1, 3, 16, 16]", "3 feeds"):
        assert text in out, text
    assert main(["inspect", str(path), "--json", "--quiet"]) == 0
    assert json.loads(capfd.readouterr().out)["operators"] == {
        "Conv": 2, "Relu": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip


def test_a_truncated_model_is_exit_code_3(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, convnet())
    path.write_bytes(path.read_bytes()[:-200])
    assert main(["inspect", str(path), "--quiet"]) == 3
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_local_functions_are_looked_into(tmp_path: Path) -> None:
    body = helper.make_function(
        "local", "Project", ["a"], ["b"], [helper.make_node("MatMul", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    proto = model(("Project", "x", "y", {}, "local"), inputs={"x": (32, 32)}, domains=("local",))
    proto.functions.append(body)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (32, 32)))
    found = inspect(saved(tmp_path, proto))
    assert [one.rule for one in found.layers] == ["attention"]
