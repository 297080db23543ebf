"""The door to ONNX Runtime: a model that is run over feeds, with inner tensors tapped.

What is tapped is fetched in parts. One run that returns every activation of a large picture holds them all at once: 24
convolutions of 32 channels at 512 x 512 take 1.9 GB, and the float model alone 0.2 GB. So a model whose tensors exceed
`BUDGET` is cut into segments (`segments.py`), which are run in turns on memory that they share; a feed still goes
through each node once. What fits is one run of one session. The numbers are the same in both ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from qcompiler.errors import DataError, ModelError
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.made import Held
from qcompiler.ir.signature import Feeds, Inputs
from qcompiler.runtime import chain, randomness, segments
from qcompiler.runtime.gpu.device import Device
from qcompiler.runtime.session import Session, Source
from qcompiler.runtime.shapes import inferred_shapes
from qcompiler.support.memory import put_down, room

Array = np.ndarray[Any, Any]
# Of what one run returns. It is there twice, as ONNX Runtime's and as numpy's, beside the activations of the model;
# where a model's own need is so small that this doubles it, there is nothing to save.
BUDGET = 64 << 20
# Of a session without optimisations: the time to make one grows with the square of its nodes. Below, it is no matter.
MOST_NODES = 2000
TOGETHER = 16  # feeds that a segment of a large model runs before the next one does


class OpenModel:
    """A model that is ready to run, for as many runs as you like.

    Args:
        source: as of `qcompiler.runtime.session.Session`.
        outputs: tensors to return; inputs of the graph may be among them, and come back as they were fed. None for the
            model's own outputs.
        optimize: ONNX Runtime's graph optimisations.
        quick: made for a handful of runs, as of `Session`.
        threads: inside an operator; 0 for one per processor.
        draw: which numbers random operators give, as of `Session`.
        pooled: activations come from memory that is shared, as of `Session`.

    Attributes:
        outputs: names of what a run returns.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        source: Source,
        *,
        outputs: Sequence[str] | None = None,
        optimize: bool = True,
        quick: bool = False,
        threads: int = 0,
        draw: int | None = 0,
        pooled: bool = False,
    ) -> None:
        fed = _fed(source) if outputs is not None else frozenset[str]()
        inner = None if outputs is None else [name for name in outputs if name not in fed]
        self._session: Session | chain.Chain | None = None
        large = None if inner is not None and not inner else _large(source)
        if large is not None:
            self._session = chain.Chain(*large, outputs=inner, threads=threads, draw=draw)
        elif inner is None or inner:
            self._session = Session(
                source, outputs=inner, optimize=optimize, quick=quick, threads=threads, draw=draw, pooled=pooled
            )
        self._fed = [name for name in outputs or () if name in fed]
        self.outputs: list[str] = [] if self._session is None else self._session.outputs
        if outputs is not None:
            self.outputs = list(outputs)

    @property
    def inputs(self) -> Inputs:
        """dtype and shape of each input, as of `Session`; none where nothing has to be run."""
        return self._session.inputs if self._session is not None else {}

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        """The outputs by name.

        Raises:
            DataError: the feeds do not fit the graph.
            ModelError: a node fails on them; the message names it.
        """
        values = self._session.run(feeds) if self._session is not None else {}
        return {**{name: feeds[name] for name in self._fed}, **values}


def run_once(
    source: Source, feeds: Mapping[str, Array], *, outputs: Sequence[str] | None = None, optimize: bool = False
) -> Feeds:
    """One run of a model that is not needed again: it is opened without optimisations unless they are asked for.

    Args:
        source: as of `OpenModel`.
        feeds: by input.
        outputs: as of `OpenModel`; an empty sequence runs nothing.
        optimize: ONNX Runtime's graph optimisations.

    Raises:
        DataError: the feeds do not fit.
        ModelError: ONNX Runtime refuses the model, or a node fails.
    """
    return OpenModel(source, outputs=outputs, optimize=optimize, quick=not optimize).run(feeds)


@dataclass(frozen=True)
class Part:
    """Some of the tensors of one run.

    Attributes:
        index: which feed it was, from 0.
        feed: the feed.
        values: by name. They are let go when the next part is asked for; who needs them longer copies this dict.
        last: no part of this feed is to come.
    """

    index: int
    feed: Feeds
    values: Feeds
    last: bool


class Accumulator(Protocol):
    """What is learned of some tensors while feeds go by; all of a part's values are shown to all accumulators."""

    @property
    def tensors(self) -> Sequence[str]:
        """Names of the tensors that it must see."""

    def update(self, part: Part) -> None:
        """Takes in those of its tensors that are among the values."""


class Stream:
    """A model whose tensors are fetched in parts.

    Args:
        source: a model or graph.
        tensors: names of tensors of the main graph; inputs are allowed.
        optimize: ONNX Runtime's graph optimisations.
        quick: made for a handful of runs, as of `Session`.
        threads: inside an operator; 0 for one per processor.
        budget: bytes of a part; one tensor at least is fetched, whatever it takes.
        takes: bytes of what is learned of each tensor, which then counts in place of the tensor itself.
        device: where it runs, and where what is fetched stays, as of `Session`; None for the CPU.
    """

    def __init__(
        self,
        source: models.Model | gs.Graph,
        tensors: Iterable[str],
        *,
        optimize: bool = True,
        quick: bool = False,
        threads: int = 0,
        budget: int = BUDGET,
        takes: Mapping[str, int] | None = None,
        device: Device | None = None,
    ) -> None:
        fed = _fed(source)
        names = list(dict.fromkeys(tensors))
        self._source, self._budget, self._takes = source, budget, takes
        self._options: dict[str, Any] = {"optimize": optimize, "quick": quick, "threads": threads, "device": device}
        self._fed = [name for name in names if name in fed]
        self._tapped = [name for name in names if name not in fed]
        self._planned = 0  # bytes of the feed that it was cut for
        self._whole: Session | None = None
        self._pieces: list[tuple[segments.Segment, Session]] = []
        self._large = False

    def parts(self, index: int, feed: Feeds) -> Iterator[Part]:
        """Runs one feed; every tensor comes in one of the parts. Sessions are opened by the first feed.

        Raises:
            DataError: the feed does not fit the graph.
            ModelError: ONNX Runtime refuses the model, or a node fails.
        """
        given = {name: feed[name] for name in self._fed}
        if not self._tapped:
            yield Part(index, feed, given, last=True)
            return
        self._plan(feed)
        if self._whole is None:
            yield from self._in_turns(index, feed, given)
            return
        values = {**given, **self._whole.run(feed)}
        yield Part(index, feed, values, last=True)
        values.clear()

    def through(self, feeds: Iterable[Feeds]) -> Iterator[Part]:
        """Runs feeds as they come: one by one, or of a large model `TOGETHER` at a time.

        Raises:
            DataError: a feed does not fit the graph.
            ModelError: ONNX Runtime refuses the model, or a node fails.
        """
        rest = enumerate(feeds)
        for index, feed in rest:
            if self._tapped:
                self._plan(feed)
            together = islice(rest, TOGETHER - 1) if self._large else ()
            yield from self.over([(index, feed), *together])

    def over(self, feeds: Sequence[tuple[int, Feeds]]) -> Iterator[Part]:
        """Runs some feeds, each with its index.

        Of a large model, each segment runs all of them before the next does, so that its weights are read once.

        Raises:
            DataError: a feed does not fit the graph.
            ModelError: ONNX Runtime refuses the model, or a node fails.
        """
        for _, parts in self.by_segment(feeds):
            yield from parts

    def by_segment(self, feeds: Sequence[tuple[int, Feeds]]) -> Iterator[tuple[list[str], Iterator[Part]]]:
        """The same, for each segment: the tensors that it gives, and its part of each feed.

        Raises:
            DataError: a feed does not fit the graph.
            ModelError: ONNX Runtime refuses the model, or a node fails.
        """
        if self._tapped and feeds:
            self._plan(max((feed for _, feed in feeds), key=_bytes))
        if not self._large:
            names = [*self._fed, *self._tapped]
            yield names, (part for index, feed in feeds for part in self.parts(index, feed))
            return
        held: list[Feeds] = [{} for _ in feeds]
        for at, (segment, _) in enumerate(self._pieces):
            yield [*(() if at else self._fed), *segment.tensors], self._through(at, feeds, held)

    def _through(self, at: int, feeds: Sequence[tuple[int, Feeds]], held: list[Feeds]) -> Iterator[Part]:
        """A segment's part of each feed; `held` has of each feed what the segments before hand on."""
        segment, session = self._pieces[at]
        needed = {name for later, _ in self._pieces[at + 1 :] for name in later.reads}
        with session.holding():
            for one, (index, feed) in enumerate(feeds):
                found = _fed_from(session, segment, feed, held[one])
                known = {**held[one], **found}
                held[one] = {name: put_down(np.asarray(value)) for name, value in known.items() if name in needed}
                given = {name: feed[name] for name in (() if at else self._fed)}
                values = {**given, **{name: found[name] for name in segment.tensors}}
                del found, known
                yield Part(index, feed, values, last=at + 1 == len(self._pieces))
                values.clear()

    def _in_turns(self, index: int, feed: Feeds, given: Feeds) -> Iterator[Part]:
        left = [set(segment.reads) for segment, _ in self._pieces]
        held: Feeds = {}
        for at, (segment, session) in enumerate(self._pieces):
            found = _fed_from(session, segment, feed, held)
            needed = set().union(*left[at + 1 :])
            held = {name: value for name, value in {**held, **found}.items() if name in needed}
            values = {**given, **{name: found[name] for name in segment.tensors}}
            given = {}
            del found
            yield Part(index, feed, values, last=at + 1 == len(self._pieces))
            values.clear()

    def _plan(self, feed: Feeds) -> None:
        """Decides on the parts by what this feed needs; again, where a later feed is more than twice as large."""
        size = _bytes(feed)
        if self._planned and size <= 2 * self._planned:
            return
        self._planned = max(size, 1)
        proto, weights = models.to_proto(_graph(self._source))
        sizes = self._takes if self._takes is not None else _sizes(proto, feed, self._tapped)
        plan, most = [], MOST_NODES if self._options["quick"] else None
        if chain.is_large(weights):
            self._large = True
            self._in_pieces(proto, weights, sizes)
            return
        long = most is not None and len(proto.graph.node) > most
        if long or sum(sizes.get(name, 0) for name in self._tapped) > self._budget:
            plan = segments.cut(proto, self._tapped, sizes, self._budget, most=most)
        if len(plan) > 1:
            self._whole = None
            alone = segments.extract(proto, weights, plan)
            made = (Session(one, pooled=True, **self._options) for one in alone)
            self._pieces = list(zip(plan, made, strict=True))
        elif self._whole is None:
            self._whole = Session(self._source, outputs=self._tapped, **self._options)

    def _in_pieces(self, proto: onnx.ModelProto, weights: Mapping[str, Held], sizes: Mapping[str, int]) -> None:
        """Cuts a large model by what its weights take, too."""
        proto = chain.with_types(randomness.held(proto, 0))
        tapped = {name: sizes.get(name, 0) for name in self._tapped}
        plan = chain.pieces(proto, self._tapped, chain.starts(proto, weights, tapped, self._budget))
        threads, device = self._options["threads"], self._options["device"]
        self._whole = None
        alone = segments.extract(proto, weights, plan)
        self._pieces = [
            (one, Session(part, quick=True, pooled=True, threads=threads, draw=None, device=device))
            for one, part in zip(plan, alone, strict=True)
        ]


def stream(
    source: models.Model | gs.Graph,
    tensors: Iterable[str],
    feeds: Iterable[Feeds],
    *,
    optimize: bool = True,
    quick: bool = False,
    threads: int = 0,
    budget: int = BUDGET,
) -> Iterator[Part]:
    """Runs the feeds one after the other and yields what was tapped, part by part; arguments as of `Stream`.

    Raises:
        DataError: a feed does not fit the graph.
        ModelError: ONNX Runtime refuses the model, or a node fails.
    """
    opened = Stream(source, tensors, optimize=optimize, quick=quick, threads=threads, budget=budget)
    for index, feed in enumerate(feeds):
        yield from opened.parts(index, feed)


def fill(
    source: models.Model | gs.Graph,
    accumulators: Sequence[Accumulator],
    feeds: Iterable[Feeds],
    *,
    advance: Callable[[int], None] | None = None,
    quick: bool = False,
    threads: int = 0,
    budget: int = BUDGET,
) -> None:
    """Runs the feeds once and shows what they give to all accumulators.

    Args:
        source: a model or graph.
        accumulators: what is to be learned; without any, the feeds are read and nothing is run.
        feeds: what to run.
        advance: called with 1 behind each feed.
        quick: as of `Stream`.
        threads: as of `Stream`.
        budget: as of `Stream`.

    Raises:
        DataError: a feed does not fit the graph.
        ModelError: ONNX Runtime refuses the model, or a node fails.
    """
    tensors = [name for one in accumulators for name in one.tensors]
    opened = Stream(source, tensors, quick=quick, threads=threads, budget=budget)
    for part in opened.through(feeds):
        for one in accumulators:
            one.update(part)
        if part.last and advance is not None:
            advance(1)


def is_large(model: models.Model) -> bool:
    """Whether a segment runs all feeds before the next, so that what is learned of a tensor is known behind it."""
    return chain.is_large(models.to_proto(model.graph)[1])


def _fed_from(session: Session, segment: segments.Segment, feed: Feeds, held: Feeds) -> Feeds:
    """What a segment gives for a feed and what the ones before it hand on."""
    try:
        return session.run({name: value for name, value in {**feed, **held}.items() if name in segment.reads})
    except (DataError, ModelError) as error:
        error.fed = feed  # of the model, not of the segment
        raise


def _bytes(feed: Feeds) -> int:
    return sum(value.nbytes for value in feed.values() if isinstance(value, np.ndarray))


def _large(source: Source) -> tuple[onnx.ModelProto, Mapping[str, Held]] | None:
    """A large model as a proto and its weights; None for any other."""
    if isinstance(source, str | Path):
        size = sum(path.stat().st_size for path in _files(Path(source)))
        if size < chain.LARGE and not room().tight:
            return None
        source = models.load(source)
    proto, weights = source if isinstance(source, tuple) else models.to_proto(_graph(source))
    return (proto, weights) if chain.is_large(weights) else None


def _files(path: Path) -> list[Path]:
    """A model file and what its weights may lie in."""
    skeleton = models.skeleton(path)
    names = {
        entry.value
        for one in (() if skeleton is None else skeleton.graph.initializer)
        for entry in one.external_data
        if entry.key == "location" and entry.value
    }
    found = [path, *(path.parent / name for name in names)]
    return [one for one in found if one.is_file()]


def _graph(source: models.Model | gs.Graph) -> gs.Graph:
    return source.graph if isinstance(source, models.Model) else source


def _fed(source: Source) -> frozenset[str]:
    """Names of the inputs; of a file that is still closed, none."""
    if isinstance(source, models.Model | gs.Graph):
        return frozenset(tensor.name for tensor in _graph(source).inputs)
    return frozenset(one.name for one in source[0].graph.input) if isinstance(source, tuple) else frozenset()


def _sizes(proto: onnx.ModelProto, feed: Feeds, wanted: Sequence[str]) -> dict[str, int]:
    """Bytes of the tensors for one feed, by what the graph says of shapes, else by inference.

    A wanted tensor that neither knows counts as much as the largest of those that are known.
    """
    known = {one.name: one.type.tensor_type for one in (*proto.graph.value_info, *proto.graph.output)}
    bound = _bound(proto, feed)
    counts = {name: _count(one, bound) for name, one in known.items()}
    found = {name: count for name, count in counts.items() if count is not None}
    if any(name not in found for name in wanted):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        shapes = inferred_shapes(copy, feed)
        found |= {name: math.prod(shape) for name, shape in shapes.items()}
    largest = max((found[name] for name in wanted if name in found), default=0)
    found = {**dict.fromkeys(wanted, largest), **found}
    return {name: count * _width(known.get(name)) for name, count in found.items()}


def _bound(proto: onnx.ModelProto, feed: Feeds) -> dict[str, int]:
    """What the names of free dimensions stand for."""
    bound: dict[str, int] = {}
    for one in proto.graph.input:
        value = feed.get(one.name)
        if isinstance(value, np.ndarray):
            dims = one.type.tensor_type.shape.dim
            bound.update((dim.dim_param, size) for dim, size in zip(dims, value.shape, strict=False) if dim.dim_param)
    return bound


def _count(known: onnx.TypeProto.Tensor, bound: Mapping[str, int]) -> int | None:
    """Elements; None where a dimension is not known."""
    if not known.HasField("shape"):
        return None
    sizes = [dim.dim_value if dim.HasField("dim_value") else bound.get(dim.dim_param) for dim in known.shape.dim]
    return math.prod(size for size in sizes if size is not None) if None not in sizes else None


def _width(known: onnx.TypeProto.Tensor | None) -> int:
    """Bytes of an element; 4 where the type is not known."""
    if known is None or not known.elem_type or known.elem_type == onnx.TensorProto.STRING:
        return 4
    dtype = graphs.np_dtype(known.elem_type)
    return 4 if dtype is None else int(dtype.itemsize)
