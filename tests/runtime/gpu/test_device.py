"""Outputs that stay where they were computed. Without a GPU here, the host's memory is bound in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from qcompiler.errors import DataError, ModelError, UsageError
from qcompiler.ir import model as models
from qcompiler.recipe.recipe import DEVICES
from qcompiler.runtime import chain
from qcompiler.runtime.gpu import device as devices
from qcompiler.runtime.gpu.device import Device, OnDevice, found
from qcompiler.runtime.session import Session
from qcompiler.runtime.stream import Stream
from tests.kit.rewrite import model as made
from tests.kit.rewrite import to_graph

HOST = Device("cpu")
RNG = np.random.default_rng(3)
X = RNG.standard_normal((2, 3, 8)).astype(np.float32)


@pytest.fixture
def loaded() -> models.Model:
    proto = made(
        ("MatMul", "x w", "a"),
        ("Relu", "a", "b"),
        ("ReduceMax", "b", "most", {"keepdims": 0}),
        ("Greater", "a b", "more"),
        ("Neg", "b", "y"),
        inputs={"x": ("n", 3, 8)},
        outputs=("y",),
        weights={"w": RNG.standard_normal((8, 4)).astype(np.float32)},
    )
    return models.Model(to_graph(proto), {}, None, 8)


def test_large_floats_stay_and_everything_else_comes_back(loaded: models.Model) -> None:
    names = ["a", "b", "most", "more", "y"]
    plain = Session(loaded, outputs=names).run({"x": X})
    bound = Session(loaded, outputs=names, device=HOST).run({"x": X})
    assert {name: isinstance(one, OnDevice) for name, one in bound.items()} == {
        "a": True, "b": True, "most": False, "more": False, "y": True
    }  # fmt: skip
    for name, one in plain.items():
        assert np.array_equal(np.asarray(bound[name]), one)
    held: Any = bound["a"]
    assert (held.shape, held.ndim, held.dtype, held.nbytes, len(held)) == ((2, 3, 4), 3, np.float32, 96, 2)
    assert np.asarray(held, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        np.asarray(held, copy=False)


def test_what_was_left_on_the_device_is_fed_from_there(loaded: models.Model) -> None:
    first = Session(loaded, outputs=["a"], device=HOST).run({"x": X})["a"]
    behind = made(("Relu", "a", "y"), inputs={"a": ("n", 3, 4)}, outputs=("y",))
    second = Session(models.Model(to_graph(behind), {}, None, 8), device=HOST)
    assert np.array_equal(np.asarray(second.run({"a": first})["y"]), np.maximum(np.asarray(first), 0))


def test_a_large_model_hands_on_what_lies_there(loaded: models.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "is_large", lambda _: True)
    feeds = [(0, {"x": X}), (1, {"x": 2 * X})]
    streams = [Stream(loaded, ["x", "a", "y"], budget=1, device=one) for one in (None, HOST)]
    plain, bound = ([(part.index, dict(part.values)) for part in one.over(feeds)] for one in streams)
    assert [index for index, _ in plain] == [index for index, _ in bound]
    for (_, one), (_, other) in zip(plain, bound, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(np.asarray(other[name]), value) for name, value in one.items())


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_segments_hand_on_what_lies_there(loaded: models.Model, budget: int) -> None:
    names = ["x", "a", "b", "y"]
    streams = [Stream(loaded, names, budget=budget, device=one) for one in (None, HOST)]
    plain, bound = ([dict(part.values) for part in one.parts(0, {"x": X})] for one in streams)
    assert len(plain) == len(bound) == (3 if budget == 1 else 1)
    for one, other in zip(plain, bound, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(np.asarray(other[name]), value) for name, value in one.items())


def test_a_feed_that_does_not_fit_is_told_as_on_the_cpu(loaded: models.Model) -> None:
    said = []
    for device in (None, HOST):
        with pytest.raises(DataError, match=r"\(x float32\[2, 3, 5\]\)") as caught:
            Session(loaded, device=device).run({"x": X[:, :, :5]})
        said.append(caught.value.fed)
    assert said[0] is not None
    assert said[1] is not None
    assert said[0].keys() == said[1].keys()


def test_a_gpu_is_asked_for_without_tf32_and_in_a_fixed_order() -> None:
    asked, fallback = Device(index=1).providers
    assert fallback == "CPUExecutionProvider"
    assert isinstance(asked, tuple)
    provider, options = asked
    assert provider == "CUDAExecutionProvider"
    assert (options["device_id"], options["use_tf32"]) == ("1", "0")
    assert options["cudnn_conv_algo_search"] != "EXHAUSTIVE"  # by a clock


def test_the_cpu_is_no_device() -> None:
    assert found("cpu") is None
    assert set(DEVICES) == {devices.CPU, devices.CUDA, devices.AUTO}


def test_an_onnx_runtime_without_cuda_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match="no CUDAExecutionProvider.*onnxruntime-gpu.*leave --device out"):
        found("cuda")
    assert found("auto") is None


class Opened:
    """A session as ONNX Runtime gives it: with what was asked for, or with the CPU alone and no word."""

    def __init__(self, providers: list[str]) -> None:
        self._providers = providers

    def get_providers(self) -> list[str]:
        return self._providers


@pytest.mark.parametrize("starts", [True, False])
def test_a_provider_that_is_there_may_still_not_start(monkeypatch: pytest.MonkeyPatch, starts: bool) -> None:
    has = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: has)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Opened(has if starts else has[1:]))
    if starts:
        device = found("auto")
        assert device is not None
        assert (device.kind, device.provider) == ("cuda", "CUDAExecutionProvider")
    else:
        assert found("auto") is None
        with pytest.raises(UsageError, match="cannot start.*no NVIDIA GPU"):
            found("cuda")


def test_a_session_that_fell_back_to_the_cpu_is_refused(loaded: models.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Opened(["CPUExecutionProvider"]))
    with pytest.raises(ModelError, match="without a word"):
        Session(loaded, device=Device())


def test_the_driver_says_what_the_gpu_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_GPUS", tmp_path)
    assert Device(gpu=devices._gpu(0)).gpu == ""
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t NVIDIA H200\nIRQ: 1\n")
    assert devices._gpu(0) == "NVIDIA H200"


def test_a_gpu_gives_the_numbers_of_the_cpu_within_1e_6(loaded: models.Model) -> None:
    gpu = found("auto")
    if gpu is None:
        pytest.skip("ONNX Runtime finds no GPU here: the tests above bind the host's memory in its place")
    plain, bound = (Session(loaded, outputs=["a", "y"], device=one).run({"x": X}) for one in (None, gpu))
    for name, one in plain.items():
        np.testing.assert_allclose(np.asarray(bound[name]), one, rtol=1e-6, atol=1e-6 * float(np.abs(one).max()))
