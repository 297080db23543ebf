"""Which layers stay in high precision because the data has not shown what they read, and what the user is told of it.

No range is made up. Where an input never changed, all that is computed from it alone has nothing to take a range from:
neither the zeros themselves nor what biases make of them behind the first layer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import onnx_graphsurgeon as gs

from qcompiler.data.sights import Sight
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models
from qcompiler.ir.operators import LINEAR
from qcompiler.plan import Candidate, Refusal
from qcompiler.planning.placement.dependence import unvarying
from qcompiler.statistics.evidence import ALWAYS_ZERO, CONSTANT, FEW, UNSEEN, ZERO, Lack, alike, lack_of
from qcompiler.statistics.histogram import Histogram
from qcompiler.statistics.observe import Observations

SHOWN: Final = 4  # names in a warning
UNTAKEN: Final = "nothing is known of the ranges there, and nothing that is said of accuracy holds for it"
LOOKED_AT: Final = 4  # kept samples, enough to see that a channel changes
_EXPERT = re.compile(r"(.*?)[\W_]*experts?[\W_]*(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Evidence:
    """What the data does not show.

    Attributes:
        lacks: by tensor name, what is missing; of the tensors that somebody may want a range of.
        refused: the layers that stay in high precision for it.
        warnings: what the user should know, a sentence or two each.
    """

    lacks: Mapping[str, Lack] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()


def look(model: models.Model, found: Sequence[Candidate], seen: Observations) -> Evidence:
    """What one run over the data lacks of a model; a few of the kept samples are run again.

    Args:
        model: that was observed.
        found: its layers that may be quantized.
        seen: with histograms and outliers of their activations.
    """
    if not seen.kept:
        return Evidence()
    axes = {name: one.axis for name, one in seen.outliers.items()}
    same = alike(model, axes, seen.kept[:LOOKED_AT], seen.histograms)
    shown = weigh(model.graph, found, seen.histograms, seen.sights, same, samples=samples_of(seen))
    untaken = tuple(_untaken(model.graph, seen.flags, samples_of(seen)))
    return replace(shown, warnings=(*shown.warnings, *untaken))


def conditions(graph: gs.Graph) -> list[str]:
    """Names of the tensors that decide which branch of an If is taken, where layers are in a branch."""
    return [node.inputs[0].name for node in _branching(graph) if not graphs.is_constant(node.inputs[0])]


def _branching(graph: gs.Graph) -> Iterator[gs.Node]:
    for node in graph.nodes:
        if graphs.is_op(node, "If") and any(one.op in LINEAR for g in graphs.subgraphs(node) for one in graphs.walk(g)):
            yield node


def _untaken(graph: gs.Graph, flags: Mapping[str, frozenset[bool]], samples: int) -> Iterator[str]:
    """One warning for all branches with layers in them that no sample took."""
    parts: dict[str, None] = {}
    for node in _branching(graph):
        taken = flags.get(node.inputs[0].name, frozenset({True, False}))
        for name, held in (("then_branch", True), ("else_branch", False)):
            layers = [one.name for one in graphs.walk(node.attrs[name]) if one.op in LINEAR]
            if layers and held not in taken:
                numbered = dict.fromkeys(part for layer in layers if (part := _expert(layer)))
                parts |= numbered or {f"the {name.removesuffix('_branch')} branch of '{node.name}'": None}
    if parts:
        yield f"{_unreached(list(parts), samples)}: {UNTAKEN}"


def lacks_of(seen: Observations) -> dict[str, Lack]:
    """What the data has not shown, also of tensors that were made and measured since `look`."""
    new = {name: one for name, one in seen.histograms.items() if name not in seen.lacks}
    bare = {name: lack for name, one in new.items() if (lack := lack_of(one, samples_of(seen))) is not None}
    return {**seen.lacks, **{name: lack for name, lack in bare.items() if lack.rule in (UNSEEN, ZERO)}}


def samples_of(seen: Observations) -> int:
    """How many samples there were."""
    return max((one.samples for one in seen.sights.values()), default=seen.feeds)


def weigh(
    graph: gs.Graph,
    found: Sequence[Candidate],
    histograms: Mapping[str, Histogram],
    sights: Mapping[str, Sight],
    same: Collection[str] = (),
    *,
    samples: int,
) -> Evidence:
    """What the data lacks of a model.

    Args:
        graph: normalised, in topological order.
        found: layers that may be quantized.
        histograms: of their activations and of other tensors that may get a range, over all samples.
        sights: of the inputs, over all samples.
        same: tensors in which every position is like every other (`statistics.evidence.alike`).
        samples: how many there were.
    """
    bare = {name: lack for name, one in histograms.items() if (lack := lack_of(one, samples)) is not None}
    inputs = _fixed_inputs(sights)
    still = {name for name, lack in bare.items() if lack.rule in (UNSEEN, ZERO, CONSTANT)} | {*same}
    known = unvarying(graph, inputs | (still - sights.keys()))
    whole = unvarying(graph, ())  # what nothing that is fed can change was seen whole
    lacks: dict[str, Lack] = {}
    for name in histograms:
        lack = _lack(name, bare.get(name), known.get(name), sights, samples)
        if lack is not None and name in whole and lack.rule == ZERO:
            lack = Lack(ALWAYS_ZERO, "is 0 whatever is fed", lack.sources)
        if lack is not None and not (name in whole and lack.rule in (CONSTANT, FEW)):
            lacks[name] = lack
    refused = refusals(found, lacks)
    told = [one for one in found if one.activation in lacks and one.activation not in whole and not _has_range(one)]
    return Evidence(lacks, refused, tuple(_warnings(graph, told, lacks, sights, samples)))


def _fixed_inputs(sights: Mapping[str, Sight]) -> set[str]:
    """The inputs that never changed.

    Where none did, there was one sample, given once or many times, and only an input that is one number throughout
    tells that it was not used.
    """
    fixed = {name for name, one in sights.items() if one.fixed}
    if any(not one.fixed and not one.counts and one.elements for one in sights.values()):
        return fixed
    return {name for name in fixed if sights[name].value is not None}


def _lack(
    name: str, bare: Lack | None, sources: frozenset[str] | None, sights: Mapping[str, Sight], samples: int
) -> Lack | None:
    """What is missing of one tensor, with where that comes from."""
    if bare is not None and bare.rule in (UNSEEN, FEW):
        return Lack(bare.rule, bare.what, frozenset([name]))
    if not sources:
        return bare
    if bare is None and sources == {name} and name not in sights:
        return Lack(CONSTANT, f"had the same values at every position in {_all(samples)}", sources)
    if bare is None and sources == {name}:
        return Lack(CONSTANT, f"had the same content in {_all(samples)}", sources)
    return Lack(bare.rule, bare.what, sources) if bare is not None else Lack(CONSTANT, _computed(sources), sources)


def _computed(sources: Iterable[str]) -> str:
    listed = sorted(sources)
    return f"is computed from {_names(listed)} alone, which never changed"


def _all(samples: int) -> str:
    return "the one calibration sample" if samples == 1 else f"all {samples} calibration samples"


def refusals(found: Iterable[Candidate], lacks: Mapping[str, Lack]) -> tuple[Refusal, ...]:
    """The refusals of the layers that would need a range of what was not seen; a range that came with it is one."""
    return tuple(
        Refusal(one.node, one.op, lack.rule, f"{why(one.activation, lack)}: no range can be known for it")
        for one in found
        if not _has_range(one) and (lack := lacks.get(one.activation)) is not None
    )


def _has_range(one: Candidate) -> bool:
    """Whether a range came with it, or was given."""
    return one.amax is not None or one.known is not None


def why(tensor: str, lack: Lack) -> str:
    """The lack of a tensor as a sentence without its end."""
    return f"'{tensor}' {lack.what}"


def _warnings(
    graph: gs.Graph,
    told: Sequence[Candidate],
    lacks: Mapping[str, Lack],
    sights: Mapping[str, Sight],
    samples: int,
) -> Iterable[str]:
    """One warning for all that never changed, one for parts that nothing reached, one for what was seen too rarely."""
    by_rule = {one.node: lacks[one.activation].rule for one in told}
    still = [one for one in told if by_rule[one.node] in (ZERO, CONSTANT)]
    yield from _unchanged(graph, still, lacks, sights, samples)
    missed = [one for one in told if by_rule[one.node] == UNSEEN]
    if missed:
        parts = list(dict.fromkeys(_part(one) for one in missed))
        it = "it" if len(parts) == 1 else "them"
        hollow = [f"'{name}'" for name, one in sights.items() if one.hollow]
        was = f"input{'s' * (len(hollow) > 1)} {', '.join(hollow)} {'were' if len(hollow) > 1 else 'was'}"
        empty = f" ({was} empty in each of them)" if hollow else ""
        yield (
            f"{_unreached(parts, samples)}{empty}: nothing is known of the ranges there, so {_stay(missed)}; give "
            f"calibration data that reaches {it}"
        )
    rare = [one for one in told if by_rule[one.node] == FEW]
    if rare:
        reads = list(dict.fromkeys(one.activation for one in rare))
        what = why(reads[0], lacks[reads[0]])
        more = f", and {len(reads) - 1} other tensor{'s' * (len(reads) > 2)} no more" if len(reads) > 1 else ""
        yield f"{what}{more}: too little to know a range, so {_stay(rare)}; give more calibration data"


def _unreached(parts: Sequence[str], samples: int) -> str:
    was = "was" if len(parts) == 1 else "were"
    return f"{_listed(parts)} {was} not reached by any of {samples} calibration sample{'s' * (samples != 1)}"


def _unchanged(
    graph: gs.Graph,
    still: Sequence[Candidate],
    lacks: Mapping[str, Lack],
    sights: Mapping[str, Sight],
    samples: int,
) -> Iterable[str]:
    """The warning that names what never changed, inputs first; inputs that were 0 also where no layer is at stake."""
    floats = {tensor.name for tensor in graph.inputs if graphs.is_float(tensor)}
    idle = [name for name, one in sights.items() if one.value == 0.0 and one.elements > 1 and name in floats]
    sources = {source for one in still for source in lacks[one.activation].sources or (one.activation,)}
    names = [name for name in sights if name in sources or name in idle]
    names += sorted(sources - sights.keys(), key=[*lacks, *sources].index)
    if not names:
        return
    zeros = [name for name in names if _is_zero(name, lacks, sights)]
    others = [name for name in names if name not in zeros]
    said = [f"{_tensors(zeros, sights)} 0"] if zeros else []
    said += [f"{_tensors(others, sights)} always the same"] if others else []
    effect = f"; no range can be known of what depends on nothing else, so {_stay(still)}" if still else ""
    yield (
        f"in {_all(samples)} {' and '.join(said)}{effect}. All other ranges are those of the model without it: if it "
        "is ever used, give calibration data in which it is"
    )


def _is_zero(name: str, lacks: Mapping[str, Lack], sights: Mapping[str, Sight]) -> bool:
    if name in sights:
        return sights[name].value == 0.0
    return name in lacks and lacks[name].rule == ZERO


def _tensors(names: Sequence[str], sights: Mapping[str, Sight]) -> str:
    """Inputs and other tensors by name, with the verb."""
    fed, inner = [name for name in names if name in sights], [name for name in names if name not in sights]
    parts = [f"input{'s' * (len(fed) > 1)} {_names(fed)}"] if fed else []
    parts += [_names(inner)] if inner else []
    return f"{' and '.join(parts)} {'was' if len(names) == 1 else 'were'}"


def _stay(layers: Sequence[Candidate]) -> str:
    names = [one.node for one in layers]
    if len(names) == 1:
        return f"{_names(names)} stays in high precision"
    return f"{len(names)} layers stay in high precision ({_names(names)})"


def _names(names: Sequence[str]) -> str:
    return _listed([f"'{name}'" for name in names])


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _part(layer: Candidate) -> str:
    """The part of the model that a layer belongs to, in the model's own words: an expert, else the layer."""
    named = (_expert(text) for text in (layer.node, layer.weight, layer.activation))
    return next((part for part in named if part), f"'{layer.node}'")


def _expert(name: str) -> str:
    """The expert that a name speaks of, with where it stands; empty where it speaks of none."""
    match = _EXPERT.match(name)
    if match is None:
        return ""
    home = match[1].strip("/._ ")
    return f"expert {match[2]}" + (f" of '{home}'" if home else "")
