"""What is compared: the views of a model, found in its graph.

    output0[:, 4:12]           part      of an output that joins boxes and scores
    logits (before ArgMax)     source    of the output 'classes', whose numbers are positions
    present.0.key              cache     what the next step reads

A figure over all outputs at once is blind to a small part that is lost. So each output is compared by itself, where it
was joined of several by each of these, and where a discrete step made it by what that step read. The worst view counts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import onnx_graphsurgeon as gs

from qcompiler.errors import UsageError
from qcompiler.ir import decoder_io
from qcompiler.ir import graph as graphs
from qcompiler.ir.macs import Shapes
from qcompiler.ir.operators import RECURRENT, VIEWS
from qcompiler.ir.signature import Feeds
from qcompiler.judge.cuts import Piece, cuts_of, tensors_for_cuts
from qcompiler.judge.levels import MOST_CHANNELS, channel_axis, levels_of
from qcompiler.judge.tail import SOFT, Tail, Tails
from qcompiler.runtime.shapes import concrete_shapes
from qcompiler.runtime.stream import run_once
from qcompiler.support.suggest import did_you_mean

NOTHING: Shapes = {}
AMOUNTS = frozenset(
    {"Cast", "Round", "Floor", "Ceil", "QuantizeLinear"}
)  # steps behind which numbers are still amounts
_HOLDS = ("SequenceConstruct", "Optional")


class Role(StrEnum):
    """What a view stands for."""

    OUTPUT = "output"  # an output as it is
    PART = "part"  # a piece of an output that was joined
    SOURCE = "source"  # what a discrete step, a Sigmoid or a Softmax in front of an output reads
    RESULT = "result"  # what such a step gives: shown; its source is judged
    CACHE = "cache"  # what the next step reads again
    STATE = "state"  # likewise, of a recurrent layer
    PASSED = "passed through"  # an input or a constant
    IGNORED = "ignored"  # the user said so


JUDGED = frozenset({Role.OUTPUT, Role.PART, Role.SOURCE})
WEAK = frozenset({Role.CACHE, Role.STATE, Role.PASSED})


@dataclass(frozen=True, slots=True)
class View:
    """One thing that is compared.

    Attributes:
        name: what people read, such as "output0[:, 4:12]".
        output: the output of the model that it belongs to.
        tensor: what is compared: that output, or a tensor of the main graph that it is computed from.
        role: see `Role`.
        step: of a source and of a result, the operator between them; of an output or part, the Sigmoid or Softmax that
            gives it; "" for none.
        piece: of a part, where it lies; None for a whole tensor.
        level: an axis along which a constant may be added without changing the result, as in front of a Softmax.
        selected: rows are picked or ordered by numbers, so that their number and place may change.
        amounts: whole numbers that were rounded from floats, as in a picture of bytes; not classes or positions.
        drawn: the next token is drawn by it: logits of a vocabulary, or what the Softmax of such an output reads.
        weighed: its error is the likelihood that it takes (`judge.likelihood`), in place of a power.
    """

    name: str
    output: str
    tensor: str
    role: Role
    step: str = ""
    piece: Piece | None = None
    level: int | None = None
    selected: bool = False
    amounts: bool = False
    drawn: bool = False
    weighed: bool = False

    @property
    def judged(self) -> bool:
        """Whether choices go by it, and whether it can call a result doubtful or broken."""
        return self.role in JUDGED


Views = tuple[View, ...]


def weighed(views: Sequence[View]) -> Views:
    """The same, with what the next token is drawn by compared by its likelihood: for choices."""
    return tuple(replace(view, weighed=view.drawn) for view in views)


def tensors_of(views: Sequence[View], *, judged: bool = False) -> list[str]:
    """Names of the tensors that the views compare, each once; only of those that are judged if asked."""
    return list(dict.fromkeys(view.tensor for view in views if view.judged or not judged))


def check_ignored(ignored: Collection[str], outputs: Collection[str]) -> None:
    """Finds out early whether there are such outputs.

    Raises:
        UsageError: a name is that of no output, or nothing would be left to judge by.
    """
    unknown = next((name for name in ignored if name not in outputs), None)
    if unknown is not None:
        raise UsageError(f"--ignore-output {unknown}: the model has no such output; {did_you_mean(unknown, outputs)}")
    if ignored and not set(outputs) - set(ignored):
        raise UsageError("--ignore-output takes out every output: leave one that the result can be judged by")


def find_views(graph: gs.Graph, feed: Feeds | None, ignored: Collection[str] = ()) -> Views:
    """The views of a model.

    Args:
        graph: the float model.
        feed: one sample, which tells the sizes of what is joined; None: nothing is cut into parts.
        ignored: outputs that the user takes out.

    Raises:
        ModelError: a size can only be told by running the model, and that fails.
    """
    held = [tensor for output in graph.outputs for tensor in _held(output)]
    names = [name for tensor in held for name in tensors_for_cuts(tensor)]
    joins = len(names) > len(held)
    if feed is None or (not joins and not any(graphs.is_linear(graphs.producer(tensor)) for tensor in held)):
        return views_of(graph, NOTHING, ignored)
    shapes = concrete_shapes(graph, feed, list(dict.fromkeys(names)))
    views = views_of(graph, shapes, ignored)
    return (*views, *_levels(graph, feed, views, shapes))


def _levels(graph: gs.Graph, feed: Feeds, views: Views, shapes: Shapes) -> Iterator[View]:
    """Channels of outputs that were not joined, where their sizes differ by far; the model is run once for them."""
    cut = {view.output for view in views if view.role is Role.PART}
    whole = {view.output for view in views if view.role is Role.OUTPUT} - cut
    axes = {output.name: channel_axis(output, shapes) for output in graph.outputs if output.name in whole}
    small = {name: axis for name, axis in axes.items() if axis is not None and 1 < shapes[name][axis] <= MOST_CHANNELS}
    found = run_once(graph, feed, outputs=list(small)) if small else {}
    for name, axis in small.items():
        groups = levels_of(found[name], axis)
        for group in groups if len(groups) > 1 else ():
            piece = Piece.of(axis, group)
            yield View(name + _spelled(piece, len(shapes[name])), name, name, Role.PART, piece=piece)


def stand_ins(views: Sequence[View], others: Sequence[View], missing: Collection[str]) -> dict[str, str]:
    """Tensors of another graph of the same model that hold what views of this one compare, by the name they have here.

    A step that does nothing, such as a bias of zeros or an Identity, may be gone from the other graph, and the name of
    its result with it. What the Softmax, Sigmoid or discrete step of that output reads there is the same quantity.

    Args:
        views: the views of this graph.
        others: those of the other graph.
        missing: names that the other graph lacks.
    """
    there = _sources_by_place(others)
    found: dict[str, str] = {}
    for place, tensors in _sources_by_place(views).items():
        twins = there.get(place, [])
        pairs = zip(tensors, twins, strict=True) if len(tensors) == len(twins) else ()
        found |= {one: twin for one, twin in pairs if one in missing}
    return found


def _sources_by_place(views: Sequence[View]) -> dict[tuple[str, str], list[str]]:
    """What is read in front of an output, by output and step, in the order of the views."""
    found: dict[tuple[str, str], list[str]] = {}
    for view in views:
        if view.role is Role.SOURCE and view.piece is None:
            found.setdefault((view.output, view.step), []).append(view.tensor)
    return found


def views_of(graph: gs.Graph, shapes: Shapes = NOTHING, ignored: Collection[str] = ()) -> Views:
    """The views of a model whose joined tensors have these shapes, in the order of its outputs.

    Where nothing would be judged but caches and states, these are.
    """
    tails, weak = Tails(graph), _weak(graph)
    found: list[View] = []
    for output in graph.outputs:
        if output.name in ignored:
            found.append(View(output.name, output.name, output.name, Role.IGNORED))
        elif output.name in weak:
            found.append(View(output.name, output.name, output.name, weak[output.name]))
        else:
            own = (view for tensor in _held(output) for view in _views(tensor, tails, shapes))
            found += [replace(view, output=output.name) for view in own]
    drawn = set(decoder_io.vocabulary_outputs(graph))
    found = [replace(view, drawn=view.output in drawn and _all_of_it(view)) for view in found]
    if not any(view.judged for view in found):
        found = [replace(view, role=Role.OUTPUT) if _may_count(view, graph, tails) else view for view in found]
    return tuple({(view.tensor, view.piece, view.role): view for view in found}.values())


def _all_of_it(view: View) -> bool:
    """Whether a judged view is a whole output, or what the Softmax in front of one reads."""
    whole = view.role is Role.OUTPUT and not view.step
    return view.piece is None and (whole or (view.role is Role.SOURCE and view.step in ("Softmax", "LogSoftmax")))


def _may_count(view: View, graph: gs.Graph, tails: Tails) -> bool:
    tensor = next(output for output in graph.outputs if output.name == view.output)
    return view.role in (Role.CACHE, Role.STATE) and tails.is_float(tensor)


def _views(output: gs.Tensor, tails: Tails, shapes: Shapes) -> Iterator[View]:
    tail = tails.of(output)
    name, is_float = output.name, tails.is_float(output)
    if not is_float:
        step = tail.steps[0] if tail.steps else ""
        amounts = bool(tail.steps) and {*tail.steps} <= AMOUNTS
        yield View(name, name, name, Role.RESULT, step, selected=tail.selected, amounts=amounts)
    elif tail.selected:
        yield View(name, name, name, Role.RESULT, tail.steps[0], selected=True)
    else:
        yield from _floats(output, tail, tails, shapes)
    for source in tail.sources:
        yield from _sources(output, source, tail.steps[0], shapes)


def _floats(output: gs.Tensor, tail: Tail, tails: Tails, shapes: Shapes) -> Iterator[View]:
    """Of an output that stands where it stood: itself, its pieces, and what soft steps in front of it read."""
    name, soft = output.name, _soft(output)
    hidden = soft is not None and soft.op in ("Softmax", "LogSoftmax")
    whole = Role.RESULT if hidden and soft is not None and tails.computed(soft.inputs[0]) else Role.OUTPUT
    yield View(name, name, name, whole, soft.op if soft is not None else "")
    if soft is not None and tails.computed(soft.inputs[0]):
        yield _before(name, soft)
    by_name = {tensor.name: tensor for tensor in _inner(output)}
    for pieces in cuts_of(output, shapes).values():
        for piece in pieces:
            tensors = [by_name[one] for one in piece.tensors if one in by_name]
            discrete = any(tails.of(one).steps for one in tensors) or not all(tails.computed(one) for one in tensors)
            role = Role.RESULT if discrete else Role.PART
            steps = {step.op for one in tensors if (step := _soft(one)) is not None}
            step = steps.pop() if len(steps) == 1 and all(_soft(one) for one in tensors) else ""
            yield View(name + _spelled(piece, len(shapes[name])), name, name, role, step, piece=piece)
            yield from (_before(name, own) for one in tensors if (own := _soft(one)) and tails.computed(own.inputs[0]))


def _sources(output: gs.Tensor, source: gs.Tensor, step: str, shapes: Shapes) -> Iterator[View]:
    """What a discrete step reads; in front of a Softmax or Sigmoid, where errors can be seen; in its pieces."""
    soft = _soft(source)
    if soft is not None:
        yield _before(output.name, soft)
        return
    name = f"{source.name} (before {step})"
    yield View(name, output.name, source.name, Role.SOURCE, step)
    for pieces in cuts_of(source, shapes).values():
        for piece in pieces:
            spelled = source.name + _spelled(piece, len(shapes[source.name]))
            yield View(f"{spelled} (before {step})", output.name, source.name, Role.SOURCE, step, piece)


def _before(output: str, soft: gs.Node) -> View:
    tensor = soft.inputs[0].name
    level = int(soft.attrs.get("axis", -1)) if soft.op in ("Softmax", "LogSoftmax") else None
    return View(f"{tensor} (before {soft.op})", output, tensor, Role.SOURCE, soft.op, level=level)


def _held(output: gs.Tensor) -> list[gs.Tensor]:
    """The tensors of an output: what a ZipMap puts into maps or a sequence is made of, else the output itself."""
    node = graphs.producer(output)
    if node is not None and ((node.op == "ZipMap" and not graphs.is_standard(node)) or graphs.is_op(node, *_HOLDS)):
        return list(node.inputs)
    return [output]


def _soft(tensor: gs.Tensor) -> gs.Node | None:
    """The Softmax or Sigmoid whose result a tensor holds, perhaps in another order or type."""
    node = graphs.producer(tensor)
    while graphs.is_op(node, *VIEWS):
        node = graphs.producer(node.inputs[0]) if node is not None else None
    return node if graphs.is_op(node, *SOFT) and node is not None and not graphs.is_constant(node.inputs[0]) else None


def _inner(output: gs.Tensor) -> Iterator[gs.Tensor]:
    """What a join in front of an output reads, whatever stands between."""
    waiting, seen = [output], set[int]()
    while waiting:
        tensor = waiting.pop()
        node = graphs.producer(tensor)
        if node is None or id(node) in seen or not set(tensors_for_cuts(tensor)) - {tensor.name}:
            continue
        seen.add(id(node))
        waiting += [value for value in node.inputs if not graphs.is_constant(value)]
        if graphs.is_op(node, "Concat"):
            yield from node.inputs


def _spelled(piece: Piece, rank: int) -> str:
    """As numpy indexes: [:, 4:12]; the last axes are left out."""
    before = ":, " * piece.axis if piece.axis < rank - 1 or rank < 4 else "..., "
    inside = f"[{', '.join(map(str, piece.indices))}]" if piece.indices else f"{piece.start}:{piece.stop}"
    return f"[{before}{inside}]"


def _weak(graph: gs.Graph) -> dict[str, Role]:
    """Caches, states, and what is handed through, by the name of the output."""
    inputs = {id(tensor) for tensor in graph.inputs}
    decoder = decoder_io.of_graph(graph)
    caches = {pair.present for pair in decoder.pairs} if decoder is not None else set()
    names = [tensor.name for tensor in graph.inputs]
    found = {}
    for output in graph.outputs:
        origin = _origin(output)
        if graphs.is_constant(origin) or id(origin) in inputs:
            found[output.name] = Role.PASSED
        elif output.name in caches or _grows(origin, inputs):
            found[output.name] = Role.CACHE
        elif _is_state(origin) or _is_next(output.name, names):
            found[output.name] = Role.STATE
    return found


def _origin(tensor: gs.Tensor) -> gs.Tensor:
    """What a tensor holds in perhaps another shape or type."""
    node = graphs.producer(tensor)
    while graphs.is_op(node, *VIEWS) and node is not None:
        tensor = node.inputs[0]
        node = graphs.producer(tensor)
    return tensor


def _grows(tensor: gs.Tensor, inputs: Collection[int]) -> bool:
    """Whether an input is joined with something new, as a cache is."""
    node = graphs.producer(tensor)
    if node is None or not graphs.is_op(node, "Concat", "ScatterElements", "ScatterND"):
        return False
    return id(_origin(node.inputs[0])) in inputs


def _is_state(tensor: gs.Tensor) -> bool:
    """Whether a recurrent layer gives its last state in it; the first result of a layer is its output."""
    node = graphs.producer(tensor)
    return graphs.is_op(node, *RECURRENT) and node is not None and tensor is not node.outputs[0]


_OF_A_STEP = re.compile(r"(new|next|out|output|updated|prev|previous|past|present|in|input|cur|current|old)")


def _is_next(output: str, inputs: Sequence[str]) -> bool:
    """Whether the name says that the next step reads it: `state_out` and `state_in`, `new_cache` and `cache`."""

    def kernel(name: str) -> str:
        words = re.split(r"[^a-z0-9]+", name.lower())
        return "_".join(word for word in words if word and not _OF_A_STEP.fullmatch(word))

    own = kernel(output)
    words = ("state", "cache", "hidden", "mem", "memory", "hx", "cx", "hn", "cn", "h", "c", "h0", "c0", "buf", "buffer")
    return bool(own) and any(own == kernel(name) for name in inputs) and any(word in own.split("_") for word in words)
