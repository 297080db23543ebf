"""`explain()`: everything that a manifest says of one node, put together. Nothing is run, no model is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qcompiler.errors import UsageError
from qcompiler.numerics.sqnr import decibel
from qcompiler.support.as_json import plain
from qcompiler.support.suggest import did_you_mean
from qcompiler.tools.stored import opened
from qcompiler.tools.wires import Wires

Record = Mapping[str, Any]
HIGH: Final = "high"  # the key of high precision among costs
_LISTED: Final = 20  # nodes that a message names
_PEAKS: Final = 3  # channels and tokens


@dataclass(frozen=True)
class Explanation:
    """What a manifest says of one node. What it does not say is None or empty; `unknown` says why.

    Attributes:
        manifest: `file`, `qcompiler`, `model`, `target`, `precision` asked for, `missed` (why it was not accepted).
        asked: the name that was asked for.
        node: the node that is meant.
        found_by: `name`, `tensor` (it writes the tensor of that name), `part` of its name, `pattern`, or `edits` (only
            passes speak of it: the plan does not have it).
        decision: `op`, `precision`, `rule`, `why`, `macs`, `share` (0..1 of the model's), `counted`, `figures`.
        edits: what passes did to it, or said of it.
        engine: `compiled` (what the engine's listing shows), `kernels` (`what`, and the nodes computed `with` it),
            `mismatches`.
        activation: the tensor whose range decides, and `shared` by which other layers.
        trials: what was tried: `format`, `amax`, `noise` (noise-to-signal power at the outputs), `sqnr_db`, `how` it
            was measured, and whether it is what was `chosen`.
        net: of the safety net: whether its group was `restored` to high precision, at which `place`, and the target.
        costs: seconds by type, of the whole group.
        quantizers: of the tensors that it reads and writes: range, calibrator, largest value, `histogram`.
        outliers: of the activation: ratios, kurtosis, the largest channels and tokens.
        weight: `tensor`, `shape`, `axis` of the scales, and how it is `stored` in few bits.
        reads: of each tensor: its `tensor`, who writes it (`node`, `op`, `precision`), whether it is an `input`.
        writes: of each tensor: its `tensor`, who reads it, whether it is an `output` of the model.
        methods: what SmoothQuant, QFeM, LLM.int8() and the others did here, by their key in the manifest.
        accuracy: of what it writes: `sqnr_db`, `own_db`, and how much it is to blame.
        front: of each plan of the front: its `id`, and the `type` of the group there (`high` for high precision).
        rungs: of the whole model: which methods were tried, and which were kept.
        warnings: those that name it.
        unknown: what this manifest cannot tell, in sentences.
    """

    manifest: Record
    asked: str
    node: str
    found_by: str
    decision: Record | None = None
    edits: Sequence[Record] = ()
    engine: Record | None = None
    activation: Record | None = None
    trials: Sequence[Record] = ()
    net: Record | None = None
    costs: Record = field(default_factory=dict)
    quantizers: Sequence[Record] = ()
    outliers: Record | None = None
    weight: Record | None = None
    reads: Sequence[Record] = ()
    writes: Sequence[Record] = ()
    methods: Record = field(default_factory=dict)
    accuracy: Record | None = None
    front: Sequence[Record] = ()
    rungs: Sequence[Record] = ()
    warnings: Sequence[str] = ()
    unknown: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dict(plain(self))


def explain(manifest: str | Path | Record, node: str) -> Explanation:
    """Everything that a manifest says of one node.

    Args:
        manifest: the file, an engine, model or report beside which it lies, the folder of a compilation, or the
            manifest itself (`CompileResult.manifest`). One of a compilation that was not accepted is taken, too.
        node: its name; else the tensor that it writes, a part of its name, or a regular expression that finds it.

    Raises:
        UsageError: there is no manifest, or not exactly one node is meant; the message names those that could be.
    """
    name, said = opened(manifest)
    wires = Wires.of(said)
    found, how = _meant(node, said, wires)
    decision = next((one for one in said.get("plan") or () if one["node"] == found), None)
    reads, writes = wires.reads(found), wires.writes(found)
    activation = _activation(found, reads, said, wires)
    tensors = list(dict.fromkeys([*([activation] if activation else []), *reads, *writes]))
    return Explanation(
        _about(name, said),
        node,
        found,
        how,
        None if decision is None else _decision(decision, said),
        _edits(found, activation, said),
        _engine(found, said),
        None if activation is None else {"tensor": activation, "shared": _shared(found, activation, said, wires)},
        [] if activation is None else list(_trials(activation, said)),
        _net(activation, said),
        ((said.get("safety") or {}).get("costs") or {}).get(activation, {}),
        list(_quantizers(tensors, said)),
        _outliers(found, activation, said),
        _weight(found, said, wires),
        [wires.source(tensor) for tensor in reads],
        [wires.readers(tensor) for tensor in writes],
        dict(_methods(found, activation, said)),
        _accuracy(found, said),
        list(_front(activation, said)),
        said.get("rungs") or [],
        _warnings([found, *tensors], said),
        list(_unknown(found, decision, activation, said, wires)),
    )


def _about(name: str, said: Record) -> Record:
    target = said.get("target") or {}
    return {
        "file": name,
        "qcompiler": said.get("qcompiler"),
        "model": (said.get("source") or {}).get("name"),
        "target": target.get("engine"),
        "precision": (said.get("recipe") or {}).get("precision"),
        "missed": (said.get("missed") or {}).get("error"),
        "random_data": bool(said.get("random_data")),
    }


def _meant(asked: str, said: Record, wires: Wires) -> tuple[str, str]:
    """The node that is meant, and by what it was found.

    Raises:
        UsageError: none, or several.
    """
    nodes = list(dict.fromkeys([*wires.nodes, *((said.get("audit") or {}).get("nodes") or {})]))
    edited = [place for places in (said.get("edits") or {}).values() for place in places]
    if asked in nodes:
        return asked, "name"
    writer = wires.writer(asked)
    if writer is not None:
        return writer, "tensor"
    if asked in edited:
        return asked, "edits"
    for how, match in (("part", _part), ("part", _any_case), ("pattern", _pattern)):
        found = match(asked, nodes)
        if len(found) > 1:
            raise UsageError(f"{len(found)} nodes match '{asked}', name one of them: {_listed(found)}")
        if found:
            return found[0], how
    gone = list(dict.fromkeys(_part(asked, edited)))
    if len(gone) == 1:
        return gone[0], "edits"
    if gone:
        raise UsageError(
            f"the plan has no node '{asked}'; of {len(gone)} that passes edited, name one: {_listed(gone)}"
        )
    if not nodes:
        raise UsageError("the manifest has no plan: nothing was decided, as in a build of a model that came quantized")
    close = did_you_mean(asked, [*nodes, *edited])
    hint = close if close.startswith("did you mean") else f"it has {len(nodes)}, such as {_listed(nodes[:3])}"
    raise UsageError(f"the manifest has no node '{asked}': {hint}")


def _part(asked: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if asked in name] if asked else []


def _any_case(asked: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if asked.casefold() in name.casefold()] if asked else []


def _pattern(asked: str, names: Sequence[str]) -> list[str]:
    try:
        pattern = re.compile(asked)
    except re.error:  # a name with brackets, and no pattern
        return []
    return [name for name in names if asked and pattern.search(name)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(f"'{name}'" for name in names[:_LISTED]) + more


def _decision(one: Record, said: Record) -> Record:
    total = (said.get("macs") or {}).get("total") or sum(each.get("macs") or 0 for each in said.get("plan") or ())
    macs = one.get("macs") or 0
    kept = {key: one.get(key) for key in ("op", "precision", "rule", "why")}
    share = macs / total if total and macs else None
    return {
        **kept,
        "macs": macs,
        "share": share,
        "counted": one.get("counted", True),
        "figures": one.get("figures", {}),
    }


def _activation(node: str, reads: Sequence[str], said: Record, wires: Wires) -> str | None:
    """The tensor whose range decides about a node: that of its group of layers, or what it reads quantized."""
    grouped = (said.get("safety") or {}).get("amax") or {}
    ranged = {one["tensor"]: one for one in said.get("quantizers") or ()}
    observed = _of_reader(node, said.get("outliers") or ())
    layer = observed is not None or node in wires.weights or node in wires.pairs
    for known in (grouped, ranged) if layer else ():
        for name in reads:
            if name in known:
                return name
    if not wires.known:  # then the sentence of the plan names it, also where smoothing gave it another name
        why = next((str(one.get("why")) for one in said.get("plan") or () if one["node"] == node), "")
        named = (name for name in (*grouped, *ranged) if f"activation '{name}'" in why)
        return next(named, observed)
    return observed


def _of_reader(node: str, records: Iterable[Record]) -> str | None:
    """The tensor of the record that names a node among its readers."""
    return next((str(one["tensor"]) for one in records if node in (one.get("readers") or ())), None)


def _shared(node: str, activation: str, said: Record, wires: Wires) -> list[str]:
    """The other layers of the group: those that read the same activation and multiply by a weight."""
    if wires.known:
        readers = [one["node"] for one in wires.readers(activation)["by"] if one["node"] in wires.weights]
    else:
        groups = (*(said.get("outliers") or ()), *((said.get("smooth_quant") or {}).get("groups") or ()))
        readers = next((list(one["readers"]) for one in groups if node in (one.get("readers") or ())), [])
    return [one for one in readers if one != node]


def _trials(activation: str, said: Record) -> Iterator[Record]:
    """Every way in which the group was measured: as it was run alone, then what blocks and joint runs say."""
    net = said.get("safety") or {}
    restored = activation in (net.get("restored") or ())
    uses = (net.get("uses") or {}).get(activation) or {}
    block = (net.get("blocks") or {}).get(activation)
    shown = (net.get("formats") or {}).get(activation)
    known = set()
    ranges = (net.get("amax") or {}).get(activation)
    tried = ((net.get("tried") or {}).get(activation) or {}).items()
    for dtype, amax, noise in ((dtype, *one) for dtype, every in tried for one in every):
        known.add((dtype, amax))
        chosen = not restored and dtype == shown and amax == ranges
        yield _trial(dtype, amax, noise, "alone", chosen=chosen)
    for dtype, noise in ((net.get("alone") or {}).get(activation) or {}).items():
        amax = (uses.get(dtype) or {}).get("amax")
        if (dtype, amax) in known:
            continue
        how = "from joint runs" if "tried" in net or activation in (net.get("joint") or ()) else "alone"
        if block and dtype == shown:
            how = f"its share of a block of {block['groups']} groups"
        yield _trial(dtype, amax, noise, how, chosen=not restored and dtype == shown)


def _trial(dtype: str, amax: Any, noise: Any, how: str, *, chosen: bool) -> Record:
    power = float(noise) if noise is not None else None
    sqnr = None if power is None else decibel(power)
    return {"format": dtype, "amax": amax, "noise": noise, "sqnr_db": sqnr, "how": how, "chosen": chosen}


def _net(activation: str | None, said: Record) -> Record | None:
    net = said.get("safety") or {}
    if activation not in (net.get("amax") or {}):
        return None
    restored = list(net.get("restored") or ())
    place = restored.index(activation) + 1 if activation in restored else None
    told = {key: net.get(key) for key in ("target_db", "met", "runs")}
    curve = net.get("curve") or ()
    return {
        "restored": place is not None,
        "place": place,
        "block": (net.get("blocks") or {}).get(activation),
        "first_db": curve[0]["sqnr_db"] if curve else None,
        "last_db": curve[-1]["sqnr_db"] if curve else None,
        **told,
    }


def _quantizers(tensors: Sequence[str], said: Record) -> Iterator[Record]:
    """Those of the tensors, with their bars; of a tensor that stayed high the bars alone."""
    bars = said.get("histograms") or {}
    known = {one["tensor"]: one for one in said.get("quantizers") or ()}
    for name in tensors:
        if name in known:
            yield {**known[name], "histogram": bars.get(name)}
        elif name in bars:
            yield {"tensor": name, "dtype": None, "histogram": bars[name]}


def _outliers(node: str, activation: str | None, said: Record) -> Record | None:
    """Of what the node read when the data was observed; smoothing may have given that another name since."""
    records = said.get("outliers") or ()
    tensor = _of_reader(node, records) or activation
    found = next((one for one in records if one["tensor"] == tensor), None)
    if found is None:
        return None
    kept = {key: found.get(key) for key in ("tensor", "ratio", "worst_ratio", "kurtosis", "amax")}
    return {**kept, **{key: list(found.get(key) or ())[:_PEAKS] for key in ("top_channels", "top_tokens")}}


def _weight(node: str, said: Record, wires: Wires) -> Record | None:
    found = wires.weights.get(node)
    layers = (said.get("weight_only") or {}).get("layers") or ()
    stored = next((one for one in layers if one.get("node") == node), None)
    if found is None and stored is None:
        return None
    return {**(found or {}), "stored": stored}


def _engine(node: str, said: Record) -> Record | None:
    audit = said.get("audit")
    if not audit:
        return None
    names, kinds = [one["node"] for one in said.get("plan") or ()], audit.get("kinds") or ()
    place = names.index(node) if node in names else None
    kernels = [
        {"what": kinds[kind], "with": [names[other] for other in nodes if other != place and other < len(names)]}
        for kind, *nodes in audit.get("launches") or ()
        if place in nodes
    ]
    wrong = [str(one["text"]) for one in audit.get("mismatches") or () if one["node"] == node]
    compiled = (audit.get("nodes") or {}).get(node)
    return {"compiled": compiled, "kernels": kernels, "mismatches": wrong, "sms": list(audit.get("sms") or ())}


def _edits(node: str, activation: str | None, said: Record) -> list[Record]:
    """What passes did at the node, and at the activation that it reads (SmoothQuant speaks of that)."""
    observed = _of_reader(node, said.get("outliers") or ())
    names = list(dict.fromkeys(name for name in (node, observed, activation) if name))
    edits = (said.get("edits") or {}).items()
    return [{"pass": name, "at": at, "text": places[at]} for name, places in edits for at in names if at in places]


def _methods(node: str, activation: str | None, said: Record) -> Iterator[tuple[str, Record]]:
    """What each method says of the node or of its activation."""
    smooth = (said.get("smooth_quant") or {}).get("groups") or ()
    spared = (said.get("qfem") or {}).get("chosen") or ()
    apart = (said.get("llm_int8") or {}).get("groups") or ()
    keys = ("alpha", "how", "why", "gain_db")
    for one in smooth:
        if node in (one.get("readers") or ()):
            yield "smooth_quant", {key: one.get(key) for key in keys}
    for one in spared:
        if one.get("tensor") == activation and activation:
            yield "qfem", {"ratio": one.get("ratio"), "why": "kept in high precision for tokens that stand out"}
    for one in apart:
        if activation and activation in (one.get("tensor"), one.get("activation")):
            yield "llm_int8", {"channels": one.get("channels")}
    for one in said.get("residuals") or ():
        if one.get("add") == node:
            yield "residual", {key: one.get(key) for key in ("kind", "ratio", "branch_amax", "stream_amax", "sum_amax")}
    noisy = (said.get("half") or {}).get("noisy") or {}
    if node in noisy:
        yield "half", {"sqnr_db": noisy[node]}


def _accuracy(node: str, said: Record) -> Record | None:
    found = said.get("verification") or {}
    layer = next((one for one in found.get("layers") or () if one.get("node") == node), None)
    blamed = next((one for one in found.get("suspects") or () if one.get("node") == node), None)
    if layer is None and blamed is None:
        return None
    keys = ("tensor", "sqnr_db", "before_db", "own_db", "drifts")
    told = {key: layer.get(key) for key in keys} if layer else {}
    return {**told, "blamed": blamed, "samples": found.get("samples")}


def _front(activation: str | None, said: Record) -> Iterator[Record]:
    """The type of the group in each plan of the front; nothing where there is one plan alone."""
    points = said.get("front") or ()
    for one in points if len(points) > 1 else ():
        kind = (one.get("formats") or {}).get(activation)
        high = activation in (one.get("high") or ())
        if high or kind is not None:
            yield {"id": one.get("id"), "type": HIGH if high else kind}


def _warnings(names: Iterable[str], said: Record) -> list[str]:
    quoted = [f"'{name}'" for name in names]
    return [str(text) for text in said.get("warnings") or () if any(name in str(text) for name in quoted)]


def _unknown(node: str, decision: Record | None, activation: str | None, said: Record, wires: Wires) -> Iterator[str]:
    """What this manifest cannot tell of the node, and why."""
    if decision is None:
        yield "the plan does not speak of it: passes changed the model before it was made, or it computes no floats"
    if not wires.known:
        yield "neighbours and the weight: the manifest is of an older qcompiler, which did not record them"
    if activation is not None and "histograms" not in said:
        yield "the histogram of its activation: the manifest is of an older qcompiler, which did not record it"
    audit = said.get("audit")
    if not audit:
        yield "its kernel: no engine of TensorRT-RTX was built"
    elif "launches" not in audit:
        yield "its kernel: the manifest is of an older qcompiler, which recorded only what it was compiled to"
    if said.get("data") is None and decision is not None:
        yield "what it does to the outputs: there was no data"
    elif activation and _net(activation, said) is not None and not list(_trials(activation, said)):
        yield "what it costs alone: the first plan was good enough, so no layer was measured by itself"
