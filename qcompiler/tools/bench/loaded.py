"""Loaded models that are timed: one run of an ordinary model, or a text that a decoder writes token by token.

Keys and values stay where the runtime has put them: what a step gives as `present` is bound as `past` of the next one
without a copy of ours. Of the logits only the last position is looked at, in place.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.engines import for_target
from qcompiler.engines.base import Runner
from qcompiler.engines.onnxruntime import PROVIDERS, OnnxRuntime
from qcompiler.errors import DataError, EngineError, QCompilerError
from qcompiler.ir.decoder_io import LOGITS, Decoder, detect
from qcompiler.ir.signature import Feeds, Inputs
from qcompiler.runtime.session import described, reason
from qcompiler.support.machine import available_processors
from qcompiler.target import parse_target

if TYPE_CHECKING:
    from numpy.typing import NDArray


RERUNS = 4  # steps that are timed of a model without a cache, evenly over the answer: each reads the whole text anew


@dataclass(frozen=True)
class Written:
    """What it took to write a text.

    Attributes:
        prefill_s: seconds until the first token is known, each time the prompt was read.
        decode_s: seconds for each of the following tokens that was timed.
        positions: of the tokens whose successor was asked for: the last of the prompt, then one for each timed step.
        chosen: the most likely successors, [batch, positions].
    """

    prefill_s: tuple[float, ...]
    decode_s: tuple[float, ...]
    positions: tuple[int, ...]
    chosen: NDArray[np.int64]


class GrowingText(ABC):
    """Texts [batch] that grow; whoever steps says with which tokens."""

    @abstractmethod
    def step(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        """Appends tokens [batch, new]; returns the logits [batch, ?, vocabulary], whose last position is the newest.

        The result may be memory of the runtime, and is read-only then.
        """


class LoadedModel(ABC):
    """A model that is ready to run.

    Attributes:
        inputs: dtype and shape by name.
        outputs: likewise.
        where: what it runs on, such as `CPUExecutionProvider`.
        version: of the engine library.
    """

    inputs: Inputs
    outputs: Inputs
    where: str
    version: str

    @property
    def decoder(self) -> Decoder | None:
        """What is known of it as a decoder; None if it is none."""
        return detect(self.inputs, {name: shape for name, (_, shape) in self.outputs.items()})

    @abstractmethod
    def times(self, feeds: Feeds, count: int) -> list[float]:
        """Seconds of each of `count` runs, inputs bound in each; of several, one more is run before and not counted."""

    @abstractmethod
    def begin(self, batch: int) -> GrowingText:
        """New texts, empty."""


def load(path: str | Path, engine: str, provider: str = "cpu", threads: int = 0) -> LoadedModel:
    """Loads a model file for ONNX Runtime, or an engine file for the engine that is named.

    Raises:
        ModelError: there is no such file.
        EngineError: it cannot run here.
    """
    if engine == OnnxRuntime.name:
        return _OnnxRuntime(path, provider, threads or available_processors())
    return _Engine(for_target(parse_target(engine)).open(path), engine)


def write(model: LoadedModel, tokens: NDArray[np.int64], prompt: int, repeat: int = 1) -> Written:
    """Reads the first `prompt` tokens of each row as a whole, then the others one by one, as if it had written them.

    The most likely next token is found in each step, as greedy decoding would, but the text goes on with the given
    one, so that all models do the same work.

    Args:
        model: a decoder.
        tokens: int64 [batch, prompt + answer].
        prompt: how many of them are the prompt, at least 1.
        repeat: how often the prompt is read anew; of several times the first is not counted, because processor and
            memory have been others' until then.

    A model without a cache is timed at `RERUNS` places of the answer only.
    """
    decoder = model.decoder
    assert decoder is not None
    batch, length = tokens.shape
    prefill = []
    for _ in range(repeat + (repeat > 1)):
        text = model.begin(batch)
        started = time.perf_counter()
        last = _best(text.step(tokens[:, :prompt]))
        prefill.append(time.perf_counter() - started)
    chosen = [last]
    seconds: list[float] = []
    positions = list(range(prompt, length - 1)) if decoder.pairs else _spread(prompt, length - prompt - 1)
    for before, position in pairwise([prompt - 1, *positions]):
        new = tokens[:, before + 1 : position + 1]
        started = time.perf_counter()
        last = _best(text.step(new))
        seconds.append(time.perf_counter() - started)
        chosen.append(last)
    return Written(tuple(prefill[-repeat:]), tuple(seconds), (prompt - 1, *positions), np.stack(chosen, axis=1))


def _spread(first: int, count: int) -> list[int]:
    """Up to `RERUNS` of the `count` numbers from `first` on, evenly."""
    return sorted({first + round(i * (count - 1) / max(RERUNS - 1, 1)) for i in range(RERUNS)}) if count > 0 else []


def _best(logits: NDArray[Any]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = logits[:, -1].argmax(axis=-1)
    return found


class _OnnxRuntime(LoadedModel):
    def __init__(self, path: str | Path, provider: str, threads: int) -> None:
        import onnxruntime

        engine = OnnxRuntime(provider=provider, level="all", threads=threads)
        self.session = engine.session(path)
        self.device = provider
        self.path = path
        self.inputs = described(self.session.get_inputs())
        self.outputs = described(self.session.get_outputs())
        self.where = PROVIDERS[provider]
        self.version = str(onnxruntime.__version__)

    def times(self, feeds: Feeds, count: int) -> list[float]:
        own = {name: _as(feeds[name], dtype) for name, (dtype, _) in self.inputs.items()}
        found = []
        for _ in range(count + (count > 1)):
            started = time.perf_counter()
            self.run(own, {})
            found.append(time.perf_counter() - started)
        return found[-count:]

    def begin(self, batch: int) -> GrowingText:
        decoder = self.decoder
        assert decoder is not None
        return _Bound(self, decoder, batch) if decoder.pairs else _Anew(self._logits, decoder)

    def run(self, feeds: Feeds, values: Mapping[str, Any]) -> dict[str, Any]:
        """Runs once on arrays and values of the runtime; logits come to the CPU, all else stays on the device."""
        binding = self.session.io_binding()
        try:
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name in self.outputs:
                binding.bind_output(name, "cpu" if name == LOGITS else self.device)
            self.session.run_with_iobinding(binding)
            if self.device != "cpu":
                binding.synchronize_outputs()
            return dict(zip(self.outputs, binding.get_outputs(), strict=True))
        except Exception as error:  # ONNX Runtime raises a class of its own for each kind of failure
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
            raise DataError(f"ONNX Runtime cannot run '{self.path}' on {shapes}: {reason(error)}") from error

    def _logits(self, feeds: Feeds) -> NDArray[Any]:
        return view(self.run(feeds, {})[LOGITS])


class _Bound(GrowingText):
    """A cache of ONNX Runtime's own values, which go from output to input."""

    def __init__(self, model: _OnnxRuntime, decoder: Decoder, batch: int) -> None:
        import onnxruntime

        self._model, self._decoder, self._count = model, decoder, 0
        empty = decoder.empty(batch).items()
        self._cache = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in empty}

    def step(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        found = self._model.run(self._decoder.feeds(tokens, self._count), self._cache)
        self._cache = {pair.past: found[pair.present] for pair in self._decoder.pairs}
        self._count += tokens.shape[1]
        return view(found[LOGITS])


class _Anew(GrowingText):
    """No cache: the whole text is read in each step."""

    def __init__(self, run: Any, decoder: Decoder) -> None:
        self._run, self._decoder = run, decoder
        self._tokens: NDArray[np.int64] | None = None

    def step(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        self._tokens = tokens if self._tokens is None else np.concatenate([self._tokens, tokens], axis=1)
        found: NDArray[Any] = self._run(self._decoder.feeds(self._tokens, 0))
        return found


class _Engine(LoadedModel):
    """An engine file; its runner copies inputs and outputs, the cache among them, in each step."""

    def __init__(self, runner: Runner, engine: str) -> None:
        self._runner = runner
        self.inputs, self.outputs = getattr(runner, "inputs", {}), getattr(runner, "outputs", {})
        self.where, self.version = f"{engine} on the GPU", ""
        if not self.inputs:
            raise EngineError(f"the {engine} engine does not name its inputs, so that it cannot be timed")

    def times(self, feeds: Feeds, count: int) -> list[float]:
        own = {name: _as(feeds[name], dtype) for name, (dtype, _) in self.inputs.items()}
        found = []
        for _ in range(count + (count > 1)):
            started = time.perf_counter()
            self._runner.infer(own)
            found.append(time.perf_counter() - started)
        return found[-count:]

    def begin(self, batch: int) -> GrowingText:
        decoder = self.decoder
        assert decoder is not None
        if decoder.pairs:
            return _Copied(self._runner, decoder, batch)
        return _Anew(lambda feeds: self._runner.infer(feeds)[LOGITS], decoder)


class _Copied(GrowingText):
    def __init__(self, runner: Runner, decoder: Decoder, batch: int) -> None:
        self._runner, self._decoder, self._count = runner, decoder, 0
        self._cache = decoder.empty(batch)

    def step(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        found = self._runner.infer({**self._decoder.feeds(tokens, self._count), **self._cache})
        self._cache = {pair.past: found[pair.present] for pair in self._decoder.pairs}
        self._count += tokens.shape[1]
        return found[LOGITS]


class _Memory:
    """The bytes of an ONNX Runtime value on the CPU; the array that numpy makes of them keeps the value alive."""

    def __init__(self, value: Any, size: int) -> None:
        self._value = value
        self.__array_interface__ = {
            "data": (value.data_ptr(), True),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


def view(value: Any) -> NDArray[Any]:
    """The array that an ONNX Runtime value on the CPU holds, in place and read-only."""
    dtype = _of_value(value.data_type())
    shape = tuple(value.shape())
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    array: NDArray[Any] = np.asarray(_Memory(value, size)).view(dtype).reshape(shape)
    return array


def _of_value(name: str) -> np.dtype[Any]:
    import ml_dtypes

    short = name.removeprefix("tensor(").removesuffix(")")
    names = {"float": "float32", "double": "float64"}
    return np.dtype(ml_dtypes.bfloat16 if short == "bfloat16" else names.get(short, short))


def _as(array: NDArray[Any], dtype: np.dtype[Any] | None) -> NDArray[Any]:
    """The same numbers in the type that this model takes: FP16 and FP32 inputs may differ between compared models."""
    if dtype is None or array.dtype == dtype:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f" or dtype.kind not in "fV":
        raise DataError(f"the model takes {dtype}, the data has {array.dtype}: give data of that type")
    return np.ascontiguousarray(array.astype(dtype))


def ended(error: Exception) -> dict[str, str]:
    """An error as plain data, with the class that has its exit code."""
    kind = type(error).__name__ if isinstance(error, QCompilerError) else "InternalError"
    text = str(error) if isinstance(error, QCompilerError) else f"{type(error).__name__}: {error}"
    return {"error": kind, "text": text}
