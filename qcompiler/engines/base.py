"""What every engine back-end offers: check a model, build an engine file from it, run that file where it can run."""

from __future__ import annotations

import dataclasses
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qcompiler.errors import ModelError, UsageError

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Profile:
    """One optimization profile: for each dynamic input the smallest, the typical and the largest shape.

    Attributes:
        shapes: by input name, (min, opt, max), each a tuple of positive ints of the input's rank.

    Raises:
        UsageError: ranks differ, or not min <= opt <= max, in any dimension.
    """

    shapes: Mapping[str, Range]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", {name: _range(name, given) for name, given in self.shapes.items()})

    def to_json(self) -> dict[str, dict[str, list[list[int]]]]:
        """Plain lists, as the manifest and the build process take them; `Profile(**...)` reads them back."""
        return {"shapes": {name: [list(shape) for shape in given] for name, given in self.shapes.items()}}


def _range(name: str, given: Sequence[Sequence[int]]) -> Range:
    if len(given) != 3:
        raise UsageError(
            f"the profile of input '{name}' has {len(given)} shapes: give three, the smallest, the typical and the "
            f"largest, as in {name}=1x3x224x224,8x3x224x224,32x3x224x224"
        )
    low, opt, high = (tuple(int(size) for size in shape) for shape in given)
    if not len(low) == len(opt) == len(high):
        raise UsageError(
            f"the profile of input '{name}' mixes ranks: {_spell(low)}, {_spell(opt)}, {_spell(high)}; "
            "give all three shapes the rank of the input"
        )
    if not all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
        raise UsageError(
            f"the profile of input '{name}' must not decrease, but is {_spell(low)}, {_spell(opt)}, {_spell(high)}: "
            "in every dimension min <= opt <= max"
        )
    if any(size < 0 for size in low):
        raise UsageError(
            f"the profile of input '{name}' has a negative size: {_spell(low)}; write real sizes, not -1, "
            "for dynamic dimensions"
        )
    return low, opt, high


def _spell(shape: Shape) -> str:
    return "x".join("?" if size < 0 else str(size) for size in shape) or "scalar"


@dataclass(frozen=True, slots=True)
class Input:
    """A model input as an engine library sees it: -1 for a dynamic size; `is_shape` if its contents are a shape."""

    name: str
    shape: Shape
    is_shape: bool

    @property
    def dynamic(self) -> bool:
        """Whether a profile must speak of it."""
        return self.is_shape or any(size < 0 for size in self.shape)


def profile_error(inputs: Sequence[Input], profiles: Sequence[Profile]) -> str | None:
    """What keeps profiles from fitting a model, in words that name the input; None if they fit.

    The libraries themselves fill in or ignore what is missing, or complain only at the end of a build.
    """
    names = [one.name for one in inputs]
    for profile in profiles:
        for name in profile.shapes:
            if name not in names:
                return f"it speaks of input '{name}', but the model's inputs are {', '.join(names)}"
    for one in inputs:
        if one.dynamic and not profiles:
            return f"input '{one.name}' [{_spell(one.shape)}] is dynamic, and no profile was given"
        for profile in profiles:
            found = _misfit(one, profile)
            if found:
                return found
    return None


def _misfit(one: Input, profile: Profile) -> str | None:
    if one.is_shape:
        return (
            f"input '{one.name}' is a shape: its contents say how large something is, and a profile here has only the "
            "shapes of inputs; make that size a constant, or compute it from the shape of another input"
        )
    given = profile.shapes.get(one.name)
    if given is None:
        return f"input '{one.name}' [{_spell(one.shape)}] is dynamic and has no shapes in it" if one.dynamic else None
    for asked in given:
        pairs = zip(asked, one.shape, strict=False)
        if len(asked) != len(one.shape) or any(size not in (-1, want) for want, size in pairs):
            return f"input '{one.name}' is [{_spell(one.shape)}] in the model, which {_spell(asked)} does not fit"
    return None


class Phases:
    """Turns a library's nested phases with steps into one share of the whole, 0..1, that never falls."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str | None, int, int]] = {}
        self._share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins inside `parent`."""
        self._open[name] = (parent, max(steps, 1), 0)

    def step(self, name: str, step: int) -> float:
        """Step number `step` (from 0) of a phase is done; returns the share of the whole."""
        parent, steps, _ = self._open.get(name, (None, 1, 0))
        self._open[name] = (parent, steps, step + 1)
        done = min((step + 1) / steps, 1.0)
        while parent is not None and parent in self._open:
            parent, steps, before = self._open[parent]
            done = min((before + done) / steps, 1.0)
        self._share = max(self._share, done)
        return self._share

    def finish(self, name: str) -> None:
        """A phase ends."""
        self._open.pop(name, None)


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """What the engine's own parser says against a model.

    Attributes:
        node: name of the node it is about; empty when it is about the whole model.
        op: operator of that node, or empty.
        message: the library's own words.
    """

    node: str
    op: str
    message: str

    def __str__(self) -> str:
        """`node (op): message`, the message without the library's source code."""
        where = f"{self.node} ({self.op}): " if self.node and self.op else f"{self.node or self.op or 'model'}: "
        return where + _in_words(self.message)


def _in_words(message: str) -> str:
    """What TensorRT means: `Assertion failed: code: words`, `code && "words"`, or merely `false`."""
    if message == "false" or "Plugin not found" in message:
        return "there is no such operator here, nor a plugin of that name"
    if "Failed to convert ONNX date type" in message:
        return "it takes or gives a type that TensorRT does not have, such as text"
    if "Unsupported reduction type" in message:
        return "a ScatterElements or ScatterND that adds up or picks (its attribute 'reduction') has no kernel here"
    if "training_mode == 1" in message:
        return "it was exported in training mode, in which results depend on the batch: export it behind model.eval()"
    constant = re.search(r"Failed to import initializer: ([^\s:]+?)\.?$", message)
    if constant is not None:
        return f"its constant '{constant[1]}' has a type that TensorRT does not have, such as text"
    words = re.search(r'&& "(.+)"', message) or re.match(r"Assertion failed: (?:[^:]|::)*: (.+)", message)
    return (words.group(1) if words else message).rstrip(". ")


@dataclass(frozen=True)
class EngineFile:
    """A built engine on disk.

    Attributes:
        path: the file.
        engine: which back-end built it, such as `tensorrt-rtx`.
        bytes: size of the file.
        seconds: wall time of the build, process start and model parsing included.
        sms: compute capabilities that it was built for; empty for the portable default.
        version: version of the engine library.
        peak_rss_mb: peak resident memory of the build process in MiB; None where it was not measured.
        warnings: what the library warned of, without noise, in order and each once.
    """

    path: Path
    engine: str
    bytes: int
    seconds: float
    sms: tuple[str, ...]
    version: str
    peak_rss_mb: float | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        plain = {"path": str(self.path), "sms": list(self.sms), "warnings": list(self.warnings)}
        return {**dataclasses.asdict(self), **plain}


class Runner(ABC):
    """A loaded engine. Use it as a context manager; `close` frees what it holds."""

    @abstractmethod
    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the engine once; arrays by input name in, arrays by output name out.

        Raises:
            DataError: an input is missing, unknown or outside of the optimization profile.
            EngineError: the engine failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Frees memory; the runner cannot be used afterwards. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Engine(ABC):
    """A back-end. Subclasses are frozen dataclasses: their fields are their options."""

    name: ClassVar[str]

    def key(self) -> str:
        """A stable text of the back-end and all its options, for caches and the manifest."""
        options = ",".join(f"{one.name}={getattr(self, one.name)!r}" for one in dataclasses.fields(self))
        return f"{self.name}({options})"

    @abstractmethod
    def check(self, model_path: str | Path) -> list[Diagnostic]:
        """Parses the model with the real library, builds nothing; an empty list means that it was accepted.

        Raises:
            ModelError: there is no such file.
            EngineError: the library is missing or crashed.
        """

    @abstractmethod
    def build(
        self,
        model_path: str | Path,
        output_path: str | Path,
        profiles: Sequence[Profile] = (),
        *,
        progress: Progress | None = None,
    ) -> EngineFile:
        """Builds `output_path` from an ONNX file; the file appears complete or not at all.

        `progress` is called with a phase and the share of it that is done, 0..1.

        Raises:
            ModelError: there is no such model file.
            UsageError: the output cannot be written.
            EngineError: the library is missing, refuses the model (the message names the node), or failed.
        """

    def quick(self) -> Engine:
        """The same back-end, asked to find a plan rather than the fastest one: for a build whose result is not kept."""
        return self

    @abstractmethod
    def open(self, engine_file: EngineFile | str | Path) -> Runner:
        """Loads a built engine for inference.

        Raises:
            EngineError: the hardware or the library for it is not here; the message says which.
        """


def model_file(path: str | Path) -> Path:
    """The path, if there is a file.

    Raises:
        ModelError: there is none.
    """
    found = Path(path)
    if not found.is_file():
        raise ModelError(f"there is no model file '{found}': check the path")
    return found


def graph_of(path: Path) -> onnx.GraphProto:
    """The graph of an ONNX file, without data that lies outside of the file.

    Raises:
        ModelError: the file is not ONNX.
    """
    try:
        return onnx.load(os.fspath(path), load_external_data=False).graph
    except (DecodeError, OSError) as error:
        raise ModelError(f"'{path}' cannot be read as ONNX ({error}): is it complete?") from error


def nodes_in(words: str, graph: onnx.GraphProto) -> list[tuple[str, str]]:
    """Name and operator of the nodes that a library names in what it says, perhaps with a number behind."""
    said = set(re.findall(r"[^\s'\"(),\[\]]+", words))
    said |= {one.rstrip(":.") for one in said}
    known = {node.name: node.op_type for node in graph.node if node.name}
    found = (one if one in known else re.sub(r"_\d+$", "", one) for one in sorted(said))
    return [(name, known[name]) for name in dict.fromkeys(found) if name in known]
