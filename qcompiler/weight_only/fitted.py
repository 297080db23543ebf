"""INT8 weights beside INT8 activations, whose integers are fitted to what their layers read (GPTQ, `gptq.py`).

    minimise Σ_x ‖x·W - x·Ŵ‖²   in place of   ‖W - Ŵ‖²,   Ŵ = scale · integers, a scale for each output channel

Eight bits are enough for most weights. They are not where a few input channels carry most of the power: what smoothing
took from an outlier channel of the activation is in the weight then, whose steps grow for all other channels, and an
error in the weight of that channel points the same way in every token. GPTQ moves it to where inputs are small. It
costs nothing where the model runs, and the float weights stay what they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import linear
from qcompiler.ir import model as models
from qcompiler.ir.graph import is_op
from qcompiler.ir.operators import PRODUCTS
from qcompiler.ir.signature import Feeds
from qcompiler.plan import Candidate, FittedWeight
from qcompiler.planning.placement.candidates import Candidates
from qcompiler.statistics import hessian
from qcompiler.support.memory import put_down
from qcompiler.weight_only import gptq

if TYPE_CHECKING:
    from numpy.typing import NDArray


_OPERATIONS = 3  # products of K · K · N that rounding a weight takes: once down the rows, and a sweep


def fittable(graph: gs.Graph, found: Sequence[Candidate]) -> dict[str, gs.Node]:
    """By their names, the nodes whose weights [K, N] can be fitted: float, a scale for each output, ours to round."""
    nodes = {node.name: node for node in graph.nodes}
    return {one.node: nodes[one.node] for one in found if one.scales is None and _is_matrix(nodes[one.node], one)}


def work_of(graph: gs.Graph, found: Sequence[Candidate]) -> float:
    """Multiply-accumulates that fitting takes, beside those of the runs that show what layers read."""
    shared = _shared(graph, found)
    sizes = [one.shape for one in shared]
    factors = {one.activations: float(one.shape[0]) ** 3 / 3 for one in shared}
    return float(sum(_OPERATIONS * k * k * n for k, n in sizes)) + sum(factors.values())


def work_of_sample(graph: gs.Graph, found: Sequence[Candidate], macs: float) -> float:
    """The same of the second moments of a sample: K · K for each row, of which products of K · N take so many.

    Args:
        graph: the float graph.
        found: its layers.
        macs: multiply-accumulates of the model on a sample.
    """
    shared = _shared(graph, found)
    rows = macs / max(sum(one.matrix.size for one in shared), 1)
    return float(sum({one.activations: len(one.matrix) ** 2 for one in shared}.values())) * rows


def passes(model: models.Model, found: Sequence[Candidate]) -> int:
    """How often the samples are run: more than once where Hessians are too large to be summed together."""
    return hessian.runs(model, _depths(model.graph, found))


def fitted(
    model: models.Model, layers: Candidates, feeds: Sequence[Feeds], advance: Callable[[int], None] | None = None
) -> Candidates:
    """The same layers, with weights fitted to some samples where that can be done.

    A weight that several layers multiply by, such as the rounds of a loop, is fitted once to what all of them read, and
    stays one.

    Args:
        model: the float model.
        layers: of it.
        feeds: samples to fit to.
        advance: called with the number of runs of the model since the last call.

    Raises:
        DataError: a feed does not fit the model, or what a layer reads is not finite.
        ModelError: a weight is not finite, or ONNX Runtime cannot run the model.
    """
    waiting: dict[tuple[str, ...], list[_Shared]] = {}
    for one in _shared(model.graph, layers.found):
        waiting.setdefault(one.activations, []).append(one)
    sums: dict[tuple[str, ...], hessian.Moments] = {}
    left = {names: set(names) for names in waiting}
    weights: dict[str, FittedWeight] = {}
    for part in hessian.hessians(model, _depths(model.graph, layers.found), feeds, advance=advance):
        for name, (moments,) in part.items():
            for names in [names for names in waiting if name in left[names]]:
                sums[names] = sums[names] + moments if names in sums else moments
                left[names].discard(name)
                if not left[names]:
                    weights |= _fitted(waiting[names], sums.pop(names))
    found = tuple(replace(one, fitted=weights.get(one.node)) for one in layers.found)
    return Candidates(found, layers.refused)


@dataclass(frozen=True, eq=False)
class _Shared:
    """A node with a weight [K, N], and all layers that multiply by it."""

    node: gs.Node
    members: Sequence[Candidate]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight."""
        found = linear.matrix_shape(self.node)
        assert found is not None  # `fittable` has looked
        return found

    @property
    def matrix(self) -> NDArray[np.float32]:
        """The weight."""
        found = linear.matrix(self.node)
        assert found is not None
        return found

    @property
    def activations(self) -> tuple[str, ...]:
        """What the layers read, each once."""
        return tuple(dict.fromkeys(one.activation for one in self.members))


def _shared(graph: gs.Graph, found: Sequence[Candidate]) -> list[_Shared]:
    """The weights that can be fitted, each once, by their contents: copies are made one again when they are stored."""
    nodes = fittable(graph, found)
    alike: dict[tuple[Any, ...], list[Candidate]] = {}
    for one in found:
        if one.node in nodes:
            alike.setdefault((_sample(nodes[one.node]), one.axis), []).append(one)
    groups: dict[tuple[Any, ...], _Shared] = {}
    for key, members in alike.items():
        for one in members:
            own = (*key, _content(nodes[one.node]) if len(members) > 1 else b"")
            before = groups[own].members if own in groups else ()
            groups[own] = _Shared(nodes[one.node], (*before, one))
    order = {one.node: at for at, one in enumerate(found)}
    return sorted(groups.values(), key=lambda one: order[one.members[0].node])


def _sample(node: gs.Node) -> tuple[Any, ...]:
    """What differs where weights differ, mostly, and takes no time."""
    matrix = linear.matrix(node)
    assert matrix is not None
    some = matrix[:: -(-len(matrix) // 8), :: -(-matrix.shape[1] // 8)]
    return matrix.shape, np.ascontiguousarray(some).tobytes()


def _content(node: gs.Node) -> bytes:
    matrix = linear.matrix(node)
    assert matrix is not None
    return hashlib.blake2b(np.ascontiguousarray(matrix).data, digest_size=16).digest()


def _depths(graph: gs.Graph, found: Sequence[Candidate]) -> dict[str, int]:
    """Input channels by activation."""
    shapes = {name: linear.matrix_shape(node) for name, node in fittable(graph, found).items()}
    return {one.activation: shape[0] for one in found if (shape := shapes.get(one.node)) is not None}


def _fitted(weights: Sequence[_Shared], moments: hessian.Moments) -> dict[str, FittedWeight]:
    """By node name, weights that meet the same rows."""
    factor = gptq.factor(moments.hessian, size=None, shrink=moments.shrinkage)
    found: dict[str, FittedWeight] = {}
    for one in weights:
        blocks, axis = gptq.gptq(one.matrix, factor, size=None, format="int8", half=False), one.members[0].axis
        stored_so = axis is not None and axis % 2 == 1
        values = put_down(blocks.values if stored_so else np.ascontiguousarray(blocks.values.T))
        weight = FittedWeight(values, blocks.scales)
        found.update(dict.fromkeys((member.node for member in one.members), weight))
    return found


def _is_matrix(node: gs.Node, one: Candidate) -> bool:
    """Whether the weight has a row for each input channel, and is stored as that, perhaps turned."""
    weight = linear.weight_of(node) if one.op in PRODUCTS and one.axis is not None else None
    if weight is None or len(weight.tensor.shape) != 2 or node.attrs.get("transA", 0):
        return False
    turned = all(is_op(link, "Transpose", "Identity") for link in weight.chain)
    return turned and linear.matrix_shape(node) is not None
