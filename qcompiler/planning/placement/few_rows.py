"""Products that have one row as long as one sample is served at a time, and what of them is worth INT8 all the same.

Where the batch is free and nobody asked for a profile, one sample at a time is how the data is written and not how the
model need be served. So a model that consists of such products, a recommender or a net over points, is quantized. But
the last layers of a network over pictures are next to no work, are bound by memory wherever one sample is served, and
stand right in front of what is judged: to quantize them costs much and gains nothing. The line between the two is the
share of the work that may stay in high precision anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import onnx_graphsurgeon as gs

from qcompiler.ir.macs import Shapes
from qcompiler.plan import Candidate, Refusal
from qcompiler.planning.placement.candidates import small
from qcompiler.target import Target


def refusals(
    graph: gs.Graph,
    found: Iterable[Candidate],
    usual: Shapes,
    macs: Mapping[str, int],
    target: Target,
    min_share: float,
) -> list[Refusal]:
    """The products of one row that are too little of the work to be quantized; none where they are much of it.

    Args:
        graph: the float graph.
        found: the candidates that have several rows where several samples are served.
        usual: shapes of tensors at the usual sizes of the data.
        macs: multiply-accumulates by node, of all that multiply.
        target: on a CPU small weights are a gain.
        min_share: share of the work that is to be quantized, 0..1.
    """
    alone = [one for one in small(graph, found, usual, target) if one.rule == "gemv"]
    total = sum(macs.values())
    share = sum(macs.get(one.node, 0) for one in alone) / total if total else 0.0
    if share > 1 - min_share:
        return []
    more = f" where one sample is served, and with others like it {share:.1%} of the work"
    return [replace(one, why=one.why + more) for one in alone]
