"""Every operator that opsets 8 to 23 defined again: the old node and what it is raised to give the same numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from qcompiler.passes.opsets._table import NEWEST
from qcompiler.passes.opsets.raise_opset import RaiseOpset
from qcompiler.runtime.schemas import versions
from qcompiler.runtime.session import Session
from tests.kit.opsets.node import Node
from tests.kit.opsets.nodes import nodes
from tests.kit.rewrite import to_graph

NODES = list(nodes())
LAST_BIT = ("AveragePool", "BatchNormalization")  # kernels that add up in another order
UNTRIED: Mapping[str, str] = {  # by operator: why it is not run
    "OptionalGetElement": "nothing feeds an optional value; only the types that it takes changed",
    "OptionalHasElement": "nothing feeds an optional value; its input may be left out since opset 18, and need not be",
}
NO_KERNEL = frozenset(  # of opset 22 in ONNX Runtime: the model stays at 21
    "Bernoulli GlobalLpPool MaxRoiPool Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike "
    "RoiAlign".split()
)


def steps(op: str) -> list[int]:
    return [opset for opset in versions(op) if 8 <= opset <= NEWEST]


def cases() -> list[tuple[Node, int]]:
    return [(one, opset - 1) for one in NODES for opset in steps(one.op) if opset > 7 and one.fits(opset - 1)]


@pytest.mark.parametrize(("node", "old"), [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in cases()])
def test_what_it_gives_stays(node: Node, old: int) -> None:
    proto = node.model(old)
    before = Session((proto, {}), optimize=False, threads=1).run(node.fed())
    graph = to_graph(proto)
    RaiseOpset(NEWEST)(graph)
    assert graph.opset == (21 if node.op in NO_KERNEL else NEWEST)
    after = Session(graph, optimize=False, threads=1).run(node.fed())
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        if node.op in LAST_BIT:
            np.testing.assert_allclose(value, after[name], rtol=0, atol=2 * np.spacing(np.abs(value).max()))
        else:
            np.testing.assert_array_equal(value, after[name], strict=True)


def test_every_change_of_every_operator_is_tried() -> None:
    known = {one.name for one in onnx.defs.get_all_schemas_with_history() if one.domain == ""}
    tried = {(node.op, old + 1) for node, old in cases()}
    lacking = sorted(
        f"{op}-{at}"
        for op in known
        for at in steps(op)
        if (op, at) not in tried and at != versions(op)[0] and op not in UNTRIED
    )
    assert " ".join(lacking) == ""
