"""Rounds of a loop that was written out are one layer, so what they read has one range.

A round alone has shown few values, and ranges that are made of few are too narrow for other data.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Final

import onnx_graphsurgeon as gs

from qcompiler.ir import linear
from qcompiler.plan import Candidate
from qcompiler.statistics.histogram import Histogram

ROUND: Final = re.compile(r"(.*)/round(_\d+)*$")  # how passes name the nodes of a round


def pooled(graph: gs.Graph, found: Iterable[Candidate], histograms: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """By activation, the histogram of all rounds together; only of layers that several rounds have with one weight.

    Args:
        graph: float graph.
        found: its candidates.
        histograms: of their activations; they are not changed.
    """
    nodes = {node.name: node for node in graph.nodes}
    rounds: dict[tuple[str, bytes], dict[str, None]] = {}
    for one in found:
        named = ROUND.match(one.node)
        weight = linear.weight_of(nodes[one.node]) if named and one.activation in histograms else None
        if named is None or weight is None:
            continue
        content = hashlib.blake2b(weight.tensor.values.tobytes(), digest_size=16).digest()
        rounds.setdefault((named[1], content), {})[one.activation] = None
    together: dict[str, Histogram] = {}
    for names in rounds.values():
        if len(names) < 2:
            continue
        whole = Histogram()
        for name in names:
            whole.merge(histograms[name])
        together.update(dict.fromkeys(names, whole))
    return together
