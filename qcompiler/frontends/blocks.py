"""The first blocks of a model that is too large to be run as a whole, in the torch module and in its graph alike.

Both lose the same blocks: what stands in front of the first block and behind the last one stays, and reads what the
last block that is left computes. The graph is cut out of the file that was written, so its own weights are what is run.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from qcompiler.ir import edit
from qcompiler.ir import graph as graphs

_LEAST = 2  # one block alone would not show that they follow each other


@dataclass(frozen=True)
class BlockRow:
    """The blocks of a module.

    Attributes:
        name: of the list that holds them, such as "model.layers".
        count: how many there are.
        kept: how many of them there are of every kind that there is, from the first one on.
    """

    name: str
    count: int
    kept: int


def find(module: Any) -> BlockRow | None:
    """The blocks of a transformers model; None where it has no one list of them, or too few to leave any out."""
    import torch

    count = getattr(_text_config(module), "num_hidden_layers", None)
    lists = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) == count
    ]
    if len(lists) != 1 or count is None:
        return None
    name, blocks = lists[0]
    kinds = [_kind(module, block, at) for at, block in enumerate(blocks)]
    kept = max(_LEAST, 1 + max(kinds.index(kind) for kind in kinds))
    return BlockRow(name, count, kept) if kept < count else None


def _text_config(module: Any) -> Any:
    config: Any = getattr(module, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _kind(module: Any, block: Any, at: int) -> Any:
    """What tells a block from another one: its modules and weights, and what the configuration calls it."""
    named = getattr(_text_config(module), "layer_types", None)
    parts = [(name, type(part).__name__) for name, part in block.named_modules()]
    weights = [(name, tuple(one.shape)) for name, one in block.named_parameters()]
    return parts, weights, named[at] if named and at < len(named) else None


@contextlib.contextmanager
def shortened(module: Any, blocks: BlockRow) -> Iterator[None]:
    """The module with the first blocks alone, and a configuration that says so, inside the `with` block."""
    import torch

    owner, _, name = blocks.name.rpartition(".")
    parent = module.get_submodule(owner)
    whole = getattr(parent, name)
    configs = {id(one): one for part in module.modules() for one in _configs(getattr(part, "config", None))}
    before = [(one, dict(vars(one))) for one in configs.values()]
    setattr(parent, name, torch.nn.ModuleList(list(whole)[: blocks.kept]))
    try:
        for one, _ in before:
            _shorten(one, blocks)
        yield
    finally:
        setattr(parent, name, whole)
        for one, said in before:
            vars(one).clear()
            vars(one).update(said)


def _configs(config: Any) -> Iterator[Any]:
    if config is None:
        return
    yield config
    yield from (one for one in vars(config).values() if hasattr(one, "to_dict"))


def _shorten(config: Any, blocks: BlockRow) -> None:
    if getattr(config, "num_hidden_layers", None) != blocks.count:
        return
    config.num_hidden_layers = blocks.kept
    for key, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == blocks.count:
            vars(config)[key] = value[: blocks.kept]


def cut(graph: gs.Graph, blocks: BlockRow, inputs: Collection[str]) -> bool:
    """Leaves the first blocks of a graph alone, in place, with what is in front of them and behind the last one.

    Args:
        graph: of the whole model; of no use where it could not be cut.
        blocks: which.
        inputs: names of those that the shortened module has.

    Returns:
        Whether it could be cut: exactly one tensor goes from block to block, and out of the last one.
    """
    if any(graphs.subgraphs(node) for node in graph.nodes):
        return False  # what they read from around them is not among the inputs of their nodes
    number = {id(node): _number(node, blocks) for node in graph.nodes}
    ends = {id(one) for one in graph.outputs}

    def between(last: int) -> list[gs.Tensor]:
        """What a block makes and what is behind it reads, itself and the outputs of the model left out."""
        made = [t for node in graph.nodes if number[id(node)] == last for t in node.outputs if id(t) not in ends]
        return [t for t in made if any(_behind(number.get(id(reader)), last) for reader, _ in graphs.consumers(t))]

    into, out = between(blocks.kept - 1), between(blocks.count - 1)
    if len(into) != 1 or len(out) != 1:
        return False
    for node, index in graphs.consumers(out[0]):
        if number.get(id(node)) is None:
            edit.set_input(node, index, into[0])
    _drop_unread(graph, [one for one in graph.outputs if not _is_gone(one, number, blocks)])
    _widen_late(graph)
    return _without_others(graph, inputs)


def _widen_late(graph: gs.Graph) -> None:
    """Lists what widens weights first: of what could be run next, ONNX Runtime takes the last listed.

    Else it widens all weights at once, and holds them until each is read.
    """
    casts = {id(node) for node in graph.nodes if node.op == "Cast" and graphs.is_constant(node.inputs[0])}
    graph.nodes.sort(key=lambda node: id(node) not in casts)


def _without_others(graph: gs.Graph, inputs: Collection[str]) -> bool:
    """Takes inputs of other blocks away, of which sizes are read that any block's have; whether that could be done."""
    kept = [one for one in graph.inputs if one.name in inputs]
    for other in [one for one in graph.inputs if one.name not in inputs]:
        like = next((one for one in kept if one.shape == other.shape and one.dtype == other.dtype), None)
        if like is None or any(node.op != "Shape" for node, _ in graphs.consumers(other)):
            return False
        edit.replace_uses(graph, other, like)
    graph.inputs[:] = kept
    return True


def _number(node: gs.Node, blocks: BlockRow) -> int | None:
    """Which block a node belongs to, by its name."""
    found = re.match(rf"{re.escape(blocks.name)}\.(\d+)[./]", node.name)
    return int(found[1]) if found else None


def _behind(number: int | None, last: int) -> bool:
    return number is None or number > last


def _is_gone(output: gs.Tensor, number: dict[int, int | None], blocks: BlockRow) -> bool:
    made = graphs.producer(output)
    at = number.get(id(made)) if made is not None else None
    return at is not None and at >= blocks.kept


def _drop_unread(graph: gs.Graph, outputs: list[gs.Tensor]) -> None:
    """Leaves what the outputs need; inputs that something read and nothing reads any more go, too."""
    were_read = {id(one) for one in graph.inputs if one.outputs}
    graph.outputs[:] = outputs
    needed: set[int] = set()
    todo = [one for output in outputs if (one := graphs.producer(output)) is not None]
    while todo:
        node = todo.pop()
        if id(node) in needed:
            continue
        needed.add(id(node))
        todo += [one for tensor in node.inputs if (one := graphs.producer(tensor)) is not None]
    edit.remove_nodes(graph, [node for node in graph.nodes if id(node) not in needed])
    graph.inputs[:] = [one for one in graph.inputs if one.outputs or id(one) not in were_read]
