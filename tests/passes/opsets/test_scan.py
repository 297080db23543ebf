from __future__ import annotations

import pytest

from qcompiler.errors import ModelError
from qcompiler.passes.opsets.raise_opset import RaiseOpset
from tests.kit.rewrite import check, graph_proto, model, to_graph

BODY = graph_proto([("Add", "h p", "n"), ("Mul", "n k", "m")], {"h": (3,), "p": (3,)}, ["n", "m"])
INPUTS = {"s": ("n", 3), "q": ("n", 5, 3), "k": (3,)}


def test_a_batch_becomes_a_scan_around() -> None:
    spec = ("Scan", "_ s q", "y z", {"body": BODY, "num_scan_inputs": 1, "directions": [1]})
    graph, _ = check(RaiseOpset(21), model(spec, inputs=INPUTS, opset=8, outputs=["y", "z"]), ops=["Scan"])
    (inner,) = graph.nodes[0].attrs["body"].nodes
    assert inner.op == "Scan"
    assert inner.attrs["scan_input_directions"] == [1]


def test_lengths_of_sequences_are_refused() -> None:
    spec = ("Scan", "l s q", "y z", {"body": BODY, "num_scan_inputs": 1})
    inputs = {"l": ("int64", ("n",)), **INPUTS}
    graph = to_graph(model(spec, inputs=inputs, opset=8, outputs=["y", "z"]))
    with pytest.raises(ModelError, match=r"'Y' \(Scan\) .* sequence_lens"):
        RaiseOpset(21)(graph)
