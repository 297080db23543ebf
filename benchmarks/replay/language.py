"""The decoders of the replay, with a key-value cache or without, and a tokenizer and text for them.

Two blocks of the Llama kind: RMSNorm with outlier channels, rotated queries and keys, grouped heads, GLU. Token 0,
which begins every text, spikes at the input of the second down-projection: units in pairs answer it that cancel in
float.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.replay.models import OUTLIERS, Feeds, Spec, Subject, model

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY, LONGEST = 2, 64, 160, 4, 2, 128, 128
SIZE = HIDDEN // HEADS
PAIRS = 4  # of units that spike
PARTS = ("key", "value")
LLAMA = f"""
import torch
import transformers


def network():
    torch.manual_seed(71)
    sizes = dict(hidden_size={HIDDEN}, intermediate_size={INNER}, num_hidden_layers=1, vocab_size={VOCABULARY})
    heads = dict(num_attention_heads={HEADS}, num_key_value_heads={KV_HEADS})
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()
"""


def spiking() -> Subject:
    """Without a cache: input_ids [batch, length] to logits [batch, length, VOCABULARY]."""
    return Subject(_decoder(cache=False), [{"input_ids": _ids(seed, 12 + 2 * (seed % 3))} for seed in range(8)])


def cached() -> Subject:
    """With a cache, half of the samples with some of it filled; its weights are in a file beside it."""
    return Subject(_decoder(cache=True), [_feeds(seed) for seed in range(8)], external=True)


def llama() -> Subject:
    """A decoder that is exported from transformers first, with its cache."""
    return Subject(LLAMA, [_feeds(seed, layers=1) for seed in range(4)])


def tokenizer() -> str:
    """The text of a tokenizer.json: a word a token, and token 0 in front of every text."""
    words = {f"w{at}": at for at in range(1, VOCABULARY)}
    first = {"SpecialToken": {"id": "[bos]", "type_id": 0}}
    one, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    added = {"id": 0, "content": "[bos]", "special": True}
    added |= {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [added],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [first, one],
                "pair": [first, one, other],
                "special_tokens": {"[bos]": {"id": "[bos]", "ids": [0], "tokens": ["[bos]"]}},
            },
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": {"[bos]": 0, **words}, "unk_token": "w1"},
        }
    )


def text() -> str:
    """Lines of words that the tokenizer knows."""
    rows = np.random.default_rng(67).integers(1, VOCABULARY, (120, 9))
    return "\n".join(" ".join(f"w{at}" for at in row) for row in rows) + "\n"


def _ids(seed: int, length: int) -> NDArray[np.int64]:
    ids = np.random.default_rng([29, seed]).integers(1, VOCABULARY, (1, length))
    ids[:, 0] = 0
    return ids


def _feeds(seed: int, layers: int = LAYERS) -> Feeds:
    before = 4 * (seed % 2)
    rng = np.random.default_rng([31, seed])
    ids = _ids(seed, 12) if not before else rng.integers(1, VOCABULARY, (1, 12))
    found: Feeds = {"input_ids": ids, "attention_mask": np.ones((1, before + 12), np.int64)}
    found["position_ids"] = np.arange(before, before + 12)[None]
    for layer in range(layers):
        for part in PARTS:
            drawn = rng.standard_normal((1, KV_HEADS, before, SIZE))
            found[f"past_key_values.{layer}.{part}"] = drawn.astype(np.float32)
    return found


def _decoder(*, cache: bool) -> Any:
    body: list[Spec] = [("Gather", "embedding input_ids", "x0"), *_positions(cache)]
    for layer in range(LAYERS):
        body += _block(f"l{layer}", f"x{layer}", f"x{layer + 1}", layer, cache)
    body += [*_norm(f"x{LAYERS}", "last"), ("MatMul", "last.out head.w", "logits")]
    read = {name for spec in body for name in spec[1].split()}
    weights = {name: value for name, value in {**_weights(), **_constants()}.items() if name in read}
    inputs: dict[str, Any] = {"input_ids": (np.int64, ("batch", "sequence_length"))}
    outputs = ["logits"]
    if cache:
        inputs["attention_mask"] = (np.int64, ("batch", "past_sequence_length + sequence_length"))
        inputs["position_ids"] = (np.int64, ("batch", "sequence_length"))
        shape = ("batch", KV_HEADS, "past_sequence_length", SIZE)
        names = [f"{layer}.{part}" for layer in range(LAYERS) for part in PARTS]
        inputs |= {f"past_key_values.{name}": (np.float32, shape) for name in names}
        outputs += [f"present.{name}" for name in names]
    return model(body, inputs, outputs, weights, opset=17)


def _weights() -> dict[str, Any]:
    rng = np.random.default_rng(61)

    def linear(rows: int, columns: int) -> NDArray[np.float32]:
        drawn: NDArray[np.float64] = rng.standard_normal((rows, columns)) / np.sqrt(rows)
        return drawn.astype(np.float32)

    found: dict[str, Any] = {"embedding": rng.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)}
    found["embedding"][:, -1] = 0
    found["embedding"][0, -1] = 6  # the channel that marks the first token; no other token and no layer writes there
    found |= {"last.g": np.ones(HIDDEN, np.float32), "head.w": linear(HIDDEN, VOCABULARY)}
    for name in (f"l{layer}" for layer in range(LAYERS)):
        found |= {f"{name}.{norm}.g": rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32) for norm in ("n1", "n2")}
        found |= {f"{name}.{one}.w": linear(HIDDEN, HIDDEN) for one in "qo"}
        found |= {f"{name}.{one}.w": linear(HIDDEN, KV_HEADS * SIZE) for one in "kv"}
        found |= {f"{name}.{one}.w": linear(HIDDEN, INNER) for one in ("gate", "up")}
        found[f"{name}.down.w"] = linear(INNER, HIDDEN)
        for one in ("o", "down"):
            found[f"{name}.{one}.w"][:, -1] *= 1e-3
    _spike(found, "l1")
    for norm, readers in {"l0.n1": "qkv", "l0.n2": ("gate", "up"), "l1.n1": "qkv", "l1.n2": ("gate", "up")}.items():
        found[f"{norm}.g"][: len(OUTLIERS)] *= OUTLIERS
        for one in readers:
            found[f"{norm[:2]}.{one}.w"][: len(OUTLIERS)] /= OUTLIERS[:, None]
    return found


def _spike(found: dict[str, Any], name: str) -> None:
    """The last units answer the mark in pairs, one twice the other with minus half its weights."""
    first, second = slice(INNER - 2 * PAIRS, INNER - PAIRS), slice(INNER - PAIRS, INNER)
    found[f"{name}.gate.w"][:, second] = found[f"{name}.gate.w"][:, first]
    found[f"{name}.up.w"][:, second] = found[f"{name}.up.w"][:, first] / 2
    found[f"{name}.down.w"][second] = -2 * found[f"{name}.down.w"][first]
    found[f"{name}.gate.w"][-1, first.start :] = 20
    found[f"{name}.up.w"][-1, first] = 20
    found[f"{name}.up.w"][-1, second] = 10


def _constants() -> dict[str, Any]:
    angle = np.outer(np.arange(LONGEST), 10000.0 ** -(np.arange(0, SIZE, 2) / SIZE))
    angle = np.concatenate([angle, angle], axis=-1)
    found: dict[str, Any] = {"cosines": np.cos(angle).astype(np.float32), "sines": np.sin(angle).astype(np.float32)}
    found |= {"two": np.float32(2), "epsilon": np.float32(1e-6), "root": np.float32(np.sqrt(SIZE))}
    found |= {"zero": np.float32(0), "never": np.float32(-1e9), "none": np.int64(0), "one": np.int64(1)}
    found |= {"axis0": np.array([0]), "axis1": np.array([1]), "axis2": np.array([2]), "scalar": np.array([], np.int64)}
    found |= {"inner": np.array([1, 2]), "half": np.array([SIZE // 2]), "end": np.array([SIZE]), "back": np.array([-1])}
    found |= {"merge": np.array([0, 0, HEADS * SIZE]), "groups": np.array([1, 1, HEADS // KV_HEADS, 1, 1])}
    found |= {"q.split": np.array([0, 0, HEADS, SIZE]), "kv.split": np.array([0, 0, KV_HEADS, SIZE])}
    return found | {"grouped": np.array([0, HEADS, -1, SIZE])}


def _positions(cache: bool) -> list[Spec]:
    """The mask, 0 where a query may look and `never` elsewhere, and `cos` and `sin` of each position."""
    body: list[Spec] = []
    for name, of in (("sequence", "input_ids"), ("total", "attention_mask" if cache else "input_ids")):
        body += [("Shape", of, f"{name}.shape"), ("Slice", f"{name}.shape axis1 axis2 axis0", f"{name}.one")]
        body += [("Reshape", f"{name}.one scalar", name)]
    body += [
        ("Sub", "total sequence", "before"),
        ("Range", "none total one", "keys"),
        ("Range", "before total one", "queries"),
        ("Unsqueeze", "queries axis1", "rows"),
        ("LessOrEqual", "keys rows", "causal"),
    ]
    seen, at = "causal", "at"
    if cache:
        body += [("Cast", "attention_mask", "shown", {"to": 9}), ("Unsqueeze", "shown inner", "shown4")]
        body += [("And", "causal shown4", "visible")]
        seen, at = "visible", "position_ids"
    else:
        body += [("Unsqueeze", "queries axis0", "at")]
    body += [("Where", f"{seen} zero never", "mask")]
    for name, of in (("cos", "cosines"), ("sin", "sines")):
        body += [("Gather", f"{of} {at}", f"{name}3"), ("Unsqueeze", f"{name}3 axis1", name)]
    return body


def _norm(x: str, name: str) -> list[Spec]:
    return [
        ("Pow", f"{x} two", f"{name}.square"),
        ("ReduceMean", f"{name}.square", f"{name}.mean", {"axes": [-1], "keepdims": 1}),
        ("Add", f"{name}.mean epsilon", f"{name}.safe"),
        ("Sqrt", f"{name}.safe", f"{name}.root"),
        ("Div", f"{x} {name}.root", f"{name}.unit"),
        ("Mul", f"{name}.unit {name}.g", f"{name}.out"),
    ]


def _rotated(x: str, y: str) -> list[Spec]:
    return [
        ("Slice", f"{x} axis0 half back", f"{y}.low"),
        ("Slice", f"{x} half end back", f"{y}.high"),
        ("Neg", f"{y}.high", f"{y}.minus"),
        ("Concat", f"{y}.minus {y}.low", f"{y}.turned", {"axis": -1}),
        ("Mul", f"{x} cos", f"{y}.c"),
        ("Mul", f"{y}.turned sin", f"{y}.s"),
        ("Add", f"{y}.c {y}.s", y),
    ]


def _repeated(x: str, y: str) -> list[Spec]:
    """Each head of keys or values serves several heads of queries."""
    return [
        ("Unsqueeze", f"{x} axis2", f"{y}.5"),
        ("Shape", f"{y}.5", f"{y}.size"),
        ("Mul", f"{y}.size groups", f"{y}.many"),
        ("Expand", f"{y}.5 {y}.many", f"{y}.e"),
        ("Reshape", f"{y}.e grouped", y),
    ]


def _block(name: str, x: str, y: str, layer: int, cache: bool) -> list[Spec]:
    body = _norm(x, f"{name}.n1")
    for one, split in (("q", "q.split"), ("k", "kv.split"), ("v", "kv.split")):
        body += [
            ("MatMul", f"{name}.n1.out {name}.{one}.w", f"{name}.{one}"),
            ("Reshape", f"{name}.{one} {split}", f"{name}.{one}.r"),
            ("Transpose", f"{name}.{one}.r", f"{name}.{one}.t", {"perm": [0, 2, 1, 3]}),
        ]
    body += [*_rotated(f"{name}.q.t", f"{name}.q.p"), *_rotated(f"{name}.k.t", f"{name}.k.p")]
    key, value = f"{name}.k.p", f"{name}.v.t"
    if cache:
        for part, new in zip(PARTS, (key, value), strict=True):
            past = f"past_key_values.{layer}.{part}"
            body.append(("Concat", f"{past} {new}", f"present.{layer}.{part}", {"axis": 2}))
        key, value = (f"present.{layer}.{part}" for part in PARTS)
    return [
        *body,
        *_repeated(key, f"{name}.k.h"),
        *_repeated(value, f"{name}.v.h"),
        ("Transpose", f"{name}.k.h", f"{name}.kt", {"perm": [0, 1, 3, 2]}),
        ("MatMul", f"{name}.q.p {name}.kt", f"{name}.s"),
        ("Div", f"{name}.s root", f"{name}.sd"),
        ("Add", f"{name}.sd mask", f"{name}.sm"),
        ("Softmax", f"{name}.sm", f"{name}.a", {"axis": -1}),
        ("MatMul", f"{name}.a {name}.v.h", f"{name}.av"),
        ("Transpose", f"{name}.av", f"{name}.avt", {"perm": [0, 2, 1, 3]}),
        ("Reshape", f"{name}.avt merge", f"{name}.c"),
        ("MatMul", f"{name}.c {name}.o.w", f"{name}.o"),
        ("Add", f"{x} {name}.o", f"{name}.x"),
        *_norm(f"{name}.x", f"{name}.n2"),
        ("MatMul", f"{name}.n2.out {name}.gate.w", f"{name}.gate"),
        ("MatMul", f"{name}.n2.out {name}.up.w", f"{name}.up"),
        ("Sigmoid", f"{name}.gate", f"{name}.sigmoid"),
        ("Mul", f"{name}.gate {name}.sigmoid", f"{name}.silu"),
        ("Mul", f"{name}.silu {name}.up", f"{name}.glu"),
        ("MatMul", f"{name}.glu {name}.down.w", f"{name}.down"),
        ("Add", f"{name}.x {name}.down", y),
    ]
