"""Routers: every way to write that a product decides, what only looks like it, and what in front of them is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from qcompiler.planning.placement.candidates import find_candidates
from qcompiler.planning.placement.routers import find, refusals
from qcompiler.target import parse_target
from tests.kit.rewrite import Spec, graph_proto, model, to_graph

RTX = parse_target("tensorrt-rtx")
TOKENS, WIDTH, EXPERTS = 8, 32, 16


def _graph(*nodes: Spec, outputs: tuple[str, ...] = ("y",), **more: Any) -> gs.Graph:
    """`h = x · inp` in front, and weights by name: square ones, and `r` and `r2` of routers."""
    rng = np.random.default_rng(0)
    square = {name: rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) for name in ("inp", "w", "v", "u")}
    routers = {name: rng.standard_normal((WIDTH, EXPERTS)).astype(np.float32) for name in ("r", "r2")}
    numbers = {
        "k": np.array([2]),
        "one": np.array([1]),
        "axis": np.array([-1]),
        "depth": np.array(EXPERTS),
        "off_on": np.array([0, 1], np.float32),
        "zero": np.float32(0),
        "half": np.float32(0.5),
        "zeros": np.zeros((TOKENS, EXPERTS), np.float32),
        "first": np.array(0),
    }
    weights = {**square, **routers, **numbers, **more}
    read = {name for spec in nodes for name in spec[1].split()} | {"inp"}
    body = (("MatMul", "x inp", "h"), *nodes)
    held = {name: value for name, value in weights.items() if name in read}
    return to_graph(model(*body, inputs={"x": (TOKENS, WIDTH)}, outputs=outputs, weights=held))


_EXPERT = (("MatMul", "h w", "e"), ("Gather", "gates first", "g", {"axis": 1}), ("Unsqueeze", "g axis", "gate"))
_GATED = (*_EXPERT, ("Mul", "e gate", "m"), ("MatMul", "m v", "y"))
_LOGITS = ("MatMul", "h r", "logits")
_SOFT = ("Softmax", "logits", "p", {"axis": -1})
_ARGMAX = ("ArgMax", "logits", "i", {"axis": 1, "keepdims": 0})

ROUTERS: dict[str, tuple[Spec, ...]] = {
    "top-k, scattered": (
        _LOGITS,
        ("TopK", "logits k", "t i"),
        ("Softmax", "t", "s", {"axis": -1}),
        ("ScatterElements", "zeros i s", "gates", {"axis": 1}),
        *_GATED,
    ),
    "softmax, then top-k, normalised": (
        _LOGITS,
        _SOFT,
        ("TopK", "p k", "t i"),
        ("ReduceSum", "t axis", "sum"),
        ("Div", "t sum", "s"),
        ("ScatterElements", "zeros i s", "gates", {"axis": 1}),
        *_GATED,
    ),
    "sigmoid and a bias, the scores gathered": (
        _LOGITS,
        ("Sigmoid", "logits", "p"),
        ("Add", "p bias", "c"),
        ("TopK", "c k", "t i"),
        ("GatherElements", "p i", "s", {"axis": 1}),
        ("ScatterElements", "zeros i s", "gates", {"axis": 1}),
        *_GATED,
    ),
    "arg-max and one-hot": (
        _LOGITS,
        _SOFT,
        _ARGMAX,
        ("OneHot", "i depth off_on", "hot"),
        ("Mul", "hot p", "gates"),
        *_GATED,
    ),
    "a fixed threshold": (_LOGITS, _SOFT, ("Greater", "p half", "b"), ("Where", "b p zero", "gates"), *_GATED),
    "a threshold of the k-th": (
        _LOGITS,
        ("TopK", "logits k", "t _"),
        ("ReduceMin", "t", "least", {"axes": [-1]}),
        ("GreaterOrEqual", "logits least", "b"),
        ("Where", "b logits zero", "gates"),
        *_GATED,
    ),
    "equal to the largest": (
        _LOGITS,
        ("ReduceMax", "logits", "most", {"axes": [-1]}),
        ("Equal", "logits most", "b"),
        ("Cast", "b", "gates", {"to": 1}),
        *_GATED,
    ),
    "each expert chooses tokens": (
        _LOGITS,
        ("Transpose", "logits", "lt"),
        ("TopK", "lt k", "t i"),
        ("Gather", "h i", "taken"),
        ("MatMul", "taken w", "y"),
    ),
    "dispatched by a product": (
        _LOGITS,
        _ARGMAX,
        ("OneHot", "i depth off_on", "hot"),
        ("Transpose", "hot", "th"),
        ("MatMul", "th h", "y"),
    ),
    "weights of the expert are gathered": (
        _LOGITS,
        _ARGMAX,
        ("Gather", "stack i", "mine"),
        ("Unsqueeze", "h one", "row"),
        ("MatMul", "row mine", "y"),
    ),
    "tokens of an expert are sought": (
        _LOGITS,
        _ARGMAX,
        ("Equal", "i first", "b"),
        ("NonZero", "b", "n"),
        ("Gather", "h n", "taken"),
        ("MatMul", "taken w", "y"),
    ),
}
STACK = np.ones((EXPERTS, WIDTH, WIDTH), np.float32)
BIAS = np.ones(EXPERTS, np.float32)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_product_that_decides_is_found_however_it_is_written(name: str) -> None:
    graph = _graph(*ROUTERS[name], stack=STACK, bias=BIAS)
    (router,) = find(graph)
    assert (set(router.own), set(router.before)) == ({"LOGITS"}, {"H"})


def test_a_branch_that_is_chosen_counts() -> None:
    then = graph_proto([("MatMul", "h w", "t")], {}, ["t"])
    other = graph_proto([("MatMul", "h v", "o")], {}, ["o"])
    choice = (
        ("ReduceMax", "logits", "m", {"keepdims": 0}),
        ("ReduceMin", "logits", "n", {"keepdims": 0}),
        ("Greater", "m n", "b"),
        ("If", "b", "c", {"then_branch": then, "else_branch": other}),
        ("MatMul", "c u", "y"),
        ("Add", "w v", "unused"),
    )
    assert [one.own for one in find(_graph(_LOGITS, *choice))] == [{"LOGITS"}]


OTHERS: dict[str, tuple[Spec, ...]] = {
    "a classifier": (_LOGITS, _SOFT, ("TopK", "p k", "t y")),
    "labels": (_LOGITS, ("ArgMax", "logits", "y", {"axis": 1})),
    "the best boxes": (
        _LOGITS,
        ("Transpose", "logits", "lt"),
        ("TopK", "lt k", "t i"),
        ("MatMul", "h w", "boxes"),
        ("Gather", "boxes i", "y"),
    ),
    "a mask of what is sure": (
        _LOGITS,
        ("Sigmoid", "logits", "p"),
        ("Greater", "p half", "b"),
        ("Where", "b p zero", "y"),
    ),
    "LeakyRelu in other words": (
        ("MatMul", "h w", "z"),
        ("Greater", "z zero", "b"),
        ("Mul", "z half", "s"),
        ("Where", "b z s", "a"),
        ("MatMul", "a v", "y"),
    ),
    "a gated layer": (
        ("MatMul", "h w", "z"),
        ("Sigmoid", "z", "s"),
        ("Mul", "z s", "silu"),
        ("Greater", "silu zero", "b"),
        ("Where", "b silu zero", "a"),
        ("MatMul", "h u", "up"),
        ("Mul", "a up", "m"),
        ("MatMul", "m v", "y"),
    ),
    "soft routing": (_LOGITS, ("Softmax", "logits", "gates", {"axis": -1}), *_GATED),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_given_or_what_is_smooth_decides_nothing(name: str) -> None:
    assert find(_graph(*OTHERS[name])) == []


def test_a_router_of_two_layers_is_kept_as_a_whole_and_one_that_others_read_is_not() -> None:
    two = (("MatMul", "h u", "d"), ("Relu", "d", "a"), ("MatMul", "a r", "logits"))
    rest = ROUTERS["arg-max and one-hot"][1:]
    (router,) = find(_graph(*two, *rest))
    assert tuple(map(set, (router.own, router.hidden, router.before))) == ({"LOGITS"}, {"D"}, {"H", "D"})
    (shared,) = find(_graph(*two, *rest, outputs=("y", "a")))
    assert tuple(map(set, (shared.own, shared.hidden, shared.before))) == ({"LOGITS"}, set(), {"H", "D"})


@pytest.mark.parametrize(("work", "kept"), [(5, {"LOGITS", "D"}), (50, {"LOGITS"})], ids=["small", "an encoder"])
def test_layers_that_only_a_router_reads_are_kept_with_it_where_they_are_small(work: int, kept: set[str]) -> None:
    two = (("MatMul", "h u", "d"), ("Relu", "d", "a"), ("MatMul", "a r", "logits"))
    graph = _graph(*two, *ROUTERS["arg-max and one-hot"][1:])
    macs = {"H": 50, "D": work, "LOGITS": 1, "E": 50, "Y": 50}
    assert {one.node for one in refusals(graph, find_candidates(graph, RTX).found, macs, 0.9)} == kept


@pytest.mark.parametrize(
    ("inp", "router", "kept"),
    [(1, 1, {"LOGITS": "router", "H": "router-input"}), (50, 1, {"LOGITS": "router"}), (1, 50, {})],
    ids=["little", "much in front", "much of the work"],
)
def test_what_is_kept_is_what_may_stay_in_high_precision(inp: int, router: int, kept: dict[str, str]) -> None:
    graph = _graph(*ROUTERS["top-k, scattered"])
    macs = {"H": inp, "LOGITS": router, "E": 100, "Y": 100}
    found = refusals(graph, find_candidates(graph, RTX).found, macs, 0.9)
    assert {one.node: one.rule for one in found} == kept
    assert all("decides" in one.why for one in found)


def test_a_first_router_of_many_may_cost_its_part_alone() -> None:
    second = (
        ("Add", "y h", "sum"),
        ("MatMul", "sum r2", "logits2"),
        ("ArgMax", "logits2", "i2", {"axis": 1, "keepdims": 0}),
        ("OneHot", "i2 depth off_on", "hot2"),
        ("MatMul", "hot2 table", "z"),
    )
    graph = _graph(*ROUTERS["top-k, scattered"], *second, outputs=("z",), table=np.ones((EXPERTS, WIDTH), np.float32))
    layers = find_candidates(graph, RTX).found
    macs = {"H": 12, "LOGITS": 1, "E": 90, "Y": 90, "LOGITS2": 1, "Z": 6}
    kept = {one.node for one in refusals(graph, layers, macs, 0.9)}
    assert kept == {"LOGITS", "LOGITS2"}
    kept = {one.node for one in refusals(graph, layers, {**macs, "H": 8}, 0.9)}
    assert kept == {"LOGITS", "LOGITS2", "H"}


def test_nothing_is_kept_where_nobody_knows_the_work() -> None:
    graph = _graph(*ROUTERS["top-k, scattered"])
    assert refusals(graph, find_candidates(graph, RTX).found, {}, 0.9) == []
