"""Products that decide what else is computed stay in high precision, and what they decide from, where that is little.

A router's result is not used as a number: TopK, ArgMax or a threshold makes of it which expert runs, which token goes
on, which entry of a table is taken. Rounding it is no noise, but now and then another expert, with an error as large as
the signal. Two experts are about as good for some token in a hundred, so it takes little: behind a first layer in INT8
(40 dB) a mixture of four experts loses 11 dB. A router is next to no work, so it stays as it is.

That helps as far as what it reads is exact. What everything that it reads is computed by may stay high, too, where that
is little: the n-th of m routers may cost n/m of the work that may stay in high precision anyway. So the projection in
front of a first router is kept, and the layers between routers, which are most of a model, are not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from qcompiler.ir import graph as graphs
from qcompiler.ir.linear import weight_of
from qcompiler.ir.operators import MOVES, MULTIPLYING, POINTWISE, PRODUCTS, RECURRENT, REDUCTIONS, VIEWS
from qcompiler.plan import Candidate, Refusal

_CHOOSES = {"TopK": 1, "ArgMax": 0, "ArgMin": 0}  # which output says what was chosen: the values are no decision
_COMPARES = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")
_BOUNDED = ("Softmax", "LogSoftmax", "Sigmoid")  # behind one, a fixed threshold is one of probabilities
_EXTREME = ("TopK", "ReduceMax", "ReduceMin")  # what is held against one of these is a choice of the best
_CHEAP = frozenset({*POINTWISE, *MOVES, *REDUCTIONS, *VIEWS, *_CHOOSES, *_COMPARES, *_BOUNDED}) | {
    "And", "CumSum", "ConstantOfShape", "Dropout", "Flatten", "NonZero", "Not", "OneHot", "Or", "Range",
    "ScatterElements", "ScatterND", "Shape", "Size", "Xor",
}  # fmt: skip
_GATES = frozenset(
    {"Compress", "Gather", "GatherElements", "GatherND", "Mul", "ScatterElements", "ScatterND", "Where", "Loop"}
)
_JOINS = MULTIPLYING | RECURRENT | {"ReduceSum", "ReduceMean", "Sum"}  # what was chosen is computed with, and not given


@dataclass(frozen=True, slots=True)
class Router:
    """Products that decide together.

    Attributes:
        decision: name of the first node that chooses.
        op: its operator.
        own: names of the products whose results are chosen from.
        hidden: names of the products in front that only these read.
        before: names of all that multiply and that these depend on, `hidden` among them.
    """

    decision: str
    op: str
    own: frozenset[str]
    hidden: frozenset[str]
    before: frozenset[str]


def refusals(graph: gs.Graph, found: Iterable[Candidate], macs: Mapping[str, int], min_share: float) -> list[Refusal]:
    """Products that decide and what is little in front of them; none where those that decide are much of the work.

    Args:
        graph: the float graph, in order.
        found: the candidates.
        macs: multiply-accumulates by node, of all that multiply.
        min_share: share of the work that is to be quantized, 0..1.
    """
    able, routers = {one.node: one for one in found}, find(graph)
    work, free = sum(macs.values()), (1 - min_share) * sum(macs.values())
    own = {name: router for router in reversed(routers) for name in router.own}
    more = {name: router for router in reversed(routers) for name in router.hidden} | own
    if not work or _work(own, macs) > free:
        return []
    own = own if _work(more, macs) > free else more
    why = "its result decides by {} '{}' what else is computed, where an error is another choice and no noise"
    kept = {
        name: Refusal(name, able[name].op, "router", why.format(router.op, router.decision))
        for name, router in own.items()
        if name in able
    }
    for index, router in enumerate(routers, 1):
        before = router.before & able.keys()
        cost = _work(before, macs)
        if cost > free * index / len(routers) or not before <= macs.keys():
            continue
        told = (
            f"'{router.decision}' ({router.op}) decides what else is computed, and all that it decides from is "
            f"{cost / work:.1%} of the work"
        )
        kept |= {name: Refusal(name, able[name].op, "router-input", told) for name in before - kept.keys()}
    return [kept[name] for name in able if name in kept]


def _work(names: Iterable[str], macs: Mapping[str, int]) -> int:
    return sum(macs.get(name, 0) for name in names)


def find(graph: gs.Graph) -> list[Router]:
    """The routers of the main graph, in order."""
    fixed, routers = _fixed(graph), dict[frozenset[str], Router]()
    for node in graph.nodes:
        products, near = _decides(node)
        names = frozenset(one.name for one in products)
        if not products or names in routers or not _gates_others(graph, node, products, near, fixed):
            continue
        before = frozenset(one.name for one in _above(products) if one.op in MULTIPLYING)
        hidden = frozenset(one.name for one in _hidden(graph, products))
        routers[names] = Router(node.name, node.op, names, hidden, before)
    return list(routers.values())


def _decides(node: gs.Node) -> tuple[list[gs.Node], set[int]]:
    """The products that a node chooses by, and ids of the tensors between; none where it does not choose."""
    if graphs.is_op(node, *_CHOOSES):
        products, near, _ = _back(node.inputs[:1])
        return products, near
    if not graphs.is_op(node, *_COMPARES):
        return [], set()
    products, near, ops = _back(node.inputs)
    fixed = any(graphs.constant_value(tensor) is not None for tensor in node.inputs)
    if any(map(_bounded, node.inputs)) if fixed else ops & set(_EXTREME):
        return products, near
    return [], set()  # a Relu and its like in other words: what is small there is small on both sides of the threshold


def _bounded(tensor: gs.Tensor) -> bool:
    """Whether it is one of probabilities, moved about at most."""
    node = graphs.producer(tensor)
    while graphs.is_op(node, *MOVES, *VIEWS) and node is not None and node.inputs:
        node = graphs.producer(node.inputs[0])
    return graphs.is_op(node, *_BOUNDED)


def _back(tensors: Iterable[gs.Tensor]) -> tuple[list[gs.Node], set[int], set[str]]:
    """The products with a constant behind cheap operators, ids of the tensors between, and these operators."""
    products, near, ops, left = dict[int, gs.Node](), set[int](), set[str](), list(tensors)
    while left:
        tensor = left.pop()
        node = graphs.producer(tensor)
        if id(tensor) in near or node is None:
            continue
        near.add(id(tensor))
        if graphs.is_op(node, *PRODUCTS):
            if weight_of(node) is not None:
                products[id(node)] = node
        elif graphs.is_op(node, *_CHEAP):
            ops.add(node.op)
            left.extend(node.inputs)
    return list(products.values()), near, ops


def _gates_others(
    graph: gs.Graph, decision: gs.Node, products: Iterable[gs.Node], near: Collection[int], fixed: Collection[int]
) -> bool:
    """Whether what was chosen takes its pick of something else that is computed with."""
    known = {*near, *fixed, *(id(t) for node in products for t in node.outputs)}
    chosen = {id(decision.outputs[_CHOOSES.get(decision.op, 0)])}
    for node in graph.nodes:
        reads = [tensor for tensor in node.inputs if tensor.name]
        if not any(id(tensor) in chosen for tensor in reads):
            if reads and graphs.is_op(node, *_CHEAP) and all(_is(tensor, known) for tensor in reads):
                known |= {id(tensor) for tensor in node.outputs}
            continue
        others = [tensor for tensor in reads if id(tensor) not in chosen and not _is(tensor, known)]
        if node.op in MULTIPLYING:
            return True
        if node.op == "If" or (node.op in _GATES and (others or _table(node))):
            if _joined(node):
                return True
        elif not others and graphs.is_op(node, *_CHEAP):
            chosen |= {id(tensor) for tensor in node.outputs}
    return False


def _is(tensor: gs.Tensor, known: Collection[int]) -> bool:
    return graphs.is_constant(tensor) or id(tensor) in known


def _table(node: gs.Node) -> bool:
    """Whether it reads rows of a constant by what was chosen: an embedding, or the weights of an expert."""
    return (
        graphs.is_op(node, "Gather", "GatherND")
        and graphs.is_constant(node.inputs[0])
        and graphs.is_float(node.inputs[0])
        and len(node.inputs[0].shape) > 1
    )


def _joined(node: gs.Node) -> bool:
    """Whether anything behind a node computes with what it gives."""
    seen, left = set[int](), [node]
    while left:
        for tensor in left.pop().outputs:
            for reader, _ in graphs.consumers(tensor):
                if reader.op in _JOINS:
                    return True
                if id(reader) not in seen:
                    seen.add(id(reader))
                    left.append(reader)
    return False


def _hidden(graph: gs.Graph, products: Iterable[gs.Node]) -> list[gs.Node]:
    """The products in front whose results only these read, through activations: a router may have several layers."""
    found, left = dict[int, gs.Node](), list(products)
    while left:
        last = left.pop()
        nodes, near, _ = _back(last.inputs[:1])
        if not _private(graph, last, near):
            continue
        left.extend(node for node in nodes if id(node) not in found)
        found |= {id(node): node for node in nodes}
    return list(found.values())


def _private(graph: gs.Graph, last: gs.Node, near: Collection[int]) -> bool:
    """Whether nothing but `last` comes of the tensors `near` in front of it."""
    left, seen, inside = list(last.inputs[:1]), list[gs.Tensor](), {id(last)}
    while left:
        tensor = left.pop()
        node = graphs.producer(tensor)
        if node is None or id(tensor) not in near or any(tensor is one for one in seen):
            continue
        seen.append(tensor)
        if node.op not in MULTIPLYING:
            inside.add(id(node))
            left.extend(node.inputs)
    readers = (reader for tensor in seen for reader, _ in graphs.consumers(tensor))
    return all(id(reader) in inside for reader in readers) and not any(graphs.is_output(graph, t) for t in seen)


def _above(nodes: Iterable[gs.Node]) -> list[gs.Node]:
    """All nodes that these depend on."""
    found, left = dict[int, gs.Node](), list(nodes)
    while left:
        for tensor in left.pop().inputs:
            node = graphs.producer(tensor)
            if node is not None and id(node) not in found:
                found[id(node)] = node
                left.append(node)
    return list(found.values())


def _fixed(graph: gs.Graph) -> set[int]:
    """Ids of the tensors that are computed from constants and sizes alone."""
    fixed: set[int] = set()
    for node in graph.nodes:
        if graphs.is_op(node, "Shape", "Size", "Constant") or (
            node.inputs and not graphs.subgraphs(node) and all(_is(t, fixed) for t in node.inputs if t.name)
        ):
            fixed |= {id(tensor) for tensor in node.outputs}
    return fixed
