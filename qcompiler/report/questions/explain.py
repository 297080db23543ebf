"""One node on one screen: what `qcompiler explain` found, as lines with a word in front that says what they are about.

Every figure is one of the manifest, in another unit at most: noise as dB, seconds as µs, work as a share of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from qcompiler.report.figures import channels, count, decibel, number, percent, short, tokens, words
from qcompiler.report.search.rungs import state

if TYPE_CHECKING:
    from rich.console import RenderableType

Record = Mapping[str, Any]
Line = tuple[str, str]
BARS: Final = "▁▂▃▄▅▆▇█"
FOUND: Final = {
    "tensor": "writes the tensor '{asked}'",
    "part": "the one name with '{asked}' in it",
    "pattern": "the one name that '{asked}' matches",
    "edits": "no node of the plan: passes speak of it",
}
METHODS: Final = {"smooth_quant": "SmoothQuant", "qfem": "QFeM", "llm_int8": "LLM.int8()", "half": "rounded to half"}
_NAMED: Final = 6  # neighbours, layers that share a range, and nodes in a kernel that are named


def terminal(found: Record) -> Iterator[RenderableType]:
    """The name and its precision; why; what was tried; ranges; what is around it; its kernel; what is not known."""
    yield Text(_head(found), style="bold")
    about = found["manifest"]
    if about["missed"]:
        yield Text(f"! not accepted: {about['missed']}", style="yellow")
    if about.get("random_data"):
        yield Text("! random data: ranges and figures of accuracy mean nothing", style="bold red")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    last = ""
    for name, value in _lines(found):
        table.add_row(Text("" if name == last else name), Text(value))
        last = name
    yield table
    for text in found["warnings"]:
        yield Text(f"! {text}", style="yellow")
    for text in found["unknown"]:
        yield Text(f"not known: {text}", style="dim")


def _head(found: Record) -> str:
    one = found["decision"]
    if one is None:
        return str(found["node"])
    if not one["counted"]:
        work = ", how much it multiplies is not known"
    elif one["macs"]:
        work = f", {percent(one['share'])} of the multiply-accumulates ({count(one['macs'])})"
    else:
        work = ", does not multiply"
    return f"{found['node']}: {one['op']} in {one['precision']}{work}"


def _lines(found: Record) -> Iterator[Line]:
    about, one = found["manifest"], found["decision"]
    made = " ".join(str(about[key]) for key in ("precision", "target") if about[key])
    yield (
        "manifest",
        f"{about['file']}: {about['model'] or 'model'} to {made or 'nothing'}, qcompiler {about['qcompiler']}",
    )
    if found["found_by"] in FOUND:
        yield "found", FOUND[found["found_by"]].format(asked=found["asked"])
    if one is not None:
        yield "why", f"{one['why']} (rule {one['rule']})"
        if one["figures"]:
            yield "figures", ", ".join(_figure(name, value) for name, value in one["figures"].items())
    yield from (("passes", _edit(edit, found["node"])) for edit in found["edits"])
    yield from _tried(found)
    yield from _ranges(found)
    yield from _around(found)
    yield from _of_engine(found)
    yield from _of_accuracy(found)
    yield from _of_rungs(found["rungs"])


def _edit(edit: Record, node: str) -> str:
    at = "" if edit["at"] == node else f" at '{edit['at']}'"
    return f"{edit['pass']}{at}: {edit['text']}"


def _tried(found: Record) -> Iterator[Line]:
    group, net = found["activation"], found["net"]
    if group and group["shared"]:
        yield "group", f"shares the range of '{group['tensor']}' with {_named(group['shared'])}"
    for one in found["trials"]:
        into = f"{one['format']}" + (f" clipped at {short(one['amax'])}" if one["amax"] is not None else "")
        chosen = ", chosen" if one["chosen"] else ""
        yield "tried", f"{into}: {decibel(one['sqnr_db'])} at the outputs ({one['how']}{chosen})"
    if net is not None:
        yield "tried", _of_net(net)
    places: dict[str, list[str]] = {}
    for one in found["front"]:
        places.setdefault(str(one["type"]), []).append(str(one["id"]))
    if places:
        yield "front", "; ".join(f"{kind} at {', '.join(ids)}" for kind, ids in places.items())
    if found["costs"]:
        costs = ", ".join(f"{name} {_micro(value)}" for name, value in found["costs"].items())
        yield "cost", f"predicted time of the group: {costs}"
    for name, one in found["methods"].items():
        said = ", ".join(_figure(key, value) for key, value in one.items() if value not in (None, "", []))
        yield "methods", f"{METHODS.get(name, words(name))}: {said}"


def _of_net(net: Record) -> str:
    aim = f"the goal of the search was {decibel(net['target_db'])}" if net["target_db"] is not None else "no goal"
    reached = f"{decibel(net['first_db'])} with everything in its cheapest type, {decibel(net['last_db'])} at the end"
    if not net["restored"]:
        return f"{aim}: {reached}; this group stayed quantized"
    return f"{aim}: {reached}; this group went back to high precision as number {net['place']}"


def _ranges(found: Record) -> Iterator[Line]:
    for one in found["quantizers"]:
        if one["dtype"] is not None:
            seen = "nothing was run" if one["observed"] is None else f"largest seen {short(one['observed'])}"
            span = f", grid from {short(one['span'][0])} to {short(one['span'][1])}" if one.get("span") else ""
            clipped = f"{one['dtype']} clipped at {short(one['amax'])} by {one['calibrator']}"
            yield "range", f"'{one['tensor']}' {clipped}, {seen}{span}"
        if one["histogram"]:
            of = "" if one["dtype"] is not None else f"'{one['tensor']}', which stays float: "
            yield "range", f"{of}{_spark(one['histogram'])}"
    spikes = found["outliers"]
    if spikes is not None:
        renamed = found["activation"] is None or found["activation"]["tensor"] != spikes["tensor"]
        of = f"'{spikes['tensor']}', as it was observed: " if renamed else ""
        ratios = f"{of}largest token {short(spikes['ratio'])}× the median, at worst {short(spikes['worst_ratio'])}×"
        yield "outliers", f"{ratios}, kurtosis {short(spikes['kurtosis'])}"
        if spikes["top_channels"]:
            yield "outliers", f"channels {channels(spikes['top_channels'])}"
        if spikes["top_tokens"]:
            yield "outliers", f"positions {tokens(spikes['top_tokens'])}"


def _spark(bars: Record) -> str:
    """A bar an octave, as high as its share; empty ones are dots."""
    counts = bars["counts"]
    most = max(counts, default=0)
    drawn = "".join("·" if not one else BARS[min(int(len(BARS) * one / most), len(BARS) - 1)] for one in counts)
    zeros = f", {count(bars['zeros'])} of {count(bars['elements'])} zero" if bars["zeros"] else ""
    begin = f"|x| from 2^{bars['first']}, a bar for each doubling: {drawn}" if counts else "all zero"
    return f"{begin}; values {short(bars['minimum'])} to {short(bars['maximum'])}{zeros}".replace("-", "−")


def _around(found: Record) -> Iterator[Line]:
    weight = found["weight"]
    if weight is not None:
        yield "weight", _weight(weight)
    for one in found["reads"]:
        by = one["by"]
        source = f"{_spoken(by)}" if by else "an input of the model" if one["input"] else "a nested graph's own input"
        yield "reads", f"'{one['tensor']}' from {source}"
    for one in found["writes"]:
        readers = _named([_spoken(by) for by in one["by"]], quoted=False)
        ends = ["an output of the model"] * one["output"] + [f"read by {readers}"] * bool(readers)
        yield "writes", f"'{one['tensor']}', {' and '.join(ends) or 'which nothing reads'}"


def _weight(weight: Record) -> str:
    parts = []
    if "tensor" in weight:
        shape = " × ".join(map(str, weight["shape"]))
        parts.append(f"'{weight['tensor']}' {shape}")
    if "axis" in weight:
        parts.append("one scale for all" if weight["axis"] is None else f"a scale per index of axis {weight['axis']}")
    stored = weight.get("stored")
    if stored:
        parts.append("stored: " + ", ".join(_figure(key, value) for key, value in stored.items() if _said(key, value)))
    return ", ".join(parts)


def _said(key: str, value: Any) -> bool:
    return key != "node" and value is not None and value != "" and not isinstance(value, list | dict)


def _spoken(by: Record) -> str:
    kind = f"{by['op']}, {by['precision']}" if by["precision"] else f"{by['op']}"
    return f"{by['node']} ({kind})"


def _named(names: Sequence[str], *, quoted: bool = True) -> str:
    shown = [f"'{name}'" if quoted else name for name in names[:_NAMED]]
    return ", ".join(shown) + f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)


def _of_engine(found: Record) -> Iterator[Line]:
    engine = found["engine"]
    if engine is None:
        return
    if engine["compiled"]:
        yield "engine", f"its listing shows the product in {engine['compiled']}"
    kinds: dict[str, tuple[int, Sequence[str]]] = {}
    for one in engine["kernels"]:
        times, others = kinds.get(one["what"], (0, one["with"]))
        kinds[one["what"]] = (times + 1, others)
    for what, (times, others) in kinds.items():
        fused = f", which computes {_named(others)}, too" if others else ""
        yield "engine", f"kernel {what.replace('->', '→')}{f' ({times} of them)' if times > 1 else ''}{fused}"
    yield from (("engine", f"not as promised: {text}") for text in engine["mismatches"])


def _of_accuracy(found: Record) -> Iterator[Line]:
    one = found["accuracy"]
    if one is None:
        return
    if one.get("sqnr_db") is not None:
        drifts = "; the error grows here" if one["drifts"] else ""
        here = f"'{one['tensor']}' has {decibel(one['sqnr_db'])} against float on {one['samples']} samples"
        yield "accuracy", f"{here}, {decibel(one['own_db'])} by this layer alone{drifts}"
    if one["blamed"]:
        blamed = one["blamed"]
        exact = f"with it exact '{blamed['end']}' has {decibel(blamed['repaired_db'])}"
        yield "accuracy", f"among those most to blame: {exact} instead of {decibel(blamed['end_db'])}"


def _of_rungs(rungs: Iterable[Record]) -> Iterator[Line]:
    for one in rungs:
        gain = f", {decibel(one['gain_db'])} gained for the model" if one.get("gain_db") is not None else ""
        yield "rungs", f"{one['name']}: {state(one)}{gain}; {one.get('why') or 'no reason recorded'}"


def _figure(name: str, value: Any) -> str:
    """`amax 1.25`, `sqnr 23.4 dB`: the unit of a figure is in the end of its name."""
    if isinstance(value, list):
        return f"{words(name)} {', '.join(map(str, value))}"
    if name.endswith("_db"):
        return f"{words(name.removesuffix('_db'))} {decibel(value)}"
    figure = None if isinstance(value, str) else number(value)
    return f"{words(name)} {short(value) if figure is not None else value}"


def _micro(seconds: Any) -> str:
    figure = number(seconds)
    return "–" if figure is None else f"{1e6 * figure:.4g} µs"
