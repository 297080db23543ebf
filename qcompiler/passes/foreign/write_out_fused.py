"""Operators of ONNX Runtime's own domain are written in those of ONNX, exactly as ONNX Runtime computes them.

    SkipLayerNormalization(x, skip, γ, β, b)  ⇒  LayerNormalization(x + b + skip, γ, β)
    FusedMatMul(x, w){transB=1}               ⇒  MatMul(x, wᵀ)
    MultiHeadAttention(q, k, v)               ⇒  MatMul, Softmax, MatMul

What went through an optimiser is then quantized as what went in, and built by targets that know ONNX alone. The rules
stand in files by family; a form that none of them covers is left as it is, with the reason, and never approximated.

Source: ONNX Runtime 1.31, docs/ContribOperators.md and the CPU kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import ModelError
from qcompiler.ir import edit
from qcompiler.ir import graph as graphs
from qcompiler.ir.names import Names
from qcompiler.ir.qdq import MICROSOFT, is_dq, is_q
from qcompiler.passes.base import Changed, Fact, Note, Pass, Report, Skipped
from qcompiler.passes.foreign._activations import ACTIVATIONS
from qcompiler.passes.foreign._attention import ATTENTIONS
from qcompiler.passes.foreign._grouped import GROUPED
from qcompiler.passes.foreign._norms import NORMS
from qcompiler.passes.foreign._products import PRODUCTS
from qcompiler.passes.foreign._rotary import ROTARY
from qcompiler.passes.foreign._rules import NotWrittenError, RankUnknownError, Rule
from qcompiler.passes.node_writer import NodeWriter
from qcompiler.runtime import shapes
from qcompiler.target import Target

RULES: Mapping[str, Rule] = {**ACTIVATIONS, **NORMS, **PRODUCTS, **ATTENTIONS, **ROTARY, **GROUPED}
# What ONNX Runtime's optimiser puts into ONNX's own domain, where ONNX has no such operator
UNOFFICIAL = frozenset({"SimplifiedLayerNormalization"})
OLDEST = 18  # the opset whose spelling the rules use
_ROUNDS = 64  # each one tells the ranks behind what the one before has written out


def is_fused(node: gs.Node) -> bool:
    """Whether there is a rule for the operator of a node."""
    return node.op in RULES and (node.domain == MICROSOFT or (graphs.is_standard(node) and node.op in UNOFFICIAL))


def refuse_left(graph: gs.Graph, target: Target, reports: Iterable[Report]) -> None:
    """Refuses operators of ONNX Runtime's own that are still there, where the target is another engine.

    Args:
        graph: behind the pass.
        target: the engine.
        reports: of the passes that ran, which know why a node was left.

    Raises:
        ModelError: there is one; the message names node, operator and what of it is not written out.
    """
    if target.engine == "onnxruntime":
        return
    left = [node for node in graphs.walk(graph) if (node.domain == MICROSOFT or is_fused(node)) and not _is_pair(node)]
    if not left:
        return
    node, told = left[0], list(reports)
    notes = (note.text for one in told for note in one.notes if isinstance(note, Skipped) and note.node == node.name)
    undone = (one.undone for one in told if one.undone and one.name.startswith(WriteOutFused.name()))
    why = next(notes, None) or next(undone, None) or "there is no rule that writes it out"
    more = f" So are {len(left) - 1} more." * (len(left) > 1)
    raise ModelError(
        f"node '{node.name}' ({node.op} of domain '{node.domain or 'ai.onnx'}') is of an operator that only ONNX "
        f"Runtime has, and it is not written out in ONNX's own: {why.rstrip('.')}.{more} Export the model without that "
        "fusion, or choose '--target onnxruntime'."
    )


def _is_pair(node: gs.Node) -> bool:
    return is_q(node) or is_dq(node)


@dataclass(frozen=True)
class WriteOutFused(Pass):
    """Write ONNX Runtime's fused operators in operators of ONNX.

    Attributes:
        target: whose engine may keep some of them.
        only: names of the operators that are written out; None for all that there are rules for.
    """

    target: Target = field(default_factory=lambda: Target("tensorrt-rtx"))
    only: tuple[str, ...] | None = None

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.FOLDED})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Yields a note per operator, and one for each that stays, with the reason."""
        if not any(self._rule(node) for node in graphs.walk(graph)):
            return
        if graph.opset < OLDEST:
            yield Skipped(graph.name, f"operators of '{MICROSOFT}' are written out from opset {OLDEST} on")
            return
        names, reasons = Names(graph), dict[str, str]()
        for _ in range(_ROUNDS):
            shapes.infer(graph)
            notes = list(self._round(graph, names, reasons))
            yield from notes
            if not notes or not reasons:
                break
        yield from (Skipped(node, why) for node, why in reasons.items())

    def _rule(self, node: gs.Node) -> Rule | None:
        if not is_fused(node) or (self.only is not None and node.op not in self.only):
            return None
        found = RULES[node.op]
        return None if self.target.engine in found.kept_by else found

    def _round(self, graph: gs.Graph, names: Names, reasons: dict[str, str]) -> Iterator[Note]:
        """Writes out what can be; `reasons` is left with those that could be if more were known."""
        waiting = dict(reasons)
        reasons.clear()
        for inner in list(graphs.graphs(graph)):
            for node in list(inner.nodes):
                found = self._rule(node)
                if found is None or (waiting and node.name not in waiting):
                    continue
                name, op = node.name, node.op
                try:
                    count = _write(inner, node, names, found)
                except NotWrittenError as why:
                    text = f"{op} {why}"
                    if isinstance(why, RankUnknownError):
                        reasons[name] = text
                    else:
                        yield Skipped(name, text)
                    continue
                yield Changed(name, f"{op} written out as {count} nodes")


def _write(graph: gs.Graph, node: gs.Node, names: Names, found: Rule) -> int:
    """Puts the nodes in the place of one; where that is not possible all is as it was.

    Raises:
        NotWrittenError: there is no rule for this form of it.
    """
    strange = sorted(set(node.attrs) - found.attributes)
    if strange:
        raise NotWrittenError(f"has the attribute '{strange[0]}'")
    writer = NodeWriter(graph, node, names, _computed_in(node))
    try:
        found.write(writer)
    except NotWrittenError:
        for made in writer.nodes:
            edit.detach(made)
        raise
    return writer.finish()


def _computed_in(node: gs.Node) -> np.dtype[np.generic]:
    known = (graphs.dtype_of(tensor) for tensor in (*node.inputs, *node.outputs) if graphs.is_float(tensor))
    return next((dtype for dtype in known if dtype is not None), np.dtype(np.float32))
