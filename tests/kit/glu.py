"""A small decoder of the Llama kind with seeded random weights, and the same function with outliers planted into it.

`stack()` is well-behaved. `stack(channels=OUTLIERS, spiking=SPIKING)` computes the same, to the rounding of FP32, and
has both kinds of activations that INT8 breaks on:

* Outlier channels: the same few channels of every norm are 50 to 100 times larger; the weights that read them make up
  for it. SmoothQuant can undo this.
* A spiking token: at the input of the down-projection of some layers, a few units answer token 0, and only that one,
  with values three orders of magnitude above the rest (Yang et al. 2024, https://arxiv.org/abs/2405.14428). They come
  in pairs, one twice the other with minus half its weights, so that they cancel: exactly in float, in INT8 only if both
  are in range. Their weights are of ordinary size, so no smoothing and no clipping helps: the layer has to stay float.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.kit.rewrite import Spec, model

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]


OUTLIERS = (50.0, 75.0, 100.0)
SPIKING = (1, 2)
TOKEN = 0  # the one that spikes; every sequence starts with it
LAYERS, HIDDEN, INNER, HEADS, VOCABULARY, LENGTH = 5, 128, 352, 4, 256, 32
PAIRS = 8  # of units that answer the token
MARK = 6.0  # the token's embedding in the channel that marks it; no other token and no layer writes there
ANSWER = 20.0  # weight of that channel in the units that spike: silu(20·4)·(20·4) is above 1000 times what others give


def stack(
    *,
    channels: Sequence[float] = (),
    spiking: Sequence[int] = (),
    rope: bool = True,
    layers: int = LAYERS,
    seed: int = 0,
) -> onnx.ModelProto:
    """The network: `ids` int64 [batch, length] to `logits` float32 [batch, length, VOCABULARY].

    Args:
        channels: factors of the outlier channels, one channel each.
        spiking: layers in whose down-projection the token spikes.
        rope: whether queries and keys are rotated by their position.
        layers: how many blocks.
        seed: of the weights. The same seed with other `channels` and `spiking` is the same function.
    """
    weights = _weights(layers, seed)
    for layer in spiking:
        _spike(weights, f"l{layer}")
    _scale(weights, layers, np.asarray(channels, np.float32))
    body: list[Spec] = [("Gather", "embedding ids", "x0"), *_positions(rope)]
    for layer in range(layers):
        body += _block(f"l{layer}", f"x{layer}", f"x{layer + 1}", rope)
    body += [*_norm(f"x{layers}", "last"), ("MatMul", "last.out head.w", "logits")]
    return model(
        *body,
        inputs={"ids": (np.int64, ("batch", "length"))},
        outputs=("logits",),
        weights={**weights, **_constants(rope)},
    )


def feeds(count: int, seed: int = 0, length: int = LENGTH) -> list[Feeds]:
    """Sequences of batch 1; each starts with the token that spikes, which is nowhere else."""
    rng = np.random.default_rng([17, seed])
    rows = rng.integers(1, VOCABULARY, (count, length))
    rows[:, 0] = TOKEN
    return [{"ids": row[None]} for row in rows]


def _weights(layers: int, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng([23, seed])

    def linear(rows: int, columns: int, gain: float = 1.0) -> NDArray[np.float32]:
        drawn: NDArray[np.float64] = gain / np.sqrt(rows) * rng.standard_normal((rows, columns))
        return drawn.astype(np.float32)

    embedding = rng.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
    embedding[:, -1] = 0
    embedding[TOKEN, -1] = MARK
    found = {"embedding": embedding, "last.g": np.ones(HIDDEN, np.float32), "head.w": linear(HIDDEN, VOCABULARY)}
    for name in (f"l{layer}" for layer in range(layers)):
        found |= {f"{name}.{norm}.g": rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32) for norm in ("n1", "n2")}
        found |= {f"{name}.{one}.w": linear(HIDDEN, HIDDEN) for one in "qkvo"}
        found |= {f"{name}.{one}.w": linear(HIDDEN, INNER) for one in ("gate", "up")}
        found[f"{name}.down.w"] = linear(INNER, HIDDEN)
        for one in ("o", "down"):
            found[f"{name}.{one}.w"][:, -1] *= 1e-3
        _pair(found, name)
    return found


def _pair(weights: dict[str, NDArray[np.float32]], name: str) -> None:
    """Makes the last units pairs whose sum is zero, whatever comes in: the places where spikes can hide."""
    first, second = slice(INNER - 2 * PAIRS, INNER - PAIRS), slice(INNER - PAIRS, INNER)
    weights[f"{name}.gate.w"][:, second] = weights[f"{name}.gate.w"][:, first]
    weights[f"{name}.up.w"][:, second] = weights[f"{name}.up.w"][:, first] / 2
    weights[f"{name}.down.w"][first] /= 2
    weights[f"{name}.down.w"][second] = -2 * weights[f"{name}.down.w"][first]


def _spike(weights: dict[str, NDArray[np.float32]], name: str) -> None:
    first, second = slice(INNER - 2 * PAIRS, INNER - PAIRS), slice(INNER - PAIRS, INNER)
    weights[f"{name}.gate.w"][-1, first.start :] = ANSWER
    weights[f"{name}.up.w"][-1, first] = ANSWER
    weights[f"{name}.up.w"][-1, second] = ANSWER / 2


def _scale(weights: dict[str, NDArray[np.float32]], layers: int, factors: NDArray[np.float32]) -> None:
    """Multiplies the first channels of every norm and divides the rows of the weights that read it."""
    readers: dict[str, tuple[str, ...]] = {"last": ("head",)}
    for name in (f"l{layer}" for layer in range(layers)):
        readers |= {f"{name}.n1": tuple(f"{name}.{one}" for one in "qkv")}
        readers |= {f"{name}.n2": (f"{name}.gate", f"{name}.up")}
    for norm, linears in readers.items():
        weights[f"{norm}.g"][: len(factors)] *= factors
        for linear in linears:
            weights[f"{linear}.w"][: len(factors)] /= factors[:, None]


def _constants(rope: bool) -> dict[str, Any]:
    size = HIDDEN // HEADS
    found: dict[str, Any] = {"two": np.float32(2), "epsilon": np.float32(1e-6), "root": np.float32(np.sqrt(size))}
    found |= {"split": np.array([0, 0, HEADS, size]), "merge": np.array([0, 0, HIDDEN])}
    found |= {"first": np.array([0]), "second": np.array([1]), "third": np.array([2])}
    found["never"] = np.triu(np.full((4 * LENGTH, 4 * LENGTH), -1e9, np.float32), 1)
    if rope:
        angle = np.outer(np.arange(4 * LENGTH), 10000.0 ** -(np.arange(0, size, 2) / size))
        angle = np.concatenate([angle, angle], axis=-1)
        found |= {"cosines": np.cos(angle).astype(np.float32), "sines": np.sin(angle).astype(np.float32)}
        found |= {"half": np.array([size // 2]), "end": np.array([size]), "back": np.array([-1])}
    return found


def _positions(rope: bool) -> list[Spec]:
    """Mask and rotation, cut to the length of the input."""
    body: list[Spec] = [
        ("Shape", "ids", "shape"),
        ("Slice", "shape second third first", "length"),
        ("Slice", "never first length first", "rows"),
        ("Slice", "rows first length second", "mask"),
    ]
    if rope:
        body += [("Slice", "cosines first length first", "cos"), ("Slice", "sines first length first", "sin")]
    return body


def _norm(x: str, name: str) -> list[Spec]:
    """RMSNorm in its parts, as exporters write it; the result is `NAME.out`."""
    return [
        ("Pow", f"{x} two", f"{name}.square"),
        ("ReduceMean", f"{name}.square", f"{name}.mean", {"axes": [-1], "keepdims": 1}),
        ("Add", f"{name}.mean epsilon", f"{name}.safe"),
        ("Sqrt", f"{name}.safe", f"{name}.root"),
        ("Div", f"{x} {name}.root", f"{name}.unit"),
        ("Mul", f"{name}.unit {name}.g", f"{name}.out"),
    ]


def _block(name: str, x: str, y: str, rope: bool) -> list[Spec]:
    """Attention and GLU, both residual."""
    body = _norm(x, f"{name}.n1")
    for one in "qkv":
        body += [
            ("MatMul", f"{name}.n1.out {name}.{one}.w", f"{name}.{one}"),
            ("Reshape", f"{name}.{one} split", f"{name}.{one}.r"),
            ("Transpose", f"{name}.{one}.r", f"{name}.{one}.t", {"perm": [0, 2, 1, 3]}),
        ]
    if rope:
        body += [*_rotated(f"{name}.q.t", f"{name}.q.p"), *_rotated(f"{name}.k.t", f"{name}.k.p")]
    query, key = (f"{name}.{one}.{'p' if rope else 't'}" for one in "qk")
    return [
        *body,
        ("Transpose", key, f"{name}.kt", {"perm": [0, 1, 3, 2]}),
        ("MatMul", f"{query} {name}.kt", f"{name}.s"),
        ("Div", f"{name}.s root", f"{name}.sd"),
        ("Add", f"{name}.sd mask", f"{name}.sm"),
        ("Softmax", f"{name}.sm", f"{name}.a", {"axis": -1}),
        ("MatMul", f"{name}.a {name}.v.t", f"{name}.av"),
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


def _rotated(x: str, y: str) -> list[Spec]:
    return [
        ("Slice", f"{x} first half back", f"{y}.low"),
        ("Slice", f"{x} half end back", f"{y}.high"),
        ("Neg", f"{y}.high", f"{y}.minus"),
        ("Concat", f"{y}.minus {y}.low", f"{y}.turned", {"axis": -1}),
        ("Mul", f"{x} cos", f"{y}.c"),
        ("Mul", f"{y}.turned sin", f"{y}.s"),
        ("Add", f"{y}.c {y}.s", y),
    ]
