"""The runner of plans on a machine without a GPU: library and device memory are stood in for by ONNX Runtime and numpy.

What is tested is the order of calls that a real library insists on: a profile that takes the shapes is chosen first,
every tensor has an address, also an empty cache, and outputs are read when their shapes are known.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from polygraphy import cuda

from qcompiler.engines import gpu
from qcompiler.errors import DataError
from qcompiler.ir import decoder_io
from qcompiler.ir import model as models
from qcompiler.runtime.session import Session
from qcompiler.tools.bench.loaded import load
from tests.kit import decoder

TYPES = {np.dtype(np.int64): "INT64", np.dtype(np.float32): "FLOAT"}


class Memory:
    """A buffer of bytes with an address."""

    held: dict[int, Memory] = {}  # noqa: RUF012

    def __init__(self, size: int) -> None:
        self.bytes, self.room = bytearray(size), size
        self.ptr = 1000 + len(Memory.held)
        assert size > 0, "device memory of no size has no address"
        Memory.held[self.ptr] = self

    @staticmethod
    def raw(shape: tuple[int, ...]) -> Memory:
        return Memory(shape[0])

    def resize(self, shape: tuple[int, ...]) -> None:
        self.bytes = bytearray(shape[0])

    def copy_from(self, array: np.ndarray, stream: Any) -> None:
        assert array.nbytes == len(self.bytes)
        self.bytes[:] = array.tobytes()

    def copy_to(self, array: np.ndarray, stream: Any) -> None:
        array.reshape(-1).view(np.uint8)[:] = np.frombuffer(bytes(self.bytes), np.uint8)

    def free(self) -> None:
        Memory.held.pop(self.ptr)


class Plan:
    """Engine and execution context of the tiny decoder."""

    def __init__(self, path: Path, profiles: list[dict[str, Any]]) -> None:
        self.session = Session(path)
        self.decoder = decoder_io.of_model(models.load(path))
        self.profiles, self.active, self.used = profiles, 0, [0]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.names = [*self.session.inputs, *self.session.outputs]
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), len(profiles)

    def create_execution_context(self) -> Plan:
        return self

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self.session.inputs else "out"

    def get_tensor_location(self, name: str) -> str:
        return "device"

    def get_tensor_dtype(self, name: str) -> Any:
        declared = self.session.inputs.get(name, (np.dtype(np.float32), ()))[0]
        assert declared is not None
        return SimpleNamespace(name=TYPES[declared], numpy=declared)

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.profiles[index][name]

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.active = index
        self.used.append(index)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.profiles[self.active][name]
        self.shapes[name] = shape
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.session.inputs:
            return tuple(size if isinstance(size, int) else -1 for size in self.session.inputs[name][1])
        if not self.shapes:
            return (-1, -1, 128) if name == "logits" else (-1, 2, -1, 16)
        batch, new = self.shapes["input_ids"]
        return (batch, new, 128) if name == "logits" else (batch, 2, self.shapes["attention_mask"][1], 16)

    def execute_async_v3(self, stream: int) -> bool:
        feeds = {}
        for name, (dtype, _) in self.session.inputs.items():
            content = bytes(Memory.held[self.addresses[name]].bytes)
            feeds[name] = np.frombuffer(content, dtype).reshape(self.shapes[name])
        for name, array in self.session.run(feeds).items():
            Memory.held[self.addresses[name]].bytes[:] = array.tobytes()
        return True


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The decoder's plan with both phases, for up to two texts of 24 tokens, and a library that runs it."""
    path = tmp_path / "decoder.onnx"
    onnx.save(decoder.decoder(), path)
    (tmp_path / "decoder.engine").write_bytes(b"plan")
    known = decoder_io.of_model(models.load(path))
    assert known is not None
    made = Plan(path, known.profiles((1, 1, 2), 8, 24))
    logger: Any = lambda severity: None  # noqa: E731
    logger.ERROR = 0
    library = SimpleNamespace(
        __version__="0",
        Logger=logger,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda content: made),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        TensorLocation=SimpleNamespace(HOST="host"),
        nptype=lambda kind: kind.numpy,
    )
    stream = SimpleNamespace(ptr=1, synchronize=lambda: None, free=lambda: None)
    monkeypatch.setattr(gpu, "require_gpu", lambda what: "sm89")
    monkeypatch.setattr("qcompiler.engines.gpu.importlib.import_module", lambda name: library)
    monkeypatch.setattr(cuda, "DeviceArray", Memory)
    monkeypatch.setattr(cuda, "Stream", lambda: stream)
    return made


def test_a_text_is_written_on_an_engine_with_the_profile_of_each_phase(plan: Plan, tmp_path: Path) -> None:
    tokens = decoder.tokens(2, 12)
    whole = Session((decoder.decoder(cache=False), {})).run({"input_ids": tokens})["logits"]
    text = load(tmp_path / "decoder.engine", "tensorrt-rtx").begin(2)
    np.testing.assert_allclose(text.step(tokens[:, :7]), whole[:, :7], atol=2e-5)
    for position in range(7, 12):
        step = text.step(tokens[:, position : position + 1])
        np.testing.assert_allclose(step[:, 0], whole[:, position], atol=2e-5)
    assert plan.used == [0, 1]  # changed once, for the first token


def test_what_fits_no_profile_is_refused_by_name(plan: Plan, tmp_path: Path) -> None:
    text = load(tmp_path / "decoder.engine", "tensorrt-rtx").begin(3)
    with pytest.raises(DataError, match="outside of the optimization profile"):
        text.step(decoder.tokens(3, 4))


def test_an_engine_says_what_it_takes_and_frees_what_it_held(plan: Plan, tmp_path: Path) -> None:
    Memory.held.clear()
    with gpu.PlanRunner("tensorrt_rtx", tmp_path / "decoder.engine", "") as runner:
        assert runner.inputs["past_key_values.0.key"] == (np.dtype(np.float32), (None, 2, None, 16))
        assert runner.outputs["logits"] == (np.dtype(np.float32), (None, None, 128))
        assert len(runner.infer(decoder.feeds(decoder.tokens(1, 3)))["logits"]) == 1
        assert Memory.held
    assert not Memory.held
