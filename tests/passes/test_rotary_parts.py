from __future__ import annotations

import numpy as np
import pytest

from qcompiler.ir.names import Names
from qcompiler.passes.node_writer import NodeWriter
from qcompiler.passes.rotary_parts import rotate
from qcompiler.runtime.session import Session
from tests.kit.rewrite import model, to_graph

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [0, 4])
def test_pairs_are_turned_by_their_angles(interleaved: bool, rotated: int) -> None:
    size = (rotated or 8) // 2
    angles = RNG.uniform(-3, 3, (1, 1, 5, size))
    proto = model(("Identity", "x", "y"), inputs={"x": (None, 2, None, 8)}, opset=18)
    graph = to_graph(proto)
    w = NodeWriter(graph, graph.nodes[0], Names(graph), np.dtype(np.float32))
    cos, sin = (w.constant(f.__name__, f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    w.result(0, rotate(w, w.reads(0), cos, sin, width=8, rotated=rotated, interleaved=interleaved))
    w.finish()
    x = RNG.standard_normal((2, 2, 5, 8)).astype(np.float32)
    (y,) = Session(graph, optimize=False).run({"x": x}).values()

    turned = x[..., : rotated or 8]
    pairs = (turned[..., ::2], turned[..., 1::2]) if interleaved else np.split(turned, 2, axis=-1)
    numbers = (pairs[0] + 1j * pairs[1]) * np.exp(1j * angles)
    expected = np.stack([numbers.real, numbers.imag], -1).reshape(turned.shape)
    if not interleaved:
        expected = np.concatenate([numbers.real, numbers.imag], -1)
    np.testing.assert_allclose(y[..., : rotated or 8], expected, atol=1e-5)
    np.testing.assert_array_equal(y[..., rotated or 8 :], x[..., rotated or 8 :])
