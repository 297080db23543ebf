"""A tiny decoder of the Llama kind with random weights, with a key-value cache or without; both compute the same.

With a cache its inputs and outputs are named as in the ecosystem: `input_ids`, `attention_mask`, `position_ids` and
`past_key_values.N.key` / `.value` in, `logits` and `present.N.key` / `.value` out. Without one it has `input_ids` and
`logits` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.kit.rewrite import Spec, model

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]


LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY, LONGEST = 2, 64, 160, 4, 2, 128, 256
SIZE = HIDDEN // HEADS


def decoder(*, cache: bool = True, layers: int = LAYERS, seed: int = 0, batch: int | str = "batch") -> onnx.ModelProto:
    """The network; `cache` says whether it takes and gives keys and values, `batch` may fix the batch."""
    weights = _weights(layers, seed)
    body: list[Spec] = [("Gather", "embedding input_ids", "x0"), *_lengths(cache), *_mask(cache), *_angles(cache)]
    for layer in range(layers):
        body += _block(f"l{layer}", f"x{layer}", f"x{layer + 1}", layer, cache)
    body += [*_norm(f"x{layers}", "last"), ("MatMul", "last.out head.w", "logits")]
    read = {name for spec in body for name in spec[1].split()}
    return model(
        *body,
        inputs=_inputs(cache, layers, batch),
        outputs=("logits", *(name for one in range(layers) for name in _cache("present", one) if cache)),
        weights={name: value for name, value in {**weights, **_constants()}.items() if name in read},
    )


def tokens(batch: int, length: int, seed: int = 0) -> NDArray[np.int64]:
    """Random token ids [batch, length]."""
    return np.random.default_rng([29, seed]).integers(0, VOCABULARY, (batch, length))


def feeds(ids: NDArray[np.int64], past: Sequence[NDArray[np.float32]] = (), layers: int = LAYERS) -> Feeds:
    """All inputs of the decoder with a cache; `past` has key and value of each layer in turn, empty for none."""
    batch, length = ids.shape
    past = past or [np.zeros((batch, KV_HEADS, 0, SIZE), np.float32)] * (2 * layers)
    before = past[0].shape[2]
    names = [name for layer in range(layers) for name in _cache("past_key_values", layer)]
    return {
        "input_ids": ids,
        "attention_mask": np.ones((batch, before + length), np.int64),
        "position_ids": np.tile(np.arange(before, before + length), (batch, 1)),
        **dict(zip(names, past, strict=True)),
    }


def _inputs(cache: bool, layers: int, batch: int | str) -> dict[str, Any]:
    found: dict[str, Any] = {"input_ids": (np.int64, (batch, "sequence_length"))}
    if not cache:
        return found
    found["attention_mask"] = (np.int64, (batch, "past_sequence_length + sequence_length"))
    found["position_ids"] = (np.int64, (batch, "sequence_length"))
    shape = (batch, KV_HEADS, "past_sequence_length", SIZE)
    return found | {name: (np.float32, shape) for one in range(layers) for name in _cache("past_key_values", one)}


def _cache(prefix: str, layer: int) -> tuple[str, str]:
    return f"{prefix}.{layer}.key", f"{prefix}.{layer}.value"


def _weights(layers: int, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng([31, seed])

    def linear(rows: int, columns: int) -> NDArray[np.float32]:
        drawn: NDArray[np.float64] = rng.standard_normal((rows, columns)) / np.sqrt(rows)
        return drawn.astype(np.float32)

    found = {"embedding": rng.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)}
    found |= {"last.g": np.ones(HIDDEN, np.float32), "head.w": linear(HIDDEN, VOCABULARY)}
    for name in (f"l{layer}" for layer in range(layers)):
        found |= {f"{name}.{norm}.g": rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32) for norm in ("n1", "n2")}
        found |= {f"{name}.{one}.w": linear(HIDDEN, HEADS * SIZE) for one in "qo"}
        found |= {f"{name}.{one}.w": linear(HIDDEN, KV_HEADS * SIZE) for one in "kv"}
        found |= {f"{name}.{one}.w": linear(HIDDEN, INNER) for one in ("gate", "up")}
        found[f"{name}.down.w"] = linear(INNER, HIDDEN)
    return found


def _constants() -> dict[str, Any]:
    angle = np.outer(np.arange(LONGEST), 10000.0 ** -(np.arange(0, SIZE, 2) / SIZE))
    angle = np.concatenate([angle, angle], axis=-1)
    found: dict[str, Any] = {"cosines": np.cos(angle).astype(np.float32), "sines": np.sin(angle).astype(np.float32)}
    found |= {"two": np.float32(2), "epsilon": np.float32(1e-6), "root": np.float32(np.sqrt(SIZE))}
    found |= {"zero": np.float32(0), "never": np.float32(-1e9), "none": np.int64(0), "one": np.int64(1)}
    found |= {"axis0": np.array([0]), "axis1": np.array([1]), "axis2": np.array([2]), "scalar": np.array([], np.int64)}
    found |= {"inner": np.array([1, 2])}
    found |= {"half": np.array([SIZE // 2]), "end": np.array([SIZE]), "back": np.array([-1])}
    found |= {"merge": np.array([0, 0, HEADS * SIZE]), "groups": np.array([1, 1, HEADS // KV_HEADS, 1, 1])}
    found |= {"q.split": np.array([0, 0, HEADS, SIZE]), "kv.split": np.array([0, 0, KV_HEADS, SIZE])}
    return found | {"grouped": np.array([0, HEADS, -1, SIZE])}


def _lengths(cache: bool) -> list[Spec]:
    """`sequence` and `total` as scalars."""
    counted = "attention_mask" if cache else "input_ids"
    found: list[Spec] = []
    for name, of in (("sequence", "input_ids"), ("total", counted)):
        found += [
            ("Shape", of, f"{name}.shape"),
            ("Slice", f"{name}.shape axis1 axis2 axis0", f"{name}.one"),
            ("Reshape", f"{name}.one scalar", name),
        ]
    return [*found, ("Sub", "total sequence", "before")]


def _mask(cache: bool) -> list[Spec]:
    """0 where a query may look, `never` elsewhere: later positions, and what the attention mask hides."""
    body: list[Spec] = [
        ("Range", "none total one", "keys"),
        ("Range", "before total one", "queries"),
        ("Unsqueeze", "queries axis1", "rows"),
        ("LessOrEqual", "keys rows", "causal"),
    ]
    if not cache:
        return [*body, ("Where", "causal zero never", "mask")]
    return [
        *body,
        ("Cast", "attention_mask", "shown", {"to": 9}),
        ("Unsqueeze", "shown inner", "shown4"),
        ("And", "causal shown4", "visible"),
        ("Where", "visible zero never", "mask"),
    ]


def _angles(cache: bool) -> list[Spec]:
    at = "position_ids" if cache else "at"
    body: list[Spec] = [] if cache else [("Unsqueeze", "queries axis0", "at")]
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
        for past, present, new in zip(
            _cache("past_key_values", layer), _cache("present", layer), (key, value), strict=True
        ):
            body.append(("Concat", f"{past} {new}", present, {"axis": 2}))
        key, value = _cache("present", layer)
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
