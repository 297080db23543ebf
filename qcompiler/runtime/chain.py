"""A model that is run a few layers at a time, so that only the weights of these are in memory.

It is cut into segments by what their weights take. Each has a session that holds no weights: they are handed to every
run, mapped from their file or made of what is stored there, and let go of behind it. ONNX Runtime optimises nothing
here, so every node computes by itself, and a cut changes no number wherever it lies. A large model is therefore run
this way whatever the limit is: how much memory it gets decides where it is cut and not what it computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx

from qcompiler.errors import DataError, ModelError
from qcompiler.ir.made import Held
from qcompiler.ir.signature import Feeds, Inputs
from qcompiler.runtime import randomness, segments
from qcompiler.runtime.session import Session
from qcompiler.support.memory import room

Array = np.ndarray[Any, Any]

# Bytes of weights from which on a session has no copy of them, laid out as its kernels like: runs take up to a third
# longer (64 tokens through 420 MB: .20 CPU seconds instead of .16), and memory is what large models lack
LARGE: Final = 1 << 30


def is_large(weights: Mapping[str, Held]) -> bool:
    """Whether a model with these weights is run without optimisations, and cut where memory is short."""
    return room().tight or sum(one.nbytes for one in weights.values()) >= LARGE


def starts(
    proto: onnx.ModelProto,
    weights: Mapping[str, Held],
    sizes: Mapping[str, int] | None = None,
    budget: int | None = None,
) -> list[int]:
    """Where segments begin, as indices of nodes, 0 first: the fewest that fit.

    Args:
        proto: nodes in an order in which they can run; where they are in none, it is not cut.
        weights: those that are not inside it.
        sizes: bytes of the tensors that are fetched, in one run.
        budget: of these in one segment; None for no limit. That of the weights is the piece of the room.
    """
    piece = room().piece
    crossing = segments.crossings(proto)
    found, read, fetched = [0], dict[str, int](), 0
    for at, node in enumerate(proto.graph.node):
        own = {name: weights[name].nbytes for name in segments.read_by(node) if name in weights}
        made = sum((sizes or {}).get(name, 0) for name in node.output)
        heavy = piece is not None and read and sum((read | own).values()) > piece
        full = budget is not None and fetched and fetched + made > budget
        if at > found[-1] and crossing[at] is not None and (heavy or full):
            found.append(at)
            read, fetched = {}, 0
        read |= own
        fetched += made
    return found


def pieces(proto: onnx.ModelProto, tensors: Sequence[str], places: Sequence[int]) -> list[segments.Segment]:
    """The segments that begin at these nodes, without those that nobody needs; arguments as of `segments.at_places`."""
    return [one for one in segments.at_places(proto, tensors, places) if one.tensors or one.hands_on]


def opened(
    proto: onnx.ModelProto, weights: Mapping[str, Held], *, outputs: Sequence[str] | None = None
) -> Session | Chain:
    """A model that is ready for a handful of runs, cut where it is large.

    Raises:
        ModelError: ONNX Runtime refuses it.
    """
    if is_large(weights):
        return Chain(proto, weights, outputs=outputs)
    return Session((proto, weights), outputs=outputs, quick=True)


class Chain:
    """Sessions over the segments of a model, run one after the other.

    Args:
        proto: the model; weights that it marks as external are in `weights`.
        weights: by name.
        outputs: names of computed tensors to return; None for the model's own outputs.
        threads: inside an operator; 0 for one per processor.
        draw: which numbers random operators give, as of `Session`.

    Attributes:
        outputs: names of what a run returns.
        inputs: dtype and shape of each input that is read.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        weights: Mapping[str, Held],
        *,
        outputs: Sequence[str] | None = None,
        threads: int = 0,
        draw: int | None = 0,
    ) -> None:
        if draw is not None:
            proto = randomness.held(proto, draw)
        proto = with_types(proto)
        self.outputs = [one.name for one in proto.graph.output] if outputs is None else list(outputs)
        made = {name for node in proto.graph.node for name in node.output}
        self._plan: list[segments.Segment] = []
        if made.issuperset(self.outputs):
            self._plan = pieces(proto, self.outputs, starts(proto, weights))
        if len(self._plan) < 2:
            self._plan = []
            alone = Session((proto, weights), outputs=outputs, quick=True, threads=threads, draw=None)
            self._sessions = [alone]
            self.inputs: Inputs = alone.inputs
            return
        self._sessions = [
            Session(one, quick=True, pooled=True, threads=threads, draw=None)
            for one in segments.extract(proto, weights, self._plan)
        ]
        handed = {name for segment in self._plan for name in segment.hands_on}
        read = {name: one for session in self._sessions for name, one in session.inputs.items()}
        self.inputs = {name: one for name, one in read.items() if name not in handed}

    def run(self, feeds: Mapping[str, Array]) -> Feeds:
        """The outputs by name.

        Raises:
            DataError: the feeds do not fit the graph.
            ModelError: a node fails on them; the message names it.
        """
        if not self._plan:
            return self._sessions[0].run(feeds)
        left = [set(segment.reads) for segment in self._plan]
        held: dict[str, Array] = {}
        found: dict[str, Array] = {}
        for at, (segment, session) in enumerate(zip(self._plan, self._sessions, strict=True)):
            given = {**feeds, **held}
            try:
                values = session.run({name: given[name] for name in segment.reads if name in given})
            except (DataError, ModelError) as error:
                error.fed = feeds  # of the model, not of the segment
                raise
            needed = set[str]().union(*left[at + 1 :])
            held = {name: value for name, value in {**held, **values}.items() if name in needed}
            found |= {name: values[name] for name in segment.tensors}
        return {name: found[name] for name in self.outputs}


def with_types(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with what ONNX can tell of the types of its tensors, without which it cannot be cut."""
    known = {one.name for one in (*proto.graph.value_info, *proto.graph.output, *proto.graph.input)}
    if all(name in known for node in proto.graph.node for name in node.output if name):
        return proto
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return proto
    more = [one for one in inferred.graph.value_info if one.name not in known]
    typed = onnx.ModelProto()
    typed.CopyFrom(proto)
    typed.graph.value_info.extend(more)
    return typed
