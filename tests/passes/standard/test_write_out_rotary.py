from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qcompiler.ir import graph as graphs
from qcompiler.passes.standard.write_out_rotary import WriteOutRotary
from tests.kit.rewrite import check, check_skipped, model

RNG = np.random.default_rng(5)


def rotary(
    rank: int, interleaved: int, part: int, positions: bool, dtype: Any = np.float32
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Two heads, 8 wide; batch and rows are open."""
    angles = (part or 8) // 2
    feed: dict[str, Any] = {"x": RNG.standard_normal((2, 5, 16) if rank == 3 else (2, 2, 5, 8)).astype(dtype)}
    inputs: dict[str, Any] = {"x": (dtype, (None, None, 16) if rank == 3 else (None, 2, None, 8))}
    tables = {name: RNG.standard_normal((9, angles)).astype(dtype) for name in ("cos", "sin")}
    if positions:
        feed["at"], inputs["at"] = RNG.integers(0, 9, (2, 5)), (np.int64, (None, None))
    else:
        inputs |= dict.fromkeys(tables, (dtype, (None, None, angles)))
        feed |= {name: RNG.standard_normal((2, 5, angles)).astype(dtype) for name in tables}
    attrs = {"interleaved": interleaved, "rotary_embedding_dim": part, **({"num_heads": 2} if rank == 3 else {})}
    proto = model(
        ("RotaryEmbedding", "x cos sin" + (" at" if positions else ""), "y", attrs),
        inputs=inputs,
        weights=tables if positions else {},
        opset=23,
    )
    proto.ir_version = 11
    return proto, feed


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("part", [0, 4])
@pytest.mark.parametrize("positions", [False, True])
def test_every_form_is_what_onnx_runtime_computes(rank: int, interleaved: int, part: int, positions: bool) -> None:
    graph, _ = check(WriteOutRotary(), *rotary(rank, interleaved, part, positions))
    assert not any(graphs.is_op(node, "RotaryEmbedding") for node in graph.nodes)


def test_in_half() -> None:
    check(WriteOutRotary(), *rotary(4, 0, 0, True, np.float16), tolerance=1e-3)


def test_a_head_of_unknown_width_stays() -> None:
    proto, _ = rotary(4, 0, 0, True)
    proto.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    check_skipped(WriteOutRotary(), proto, "width")
