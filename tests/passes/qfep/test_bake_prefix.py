"""Keys and values of a prefix as constants of the graph: the model computes what it computes for [prefix + text]."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import EquivalenceError
from qcompiler.outliers.qfep import proof
from qcompiler.passes import text_form
from qcompiler.passes.base import Changed, Skipped
from qcompiler.passes.qfep import prefix
from qcompiler.passes.qfep.bake_prefix import BakePrefix
from qcompiler.passes.qfep.prefix import Prefix
from qcompiler.passes.qfep.sites import interface
from qcompiler.runtime.session import Session
from tests.kit import decoder, glu
from tests.kit.rewrite import Spec, model, to_graph, whole

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


IDS = (3, 7, 5)
HIDDEN, HEADS, WORDS, LONGEST = 32, 4, 50, 40


def learned(*, mask: bool = True) -> onnx.ModelProto:
    """Two layers of the GPT-2 kind: learned positions from `position_ids`, one projection for q, k and v, padding."""
    rng = np.random.default_rng(5)
    size = HIDDEN // HEADS
    weights: dict[str, Any] = {
        "wte": rng.standard_normal((WORDS, HIDDEN)).astype(np.float32),
        "wpe": rng.standard_normal((LONGEST, HIDDEN)).astype(np.float32),
        "head": rng.standard_normal((HIDDEN, WORDS)).astype(np.float32),
        "split": np.array([0, 0, HEADS, size]),
        "merge": np.array([0, 0, HIDDEN]),
        "third": np.array([HIDDEN] * 3),
        "scale": np.float32(size**-0.5),
        "never": np.float32(-1e9),
        "zero": np.float32(0),
        "at1": np.array([1]),
        "at12": np.array([1, 2]),
        "at3": np.array([3]),
    }
    body: list[Spec] = [
        ("Gather", "wte input_ids", "words"),
        ("Gather", "wpe position_ids", "places"),
        ("Add", "words places", "x0"),
        ("Unsqueeze", "position_ids at12", "keys"),
        ("Unsqueeze", "position_ids at1", "p1"),
        ("Unsqueeze", "p1 at3", "queries"),
        ("LessOrEqual", "keys queries", "causal"),
    ]
    if mask:
        body += [
            ("Cast", "attention_mask", "shown2", {"to": 9}),
            ("Unsqueeze", "shown2 at12", "shown"),
            ("And", "causal shown", "visible"),
        ]
    for layer in range(2):
        n = f"l{layer}"
        weights[f"{n}.qkv"] = (rng.standard_normal((HIDDEN, 3 * HIDDEN)) / 6).astype(np.float32)
        weights[f"{n}.o"] = (rng.standard_normal((HIDDEN, HIDDEN)) / 6).astype(np.float32)
        body += [
            ("MatMul", f"x{layer} {n}.qkv", f"{n}.all"),
            ("Split", f"{n}.all third", f"{n}.q {n}.k {n}.v", {"axis": -1}),
            *[("Reshape", f"{n}.{one} split", f"{n}.{one}.r") for one in "qkv"],
            ("Transpose", f"{n}.q.r", f"{n}.q.t", {"perm": [0, 2, 1, 3]}),
            ("Transpose", f"{n}.k.r", f"{n}.k.t", {"perm": [0, 2, 3, 1]}),
            ("Transpose", f"{n}.v.r", f"{n}.v.t", {"perm": [0, 2, 1, 3]}),
            ("Mul", f"{n}.k.t scale", f"{n}.k.s"),
            ("MatMul", f"{n}.q.t {n}.k.s", f"{n}.s"),
            ("Where", f"{'visible' if mask else 'causal'} {n}.s never", f"{n}.m"),
            ("Softmax", f"{n}.m", f"{n}.p", {"axis": -1}),
            ("MatMul", f"{n}.p {n}.v.t", f"{n}.c"),
            ("Transpose", f"{n}.c", f"{n}.c.t", {"perm": [0, 2, 1, 3]}),
            ("Reshape", f"{n}.c.t merge", f"{n}.c.r"),
            ("MatMul", f"{n}.c.r {n}.o", f"{n}.y"),
            ("Add", f"x{layer} {n}.y", f"x{layer + 1}"),
        ]
    inputs = {"input_ids": (np.int64, ("batch", "length")), "position_ids": (np.int64, ("batch", "length"))}
    if mask:
        inputs["attention_mask"] = (np.int64, ("batch", "length"))
    body.append(("MatMul", "x2 head", "logits"))
    read = {name for one in body for name in one[1].split()}
    return model(
        *body, inputs=inputs, outputs=("logits",), weights={k: v for k, v in weights.items() if k in read}, opset=19
    )


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "with a cache": decoder.decoder,
    "without a cache": lambda: decoder.decoder(cache=False),
    "of batch 1": lambda: decoder.decoder(batch=1),
    "of batch 1 without a cache": lambda: decoder.decoder(cache=False, batch=1),
    "with tables cut to length": lambda: glu.stack(layers=2),
    "without positions": lambda: glu.stack(layers=2, rope=False),
    "with learned positions and padding": learned,
    "with learned positions": lambda: learned(mask=False),
}


def texts(graph: gs.Graph, length: int = 9, batch: int = 3) -> dict[str, Any]:
    filler = interface(graph).filler
    shape = graph.inputs[0].shape
    rows = shape[0] if isinstance(shape[0], int) else batch
    return filler.feed(np.random.default_rng(1).integers(1, 40, (rows, length)).tolist())


def baked(graph: gs.Graph, ids: tuple[int, ...] = IDS) -> tuple[gs.Graph, Prefix]:
    found, copy = prefix.run(graph, ids), graph.copy()
    report = BakePrefix(found)(copy)
    assert report.changed
    assert not report.skipped
    return copy, found


@pytest.mark.parametrize("kind", MODELS)
def test_the_model_computes_what_it_computes_for_prefix_and_text(kind: str) -> None:
    graph = to_graph(MODELS[kind]())
    with_prefix, found = baked(graph)
    onnx.checker.check_model(whole(with_prefix), full_check=True)
    assert proof.prove(graph, with_prefix, found, [texts(graph), texts(graph, 1)]) <= 1e-5


@pytest.mark.parametrize("kind", ["with a cache", "without a cache", "with learned positions and padding"])
def test_inputs_and_outputs_are_as_before(kind: str) -> None:
    graph = to_graph(MODELS[kind]())
    with_prefix, _ = baked(graph)
    feeds = texts(graph)
    before, after = Session(graph).run(feeds), Session(with_prefix).run(feeds)
    assert [one.name for one in with_prefix.inputs] == [one.name for one in graph.inputs]
    assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}
    assert np.abs(before["logits"] - after["logits"]).max() > 1e-3


@pytest.mark.parametrize("kind", MODELS)
def test_a_second_run_changes_nothing(kind: str) -> None:
    with_prefix, found = baked(to_graph(MODELS[kind]()))
    written = whole(with_prefix).SerializeToString(deterministic=True)
    report = BakePrefix(found)(with_prefix)
    assert [note.text for note in report.notes] == ["a prefix is baked in already"]
    assert whole(with_prefix).SerializeToString(deterministic=True) == written


@settings(max_examples=12)
@given(
    cache=st.booleans(),
    ids=st.lists(st.integers(0, decoder.VOCABULARY - 1), min_size=1, max_size=5),
    length=st.integers(1, 8),
    batch=st.integers(1, 3),
)
def test_any_prefix_is_equal_to_its_text(cache: bool, ids: list[int], length: int, batch: int) -> None:
    graph = to_graph(decoder.decoder(cache=cache, layers=1))
    with_prefix, found = baked(graph, tuple(ids))
    assert proof.prove(graph, with_prefix, found, [texts(graph, length, batch)]) <= 1e-5


def test_rows_go_in_front_of_the_repetition_of_grouped_heads() -> None:
    graph = to_graph(decoder.decoder(cache=False))
    with_prefix, found = baked(graph)
    assert {key.shape for key in found.keys} == {(decoder.KV_HEADS, len(IDS), decoder.SIZE)}
    joins = [node for node in with_prefix.nodes if node.op == "Concat" and node.name.endswith(".joined")]
    assert len(joins) == 2 * decoder.LAYERS
    assert {node.outputs[0].outputs[0].op for node in joins} == {"Unsqueeze"}


def test_padding_stays_invisible_and_the_prefix_visible() -> None:
    graph = to_graph(learned())
    with_prefix, _ = baked(graph)
    feeds = texts(graph, 6)
    feeds["attention_mask"][:, 4:] = 0
    other = {**feeds, "input_ids": feeds["input_ids"].copy()}
    other["input_ids"][:, 4:] = 1
    session = Session(with_prefix)
    first, second = session.run(feeds)["logits"], session.run(other)["logits"]
    assert np.array_equal(first[:, :4], second[:, :4])
    face = interface(graph)
    reference = Session(graph).run(proof.in_front(feeds, IDS, face))["logits"][:, len(IDS) :]
    assert np.allclose(reference[:, :4], first[:, :4], atol=1e-5)


def test_a_cache_fed_back_goes_on_as_before() -> None:
    graph = to_graph(decoder.decoder())
    with_prefix, _ = baked(graph)
    session, ids = Session(with_prefix), decoder.tokens(2, 6)
    whole_run = session.run(decoder.feeds(ids))["logits"]
    first = session.run(decoder.feeds(ids[:, :4]))
    past = [value for name, value in first.items() if name != "logits"]
    second = session.run(decoder.feeds(ids[:, 4:], past))
    assert np.allclose(second["logits"], whole_run[:, 4:], atol=1e-4)
    assert second["present.0.key"].shape[2] == 6


def test_a_wrong_prefix_does_not_pass_the_proof() -> None:
    graph = to_graph(decoder.decoder(cache=False))
    found = prefix.run(graph, IDS)
    wrong = dataclasses.replace(found, keys=tuple(1.01 * key for key in found.keys))
    with_wrong = graph.copy()
    BakePrefix(wrong)(with_wrong)
    with pytest.raises(EquivalenceError, match=r"'logits' differs by .* of its largest value"):
        proof.prove(graph, with_wrong, wrong, [texts(graph)])


def _without_attention() -> onnx.ModelProto:
    body = [("Gather", "table input_ids", "x"), ("MatMul", "x w", "y")]
    weights = {"table": np.eye(8, dtype=np.float32), "w": np.eye(8, dtype=np.float32)}
    return model(*body, inputs={"input_ids": (np.int64, ("batch", "length"))}, weights=weights)


def test_the_pass_leaves_a_graph_alone_that_it_does_not_understand() -> None:
    found = prefix.run(to_graph(decoder.decoder(cache=False)), IDS)
    for proto, why in ((_without_attention(), "no attention"), (decoder.decoder(layers=1), "of 2 attentions")):
        graph = to_graph(proto)
        written = whole(graph).SerializeToString(deterministic=True)
        (note,) = BakePrefix(found)(graph).notes
        assert isinstance(note, Skipped)
        assert why in note.text
        assert whole(graph).SerializeToString(deterministic=True) == written


def test_without_a_prefix_nothing_happens() -> None:
    assert BakePrefix()(to_graph(decoder.decoder())).notes == ()
    assert text_form.parse("bake-prefix", given=BakePrefix.requires).passes == (BakePrefix(),)


def test_notes_say_what_was_put_where() -> None:
    graph = to_graph(decoder.decoder())
    report = BakePrefix(prefix.run(graph, IDS))(graph)
    assert Changed("attention_mask", "3 ones in front") in report.notes
    assert Changed("position_ids", "3 added") in report.notes
