"""Where keys and values enter the attentions of a decoder, and what of its graph knows positions but no tokens.

A decoder without a cache computes three kinds of tensors: *data* (from token ids), *positional* ones (from the shapes
of inputs, from masks and position ids: rotation angles, causal masks, position embeddings), and constants. To let it
attend to a prefix that it never computes, keys and values get rows in front, and what is positional is computed as if
the text were longer by the prefix and then cut to the rows of the text. No operator has to be recognised for that but
the attention itself, softmax(q · kᵀ ...) · v, and nothing has to be known of how positions are encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from qcompiler.errors import DataError
from qcompiler.ir import graph as graphs
from qcompiler.ir.signature import inputs_of
from qcompiler.runtime.token_feeds import MASKS, Filler, present_of

if TYPE_CHECKING:
    from qcompiler.ir.signature import Inputs


MARK = "qfep."  # names of everything that a baked prefix adds begin so
POSITIONS = ("position_ids", "decoder_position_ids")
_LAYOUT = ("Transpose", "Reshape", "Expand", "Unsqueeze", "Squeeze", "Identity", "Cast", "Tile", "Dropout")
_BETWEEN = ("Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Tanh", "Clip", "Max", "Min")
_BEHIND = ("Cast", "Identity", "Dropout", "Where", "IsNaN", "Mul")
_OTHER = ("Attention", "GroupQueryAttention", "MultiHeadAttention", "RotaryEmbedding", "Loop", "Scan", "LSTM", "GRU")
# Inputs that say sizes, places or axes, by operator: they keep speaking of the text alone
_SIZES: dict[str, tuple[int, ...]] = {
    "Expand": (1,),
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "Pad": (1, 3),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
}


class UnfitError(Exception):
    """A graph that no prefix can be baked into; the text says why, as the end of a sentence."""


@dataclass(frozen=True, eq=False)
class KeyValueWay:
    """One way of keys or values into a product.

    Attributes:
        steps: from the product backwards, each a node, the index of one of its inputs, and what it reads there. All
            but the first node only move values or repeat them.
    """

    steps: tuple[tuple[gs.Node, int, gs.Tensor], ...]


@dataclass(frozen=True, eq=False)
class Site:
    """One attention: its softmax, how keys and values get there, and the nodes that scale and mask the scores."""

    softmax: gs.Node
    key: KeyValueWay
    value: KeyValueWay
    between: tuple[gs.Node, ...]


@dataclass(frozen=True, eq=False)
class Interface:
    """What a decoder takes and gives.

    Attributes:
        filler: makes its feeds.
        inputs: dtype and shape of each input.
        outputs: names.
        past: names of cache inputs with the outputs that continue them, keys and values in turn; empty without cache.
    """

    filler: Filler
    inputs: Inputs
    outputs: tuple[str, ...]
    past: tuple[tuple[str, str], ...]


def interface(graph: gs.Graph) -> Interface:
    """The inputs and outputs as those of a decoder.

    Raises:
        UnfitError: it is none, or a fixed length leaves no room for a prefix.
    """
    inputs = inputs_of(graph)
    outputs = tuple(one.name for one in graph.outputs)
    try:
        filler = Filler(inputs)
    except DataError as error:
        raise UnfitError(f"{str(error)[0].lower()}{str(error)[1:]}") from error
    if filler.length is not None:
        raise UnfitError(f"its input '{filler.ids}' takes exactly {filler.length} tokens: export it with a free length")
    past: list[tuple[str, str]] = []
    for name in filler.past:
        present, shape = present_of(name, outputs), inputs[name][1]
        if present is None:
            raise UnfitError(f"no output continues the cache input '{name}'")
        if shape is None or len(shape) != 4 or isinstance(shape[2], int):
            raise UnfitError(f"cache input '{name}' is not [batch, heads, past, size] with a free past")
        past.append((name, present))
    if len(past) % 2:
        raise UnfitError("its cache inputs are not pairs of keys and values")
    return Interface(filler, inputs, outputs, tuple(past))


def positional(graph: gs.Graph) -> set[int]:
    """Identities (`id`) of the tensors that depend on shapes, masks and positions, and on no token."""
    found = {id(one) for one in graph.inputs if one.name in (*MASKS, *POSITIONS, "cache_position")}
    for node in graph.nodes:
        if graphs.is_op(node, "Shape", "Size") or _all_positional(node, found):
            found.update(map(id, node.outputs))
    return found


def _all_positional(node: gs.Node, known: set[int]) -> bool:
    reads = [one for one in node.inputs if one.name and not graphs.is_constant(one)]
    return bool(reads) and not graphs.subgraphs(node) and all(id(one) in known for one in reads)


def sites(graph: gs.Graph, known: set[int]) -> list[Site]:
    """The attentions of a decoder without cache, in graph order.

    Args:
        graph: normalised float graph.
        known: its positional tensors.

    Raises:
        UnfitError: there is none, or something that mixes tokens in a way that is not known.
    """
    for node in graph.nodes:
        if node.op in _OTHER and any(not graphs.is_constant(one) for one in node.inputs):
            raise UnfitError(
                f"node '{node.name}' is a {node.op}, which is not taken apart: export with standard operators, or with "
                "a cache (past_key_values inputs)"
            )
    found = [site for node in graph.nodes if graphs.is_op(node, "Softmax") for site in _site(node, known)]
    if not found:
        raise UnfitError("it has no attention of the form softmax(q · kᵀ) · v")
    return found


def _site(softmax: gs.Node, known: set[int]) -> Iterator[Site]:
    between: list[gs.Node] = []
    scores = _scores(softmax, known, between)
    if scores is None:
        return
    context = _context(softmax, known)
    if context is None:
        raise UnfitError(f"what softmax '{softmax.name}' gives is not multiplied with values right away")
    yield Site(softmax, KeyValueWay(_steps(scores)), KeyValueWay(_steps(context)), tuple(between))


def _scores(softmax: gs.Node, known: set[int], between: list[gs.Node]) -> gs.Node | None:
    """The product of q and k behind scaling and masking; None for a softmax of something else."""
    tensor = softmax.inputs[0]
    while True:
        node = graphs.producer(tensor)
        if node is None or id(tensor) in known:
            return None
        if graphs.is_op(node, "MatMul"):
            return node if _is_data(node.inputs[0], known) and _is_data(node.inputs[1], known) else None
        if not graphs.is_op(node, *_BETWEEN):
            return None
        data = [one for one in node.inputs if one.name and _is_data(one, known)]
        if len(data) != 1:
            if len(data) > 1 and any(_leads_to_product(one, known) for one in data):
                raise UnfitError(f"node '{node.name}' ({node.op}) masks scores with something computed from the tokens")
            return None
        between.append(node)
        tensor = data[0]


def _leads_to_product(tensor: gs.Tensor, known: set[int]) -> bool:
    for _ in range(8):
        node = graphs.producer(tensor)
        if node is None:
            return False
        if graphs.is_op(node, "MatMul"):
            return _is_data(node.inputs[0], known) and _is_data(node.inputs[1], known)
        tensor = next((one for one in node.inputs if one.name and _is_data(one, known)), tensor)
    return False


def _context(softmax: gs.Node, known: set[int]) -> gs.Node | None:
    waiting = [softmax.outputs[0]]
    while waiting:
        tensor = waiting.pop()
        for node, index in graphs.consumers(tensor):
            if graphs.is_op(node, "MatMul"):
                return node if index == 0 and _is_data(node.inputs[1], known) else None
            if graphs.is_op(node, *_BEHIND):
                waiting.append(node.outputs[0])
    return None


def _is_data(tensor: gs.Tensor, known: set[int]) -> bool:
    return not graphs.is_constant(tensor) and id(tensor) not in known


def _steps(product: gs.Node) -> tuple[tuple[gs.Node, int, gs.Tensor], ...]:
    steps = [(product, 1, product.inputs[1])]
    while True:
        node = graphs.producer(steps[-1][2])
        scaled = graphs.is_op(node, "Mul", "Div") and node is not None and _by_scalar(node)
        if node is None or not (graphs.is_op(node, *_LAYOUT) or scaled):
            return tuple(steps)
        index = next(i for i, one in enumerate(node.inputs) if not graphs.is_constant(one))
        if index and not scaled:
            return tuple(steps)
        steps.append((node, index, node.inputs[index]))


def _by_scalar(node: gs.Node) -> bool:
    values = [graphs.constant_value(one) for one in node.inputs]
    return any(value is not None and value.size == 1 for value in values)


def frontier(graph: gs.Graph, known: set[int], passed: set[int]) -> list[tuple[gs.Node, int, gs.Tensor]]:
    """Where positional tensors meet data, as node, index of the input, and tensor.

    Sizes are left out, but those of nodes (`passed`, by identity) that keys and values pass behind their prefix.
    """
    found: list[tuple[gs.Node, int, gs.Tensor]] = []
    for node in graph.nodes:
        if graphs.is_op(node, "Shape", "Size") or _all_positional(node, known):
            continue
        sizes: Sequence[int] = () if id(node) in passed else _SIZES.get(node.op, ())
        found += [
            (node, index, tensor)
            for index, tensor in enumerate(node.inputs)
            if id(tensor) in known and index not in sizes
        ]
    return found


def is_baked(graph: gs.Graph) -> bool:
    """Whether a prefix has been baked into the graph already."""
    return any(node.name.startswith(MARK) for node in graph.nodes)
