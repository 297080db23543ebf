"""Scan of opset 8 had the batch in front of everything; that of opset 9 knows no batch, so another one runs over it.

Scan-8{body}(_, states [n, ...], sequences [n, t, ...])
  ⇒  Scan{Scan{body}(states [...], sequences [t, ...])}(states [n, ...], sequences [n, t, ...])
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from qcompiler.ir.edit import detach
from qcompiler.ir.graph import subgraphs
from qcompiler.passes.opsets._place import CannotRaiseError, Place


def over_the_batch(node: gs.Node, place: Place) -> list[gs.Node]:
    """The results are stacked along the batch: final states and stacks alike."""
    if node.inputs[0].name:
        raise CannotRaiseError("it has the input sequence_lens, which no later Scan has; export it again")
    given, outputs = list(node.inputs)[1:], list(node.outputs)
    fed = [_part(t, node, place) for t in given]
    made = [_part(t, node, place) if t.name else gs.Variable.empty() for t in outputs]
    count = int(node.attrs["num_scan_inputs"])
    attrs = {"body": subgraphs(node)[0], "num_scan_inputs": count}
    if "directions" in node.attrs:
        attrs["scan_input_directions"] = list(node.attrs["directions"])
    detach(node)
    inner = gs.Node("Scan", place.names.fresh(f"{node.name}.sample"), attrs, fed, made)
    kept = [t for t in made if t.name]
    body = type(place.graph)(
        [inner], list(fed), kept, name=place.names.fresh(f"{node.name}.batch"), opset=place.graph.opset
    )
    node.attrs.clear()
    node.attrs.update({"body": body, "num_scan_inputs": len(fed)})
    node.inputs.extend(given)
    node.outputs.extend(t for t in outputs if t.name)
    return [node]


def _part(tensor: gs.Tensor, node: gs.Node, place: Place) -> gs.Variable:
    """What a tensor is for one sample."""
    shape = None if tensor.shape is None else list(tensor.shape)[1:]
    return gs.Variable(place.names.fresh(f"{node.name}.{tensor.name}"), tensor.dtype, shape)
