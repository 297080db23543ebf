"""x·W  ⇒  x_n·W_n + x_o·W_o: channels of an activation that are far larger than the others get a product of their own.

After Dettmers et al. 2022, "LLM.int8()", section 3.2, with the outlier channels o fixed when the model is compiled. The
pass is float and exact; what comes later quantizes the normal channels n and leaves the outlier product alone. Three
layouts, which differ in what reaches the INT8 product:

    mask      x∘m · W_n + Gather(x)·W_o     m is 0 at outliers and 1 elsewhere, W_n has zeros in their rows
    gather    Gather(x)·W_n + Gather(x)·W_o
    split     Split(x') → x'_n·W_n + x'_o·W_o      what makes x was reordered once, outliers last

A mask costs a multiplication that engines do in the kernel that rounds x, and leaves the depth of the product as it is,
a multiple of what tensor cores take; bitsandbytes zeroes those channels as well. Where a reordering is not possible, a
split falls back to a mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.ir import linear
from qcompiler.ir.edit import (
    add_constant,
    insert_after,
    insert_before,
    remove_nodes,
    set_input,
    set_output,
    sort,
)
from qcompiler.ir.graph import dtype_of, is_constant, is_op, producer, values_of
from qcompiler.ir.names import Names
from qcompiler.passes.base import Changed, Fact, Note, Pass, Skipped
from qcompiler.passes.channels import _permutation as permutation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]
    Key = tuple[int, bytes]


OUTLIERS: Final = "/outliers"  # what is appended to the name of a node for that of its outlier product
MOST_UNION = 2.0  # outliers of all layers along one residual stream, to those of one layer, from which each is masked


@dataclass(frozen=True)
class LlmInt8(Pass):
    """Multiply outlier channels of activations apart from the others.

    Attributes:
        channels: by name of a MatMul or Gemm with a constant weight, the input channels to take out.
        layout: mask, gather or split.
    """

    channels: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False, compare=False)
    layout: str = "mask"

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.CONSTANTS, Fact.UNSHARED})
    exact_to: ClassVar[float | None] = 1e-4  # as other folds; sums in another order round otherwise in FP32

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per node of `channels`, in graph order, behind those of what was reordered."""
        names = Names(graph)
        present = {node.name for node in graph.nodes}
        wanted: dict[str, Indices] = {}
        nodes: list[gs.Node] = []
        for node in graph.nodes:
            if node.name not in self.channels:
                continue
            picked = np.unique(np.asarray(self.channels[node.name], np.int64))
            why = "it is split already" if node.name + OUTLIERS in present else refusal(node, picked)
            if why:
                yield Skipped(node.name, why)
                continue
            wanted[node.name] = picked
            nodes.append(node)
        moved: set[str] = set()
        if self.layout == "split":
            yield from _reorder(graph, nodes, wanted, moved, names)
        parts: dict[Key, tuple[gs.Tensor, gs.Tensor]] = {}
        for node in nodes:
            layout = "mask" if self.layout == "split" and node.name not in moved else self.layout
            yield _split(graph, node, wanted[node.name], layout, parts, names)
        for name in self.channels.keys() - present:
            yield Skipped(name, "there is no such node")
        sort(graph)


def refusal(node: gs.Node, picked: Indices) -> str:
    """Why the channels `picked` (sorted) of a node cannot be split off; empty where they can."""
    weight = linear.matrix(node) if is_op(node, "MatMul", "Gemm") else None
    if weight is None:
        return "it is no product with a constant float matrix on its right"
    if is_constant(node.inputs[0]) or node.attrs.get("transA", 0):
        return "its channels do not lie on the last axis of an activation"
    if not picked.size:
        return "no channel was named"
    if picked[0] < 0 or picked[-1] >= len(weight):
        return f"it has channels 0 to {len(weight) - 1}, and {picked[-1] if picked[0] >= 0 else picked[0]} was named"
    return "all of its channels were named" if picked.size == len(weight) else ""


def _reorder(
    graph: gs.Graph, nodes: Sequence[gs.Node], wanted: dict[str, Indices], moved: set[str], names: Names
) -> Iterator[Note]:
    """Brings outliers to the end wherever that is possible; changes `wanted` accordingly and fills `moved`."""
    done: set[str] = set()
    for node in nodes:
        tensor = node.inputs[0]
        count = len(_matrix(node))
        if node.name in moved or tensor.name in done:
            continue
        plan = permutation.find_permutation(graph, tensor, count)
        if plan.why:
            done.add(tensor.name)
            yield Skipped(tensor.name, f"its channels cannot be reordered: {plan.why}")
            continue
        done |= plan.tensors
        along = [one for one in nodes if one.inputs[0].name in plan.tensors]
        union = np.unique(np.concatenate([wanted[one.name] for one in along]))
        if union.size > MOST_UNION * np.mean([wanted[one.name].size for one in along]) or union.size == count:
            why = f"its {len(along)} readers have {union.size} different outliers in all"
            yield Skipped(tensor.name, f"its channels are not reordered: {why}")
            continue
        order = np.concatenate([np.setdiff1d(np.arange(count), union), union]).astype(np.intp)
        permutation.apply(plan, order, names)
        tail = np.arange(count - union.size, count)
        wanted.update({one.name: tail for one in along})
        moved |= {one.name for one in along}
        yield Changed(tensor.name, f"{union.size} channels moved to the end, in {len(plan.edits)} constants")


def _split(
    graph: gs.Graph,
    node: gs.Node,
    picked: Indices,
    layout: str,
    parts: dict[Key, tuple[gs.Tensor, gs.Tensor]],
    names: Names,
) -> Note:
    x, weight = node.inputs[0], _matrix(node)
    key = id(x), picked.tobytes()
    if key not in parts:
        parts[key] = _parts(graph, node, picked, len(weight), layout, names)
    normal, outliers = parts[key]
    rest = np.setdiff1d(np.arange(len(weight)), picked)
    flipped = bool(node.attrs.get("transB", 0))
    kept = weight[rest]
    if layout == "mask":
        kept = weight.copy()
        kept[picked] = 0  # they are multiplied by zeros; a scale should not have to reach them
    base = linear.weight_of(node)
    stem = base.tensor.name if base is not None else node.name
    own, other = (
        add_constant(names.fresh(f"{stem}{ending}"), np.ascontiguousarray(part.T if flipped else part))
        for ending, part in (("/normal", kept), (OUTLIERS, weight[picked]))
    )
    y = node.outputs[0]
    dtype = dtype_of(y) or np.dtype(np.float32)
    first = gs.Variable(names.fresh(f"{y.name}/normal"), dtype, y.shape)
    second = gs.Variable(names.fresh(f"{y.name}{OUTLIERS}"), dtype, y.shape)
    attrs = {name: value for name, value in node.attrs.items() if name in ("alpha", "transB")}
    # Its name is how it is found again; no node has it, though a tensor may
    apart = gs.Node(node.op, node.name + OUTLIERS, attrs, [outliers, other], [second])
    set_input(node, 0, normal)
    set_input(node, 1, own)
    set_output(node, 0, first)
    total = gs.Node("Add", names.fresh(f"{node.name}/sum"), {}, [first, second], [y])
    insert_after(graph, node, apart)
    insert_after(graph, apart, total)
    return Changed(node.name, f"{picked.size} of {len(weight)} channels multiplied apart ({layout})")


def _parts(
    graph: gs.Graph, node: gs.Node, picked: Indices, count: int, layout: str, names: Names
) -> tuple[gs.Tensor, gs.Tensor]:
    """The normal and the outlier channels of what a node reads."""
    x = node.inputs[0]
    dtype = dtype_of(x) or np.dtype(np.float32)
    lead = None if x.shape is None else list(x.shape)[:-1]

    def part(ending: str, size: int) -> gs.Variable:
        return gs.Variable(names.fresh(x.name + ending), dtype, None if lead is None else [*lead, size])

    def gather(ending: str, indices: Indices) -> gs.Variable:
        found = part(ending, indices.size)
        listed = add_constant(names.fresh(f"{x.name}{ending}/channels"), indices)
        made = gs.Node("Gather", names.fresh(f"{x.name}{ending}"), {"axis": -1}, [x, listed], [found])
        insert_before(graph, node, made)
        return found

    if layout == "split":
        normal, outliers = part("/normal", count - picked.size), part(OUTLIERS, picked.size)
        sizes = add_constant(names.fresh(f"{x.name}/sizes"), np.array([count - picked.size, picked.size], np.int64))
        made = gs.Node("Split", names.fresh(f"{x.name}/split"), {"axis": -1}, [x, sizes], [normal, outliers])
        insert_before(graph, node, made)
        return normal, outliers
    outliers = gather(OUTLIERS, picked)
    if layout == "gather":
        return gather("/normal", np.setdiff1d(np.arange(count), picked)), outliers
    mask = np.ones(count, np.float32)
    mask[picked] = 0
    normal = part("/normal", count)
    factor = add_constant(names.fresh(f"{x.name}/mask"), mask)
    insert_before(graph, node, gs.Node("Mul", names.fresh(f"{x.name}/normal"), {}, [x, factor], [normal]))
    return normal, outliers


def _matrix(node: gs.Node) -> NDArray[np.float32]:
    """The weight [K, N] of a node that `refusal` let through."""
    found = linear.matrix(node)
    if found is None:
        raise ValueError(f"'{node.name}' has no constant matrix")
    return found


def join(graph: gs.Graph, nodes: Iterable[str]) -> list[str]:
    """Undoes the split of these nodes: for layers that stay in high precision as a whole after all.

    Returns:
        Names of the outlier products that are gone.
    """
    listed = {node.name: node for node in graph.nodes}
    gone: list[str] = []
    parts: dict[int, gs.Node] = {}
    for name in nodes:
        node, apart = listed[name], listed.get(name + OUTLIERS)
        if apart is None:
            continue
        total = apart.outputs[0].outputs[0]
        makers = [one for one in (producer(node.inputs[0]), producer(apart.inputs[0])) if one is not None]
        parts.update({id(one): one for one in makers})
        kept, other = _matrix(node), _matrix(apart)
        picked, count = _picked(makers[0], len(kept), len(other))
        whole = np.empty((count, kept.shape[1]), kept.dtype)
        whole[np.setdiff1d(np.arange(count), picked)] = kept if len(kept) < count else np.delete(kept, picked, 0)
        whole[picked] = other
        flipped = bool(node.attrs.get("transB", 0))
        y = total.outputs[0]
        set_input(node, 0, makers[0].inputs[0])
        set_input(node, 1, add_constant(node.inputs[1].name, np.ascontiguousarray(whole.T if flipped else whole)))
        remove_nodes(graph, [total, apart])
        set_output(node, 0, y)
        gone.append(name + OUTLIERS)
    remove_nodes(graph, [one for one in parts.values() if not any(output.outputs for output in one.outputs)])
    return gone


def layout_of(node: gs.Node) -> str:
    """How a node was split, by what makes its activation; empty where it was not."""
    maker = producer(node.inputs[0])
    return {"Mul": "mask", "Gather": "gather", "Split": "split"}.get(maker.op, "") if maker is not None else ""


def _picked(maker: gs.Node, kept: int, other: int) -> tuple[Indices, int]:
    """Which channels were taken out of how many, from the node that makes the normal ones."""
    if maker.op == "Mul":
        return np.flatnonzero(values_of(maker.inputs[1]) == 0), kept
    if maker.op == "Split":
        return np.arange(kept, kept + other), kept + other
    return np.setdiff1d(np.arange(kept + other), values_of(maker.inputs[1])), kept + other
