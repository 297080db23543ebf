"""`inspect()`: what is in a model, what can be quantized for a target and what cannot and why, and where it spikes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler import decide, shapes
from qcompiler import graph as graphs
from qcompiler import model as models
from qcompiler.data import Data, Inputs, Source, open_source
from qcompiler.errors import ModelError, QCompilerError
from qcompiler.macs import concrete_shapes
from qcompiler.observe import samples_of
from qcompiler.plain import plain
from qcompiler.presets import clean_up
from qcompiler.progress import Progress, silent
from qcompiler.recipe import Recipe
from qcompiler.spikes import Spike, Watched, watch
from qcompiler.target import Target

_NOT_WEIGHTS = frozenset(np.dtype(name) for name in (np.int64, np.int32, np.bool_, object))
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", *decide.QUANTIZED_OPS)
_YES = "linear"  # the rule of what can be quantized


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear or recurrent node, as the compiler sees it after clean-up.

    Attributes:
        node: its name.
        op: ONNX operator.
        quantizable: whether the rules of the target let it be INT8; whether accuracy does is only known after
            `compile`.
        rule: the id of the rule that decided.
        why: one sentence; empty where it can be quantized.
        macs: multiply-accumulates of one sample; None where shapes are not known.
        share: of the model's multiply-accumulates, 0..1; None where those of some layer are not known.
    """

    node: str
    op: str
    quantizable: bool
    rule: str
    why: str
    macs: int | None = None
    share: float | None = None


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        file: the model's file name.
        producer: what wrote it; empty where it does not say.
        opset: version of the standard operators.
        ir_version: version of the file format.
        inputs: name → (element type, shape with names or None for what is open).
        outputs: the same.
        parameters: elements of all weights; integer constants such as shapes are not counted.
        weights: bytes of the weights by element type.
        operators: how often each operator occurs, nested graphs included, most frequent first.
        custom: operators of other domains, as `domain::op`, with their counts.
        control_flow: nodes of the main graph with graphs of their own, as `name (op)`, and how many are inside them.
        quantized: operators of an earlier quantization, with their counts.
        target: what "can be quantized" refers to.
        layers: linear and recurrent nodes in graph order.
        macs: multiply-accumulates of one sample; None where those of some layer are not known.
        data: name of the data, and how many feeds were run; empty without.
        spikes: activations of the layers that can be quantized, the worst first; empty without data.
        overflow: where the float model stops being finite; empty where it does not.
        problems: what could not be looked at, and why.
    """

    file: str
    producer: str
    opset: int
    ir_version: int
    inputs: Mapping[str, tuple[str, tuple[int | str | None, ...] | None]]
    outputs: Mapping[str, tuple[str, tuple[int | str | None, ...] | None]]
    parameters: int
    weights: Mapping[str, int]
    operators: Mapping[str, int]
    custom: Mapping[str, int]
    control_flow: tuple[str, ...]
    quantized: Mapping[str, int]
    target: str
    layers: tuple[Layer, ...]
    macs: int | None
    data: str = ""
    spikes: tuple[Spike, ...] = ()
    overflow: str = ""
    problems: tuple[str, ...] = field(default=())

    @property
    def quantizable(self) -> float | None:
        """Share of the multiply-accumulates that can be quantized, 0..1; None where they are not known."""
        if not self.macs:
            return None
        return sum(layer.macs or 0 for layer in self.layers if layer.quantizable) / self.macs

    def to_json(self) -> dict[str, Any]:
        """Single figures first, then tables as lists of records; what a model does not have is left out.

        Layers with most multiply-accumulates come first.
        """
        figures = {
            "file": self.file,
            "producer": self.producer,
            "opset": self.opset,
            "ir_version": self.ir_version,
            "parameters": self.parameters,
            "weight_bytes": self.weights,
            "operators": self.operators,
            "custom_operators": self.custom,
            "control_flow": self.control_flow,
            "quantized_already": self.quantized,
            "target": self.target,
            "layers_that_can_be_int8": f"{sum(one.quantizable for one in self.layers)} of {len(self.layers)}",
            "macs": self.macs,
            "macs_that_can_be_int8": self.quantizable,
            "data": self.data,
            "not_finite": self.overflow,
            "problems": self.problems,
        }
        tables = {
            "inputs": _values("input", self.inputs),
            "outputs": _values("output", self.outputs),
            "stays_float": list(_by_rule(self.layers)),
            "layers": [_row(one) for one in sorted(self.layers, key=lambda one: -(one.macs or 0))],
            "spikes": self.spikes,
        }
        found: dict[str, Any] = plain({**figures, **tables})
        return {key: value for key, value in found.items() if value is not None and value not in ("", [], {})}


def inspect(
    model: str | Path | models.Model,
    *,
    data: Data | None = None,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Looks at a model without changing or quantizing it; with data, also measures its activations.

    Args:
        model: an ONNX file, or a loaded model.
        data: samples to run; without them nothing is run.
        recipe: its target, `keep` and `samples` are used, and its shapes where there is no data.
        progress: where stages are shown.

    Raises:
        ModelError: the file cannot be read.
        DataError: the data does not fit the model.
        UsageError: the data is not a form of data.
        EngineError: the recipe's target does not exist.
    """
    recipe, progress = recipe or Recipe(), progress or silent
    target = recipe.resolve()
    with progress.stage("load"):
        loaded = model if isinstance(model, models.Model) else models.load(model)
        raw, inputs = loaded.graph, _inputs(loaded.graph)
        source = None if data is None else open_source(data, inputs, samples=recipe.samples, batch=recipe.batch)
    problems: list[str] = []
    with progress.stage("clean up"):
        clean = _clean(loaded, target, problems)
        found, refused = decide.candidates(clean.graph, target, recipe.keep)
    watched = Watched()
    with progress.stage("measure", recipe.samples if source is not None else None) as stage:
        known = _shapes(clean.graph, source, inputs, recipe, problems)
        if source is not None:
            nodes = {node.name: node for node in clean.graph.nodes}
            groups = {name: [nodes[one.node] for one in group] for name, group in decide.by_activation(found).items()}
            watched = _watched(clean.graph, groups, source, problems, stage.advance)
    macs = {name: count for name, count in decide.node_macs(clean.graph, known).items() if count or source is not None}
    count = sum(map(graphs.is_linear, clean.graph.nodes))
    total = sum(macs.values()) if len(macs) == count else 0
    layers = _layers(clean.graph, found, refused, known, macs, total)
    if source is None and count and not total:
        problems.append("some shapes are open, so multiply-accumulates are not known: give --data")
    every = Counter(node.op for node in graphs.walk(raw))
    return Inspection(
        file=loaded.source.name if loaded.source else "a model in memory",
        producer=" ".join(filter(None, (raw.producer_name, raw.producer_version))),
        opset=int(raw.opset),
        ir_version=loaded.ir_version,
        inputs={tensor.name: _described(tensor) for tensor in raw.inputs},
        outputs={tensor.name: _described(tensor) for tensor in raw.outputs},
        parameters=sum(size for _, size in _weights(raw)),
        weights=_weight_bytes(raw),
        operators=dict(every.most_common()),
        custom=dict(
            Counter(f"{n.domain}::{n.op}" for n in graphs.walk(raw) if not graphs.is_standard(n)).most_common()
        ),
        control_flow=_control_flow(raw),
        quantized={op: every[op] for op in _QUANTIZERS if every[op]},
        target=str(target),
        layers=layers,
        macs=total or None,
        data="" if source is None else _data_text(source, watched),
        spikes=tuple(watched.spikes),
        overflow=watched.overflow,
        problems=tuple(problems),
    )


# --- The graph --------------------------------------------------------------------------------------------------------


def _inputs(graph: gs.Graph) -> Inputs:
    return {tensor.name: (graphs.dtype_of(tensor), graphs.shape_of(tensor)) for tensor in graph.inputs}


def _clean(model: models.Model, target: Target, problems: list[str]) -> models.Model:
    """The graph as the compiler would look at it; the model's own where clean-up is refused."""
    clean = models.copy(model)
    try:
        clean_up(target)(clean.graph)
        shapes.infer(clean)
    except QCompilerError as error:
        # Who inspects wants to know what is in the model all the more when it cannot be compiled
        problems.append(f"clean-up stopped, so the rules below look at the model as it is: {error}")
        return models.copy(model)
    return clean


def _described(tensor: gs.Tensor) -> tuple[str, tuple[int | str | None, ...] | None]:
    if isinstance(tensor, gs.Variable) and tensor.type not in (None, "tensor_type"):
        return str(tensor.type).removesuffix("_type"), None
    dtype = graphs.dtype_of(tensor)
    spelled = "unknown" if dtype is None else "string" if dtype.kind == "O" else str(dtype)
    return spelled, graphs.shape_of(tensor)


def _control_flow(graph: gs.Graph) -> tuple[str, ...]:
    own = [f"{node.name} ({node.op})" for node in graph.nodes if graphs.subgraphs(node)]
    nested = sum(bool(graphs.subgraphs(node)) for node in graphs.walk(graph)) - len(own)
    return (*own, f"{nested} more inside") if nested else tuple(own)


def _weights(graph: gs.Graph) -> Iterator[tuple[np.dtype[Any], int]]:
    """Element type and size of each weight: initializers and Constant nodes, nested graphs included."""
    seen: set[int] = set()
    for inner in graphs.graphs(graph):
        constants = [t for t in graphs.tensors(inner) if graphs.is_constant(t)]
        constants += [n.attrs["value"] for n in inner.nodes if graphs.is_op(n, "Constant") and "value" in n.attrs]
        for tensor in constants:
            dtype = graphs.dtype_of(tensor)
            if id(tensor) in seen or dtype is None or dtype in _NOT_WEIGHTS:
                continue
            seen.add(id(tensor))
            yield dtype, math.prod(tensor.shape)


def _weight_bytes(graph: gs.Graph) -> dict[str, int]:
    found: Counter[str] = Counter()
    for dtype, size in _weights(graph):
        found[str(dtype)] += -(-size // 2) if "int4" in str(dtype) else size * dtype.itemsize
    return dict(found.most_common())


# --- Layers -----------------------------------------------------------------------------------------------------------


def _shapes(
    graph: gs.Graph, source: Source | None, inputs: Inputs, recipe: Recipe, problems: list[str]
) -> dict[str, tuple[int, ...]]:
    """Shapes for one sample: those of the first feed, else with the recipe's usual shapes or a batch of one."""
    if source is not None:
        try:
            first = next(samples_of(next(iter(source)), inputs))
            return concrete_shapes(graph, first, decide.tensors_for_shapes(graph))
        except ModelError as error:
            problems.append(f"multiply-accumulates are not known: {error}")
            return {}
    assumed = graph.copy()
    for tensor in assumed.inputs:
        shape = graphs.shape_of(tensor)
        if recipe.shapes is not None and tensor.name in recipe.shapes:
            tensor.shape = list(recipe.shapes[tensor.name][1])
        elif shape and not isinstance(shape[0], int):
            tensor.shape = [1, *shape[1:]]
    shapes.infer(assumed)
    fixed = ((tensor.name, graphs.static_shape(tensor)) for tensor in graphs.tensors(assumed))
    return {name: shape for name, shape in fixed if shape is not None}


def _layers(
    graph: gs.Graph,
    found: Iterable[decide.Candidate],
    refused: Iterable[decide.Refusal],
    known: Mapping[str, tuple[int, ...]],
    macs: Mapping[str, int],
    total: int,
) -> tuple[Layer, ...]:
    """Every linear and recurrent node in graph order, nested ones behind."""
    nodes = {node.name: node for node in graph.nodes}
    verdicts = {one.node: Layer(one.node, one.op, False, one.rule, one.why) for one in refused}
    for one in found:
        small = decide.too_small(one, nodes[one.node], known)
        rule, why = (_YES, "") if small is None else (small.rule, small.why)
        verdicts[one.node] = Layer(one.node, one.op, small is None, rule, why)
    places = {name: i for i, name in enumerate(nodes)}
    return tuple(
        replace(one, macs=macs.get(one.node), share=macs.get(one.node, 0) / total if total else None)
        for one in sorted(verdicts.values(), key=lambda one: places.get(one.node, len(places)))
    )


def _by_rule(layers: Iterable[Layer]) -> Iterator[dict[str, Any]]:
    """What stays float, one row per rule, the most multiply-accumulates first."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        if not layer.quantizable:
            groups.setdefault(layer.rule, []).append(layer)
    for rule, group in sorted(groups.items(), key=lambda item: -sum(one.macs or 0 for one in item[1])):
        first = group[0].node if len(group) == 1 else f"{group[0].node} and {len(group) - 1} more"
        shares = [one.share for one in group if one.share is not None]
        yield _present({"rule": rule, "nodes": first, "share": sum(shares) if shares else None, "why": group[0].why})


def _row(layer: Layer) -> dict[str, Any]:
    verdict = "yes" if layer.quantizable else layer.rule
    figures = {"macs": layer.macs, "share": layer.share}
    return {
        "node": layer.node,
        "op": layer.op,
        "int8": verdict,
        **_present(figures),
        **({"why": layer.why} if layer.why else {}),
    }


def _present(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _values(column: str, values: Mapping[str, tuple[str, tuple[int | str | None, ...] | None]]) -> list[dict[str, str]]:
    return [
        {column: name, "type": dtype, "shape": "unknown" if shape is None else f"[{', '.join(_dims(shape))}]"}
        for name, (dtype, shape) in values.items()
    ]


def _dims(shape: tuple[int | str | None, ...]) -> Iterator[str]:
    return ("?" if dim is None else str(dim) for dim in shape)


# --- Data -------------------------------------------------------------------------------------------------------------


def _watched(
    graph: gs.Graph, groups: dict[str, list[gs.Node]], source: Source, problems: list[str], advance: Any
) -> Watched:
    try:
        return watch(graph, groups, source, advance)
    except ModelError as error:
        problems.append(f"activations were not measured: {error}")
        return Watched()


def _data_text(source: Source, watched: Watched) -> str:
    text = f"{source.name}, {watched.feeds} feed{'s' * (watched.feeds != 1)}"
    return f"{text}; made up, so figures of activations mean nothing" if source.random else text
