"""Numbers as people read them; shared by the terminal and the HTML report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

COMPUTING = ("int8", "fp8", "int4")  # precisions of nodes that compute in a quantized type
STORING = ("int8-weight", "int4-weight")  # of those that only read a weight that is stored in one
QUANTIZED = (*COMPUTING, *STORING)


def number(value: Any) -> float | None:
    """A figure of a manifest as a float: "inf" and "-inf" are infinities, None stays."""
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def decibel(value: Any) -> str:
    """`23.4 dB`; `exact` for infinity, `broken` for minus infinity, a dash for nothing."""
    figure = number(value)
    if figure is None:
        return "–"
    if math.isinf(figure):
        return "exact" if figure > 0 else "broken"
    return f"{figure:.1f} dB".replace("-", "−")


def percent(value: Any, digits: int = 1) -> str:
    """A share of 1 as per cent."""
    figure = number(value)
    return "–" if figure is None else f"{100 * figure:.{digits}f} %"


def size(value: Any) -> str:
    """Bytes with a decimal unit."""
    figure = number(value)
    if figure is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if figure < 1000 or unit == "GB":
            break
        figure /= 1000
    return f"{figure:.0f} B" if unit == "B" else f"{figure:.3g} {unit}"


def bytes_of(file: Any) -> int | None:
    """Of a model in a manifest, with the files of its weights; None where there is none."""
    if not isinstance(file, Mapping) or number(file.get("bytes")) is None:
        return None
    return int(file["bytes"] + sum(one.get("bytes") or 0 for one in file.get("data") or ()))


def count(value: Any) -> str:
    """A large count with a decimal prefix: 1.2 G."""
    figure = number(value)
    if figure is None:
        return "–"
    for prefix in ("", "k", "M", "G", "T"):
        if figure < 1000 or prefix == "T":
            break
        figure /= 1000
    return f"{figure:.0f}" if not prefix else f"{figure:.3g} {prefix}"


def short(value: Any) -> str:
    """A figure with four digits, or a dash."""
    figure = number(value)
    return "–" if figure is None else f"{figure:.4g}"


def ranges_line(found: Mapping[str, Any]) -> str:
    """Where ranges were taken from that nobody measured here."""
    return f"{found['given']} given by {found['name']}, {found['kind']}"


def seconds(value: Any) -> str:
    """`0.25 s`, `3.1 s` or `2 min 5 s`."""
    figure = number(value)
    if figure is None:
        return "–"
    if figure >= 60:
        return f"{int(figure // 60)} min {figure % 60:.0f} s"
    return f"{figure:.1f} s" if figure >= 1 else f"{figure:.2g} s"


def moved(found: Mapping[str, Any]) -> str:
    """How the metric's score changed, relative to float: `−0.20 %` is a loss, whichever direction is better."""
    return f"{-100 * (number(found.get('drop')) or 0.0) + 0.0:+.2f} %".replace("-", "−")


def held_out(found: Mapping[str, Any]) -> str:
    """What the half of a metric lost that nothing was chosen by; "" where nothing was chosen by that metric."""
    halves = found.get("halves")
    if not halves:
        return ""
    if not halves.get("split"):
        return "in sample: all of it chose"
    return f"held out, the other half alone: {moved({'drop': halves.get('judging_loss')})}"


def both_halves(found: Mapping[str, Any]) -> str:
    """What each half of a metric lost, and which of them chose; "" where nothing was chosen by that metric."""
    halves = found.get("halves")
    if not halves or not halves.get("split"):
        return held_out(found)
    judging, choosing = (moved({"drop": halves.get(f"{which}_loss")}) for which in ("judging", "choosing"))
    return f"of that {judging} in the half that judges, held out, and {choosing} in the half that chose"


def score(found: Mapping[str, Any]) -> str:
    """`0.976 → 0.974`, float to quantized."""
    return f"{short(found.get('float_score'))} → {short(found.get('quantized_score'))}"


def audited(audit: Mapping[str, Any]) -> str:
    """`52 of 52 nodes confirmed`, with the number of mismatches if there are any."""
    text = f"{audit.get('confirmed', 0)} of {audit.get('promised', 0)} nodes confirmed"
    wrong = len(audit.get("mismatches") or ())
    return f"{text}, {wrong} mismatch{'es' * (wrong != 1)}" if wrong else text


def work(macs: Mapping[str, Any]) -> str:
    """`71.4 % int8, 28.6 % fp16, confirmed by the engine`: where multiply-accumulates are done."""
    total = max(macs["total"], 1)
    parts = sorted(macs["by_precision"].items(), key=lambda part: -part[1])
    text = ", ".join(f"{percent(value / total)} {precision(name)}" for name, value in parts if value / total >= 0.0005)
    if macs.get("confirmed"):
        text += ", confirmed by the engine"
    if broken(macs):
        text += f" ({percent(macs['promised_share'])} in low precision were promised)"
    missing = len(macs.get("uncounted") or ())
    if missing:
        text += f"; {missing} node{'s' * (missing != 1)} whose work nobody knows left out"
    return text


def broken(macs: Mapping[str, Any]) -> bool:
    """Whether an engine confirms less work in low precision than was promised."""
    return bool(macs.get("promised_share", 0.0) - macs["quantized_share"] >= 0.0005)


def precision(name: str) -> str:
    """A type of work in words."""
    return "not confirmed" if name == "unconfirmed" else name


def split_off(found: Mapping[str, Any]) -> str:
    """`28 layers multiply 3 to 19 channels apart, 2.1 % of MACs`, and what became of these products in the engine."""
    sizes = sorted(len(group["channels"]) for group in found["groups"] if group["channels"])
    if not found["layers"]:
        return "no layer has channels that are worth a product of their own"
    several = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
    text = f"{found['layers']} layers multiply {several} channels apart, {percent(found['macs_share'])} of MACs"
    if found.get("joined"):
        text += f"; {len(found['joined'])} were joined again, because they stay in high precision"
    kernels = found.get("kernels")
    if kernels:
        text += (
            f"; {kernels['own']} kernels of {kernels['kernels']} for that, {kernels['fused']} products inside others"
        )
    return text


def verdict(found: Mapping[str, Any] | None) -> str:
    """`Doubtful: 3 different samples; 12.1 dB in a view`, or an empty text where none was given."""
    if not found:
        return ""
    reasons = "; ".join(str(one) for one in found.get("reasons") or ())
    head = str(found.get("verdict") or "unknown").capitalize()
    return f"{head}: {reasons}" if reasons else head


def warnings(manifest: Mapping[str, Any]) -> list[str]:
    """The warnings, but for the one that says the verdict again."""
    said = verdict(manifest.get("verdict")).lower()
    return [text for text in map(str, manifest.get("warnings") or ()) if text.lower() != f"the result is {said}"]


def spelled(column: str, value: Any) -> str:
    """A value of an inspection as people read it; `column` says what it is."""
    spell = _SPELLED.get(column, cell)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {spell(one)}" for name, one in value.items())
    return spell(value)


def words(key: str) -> str:
    """A key of a document as words."""
    return key.replace("_", " ")


def is_table(value: Any) -> bool:
    """Whether a value is a list of records."""
    return isinstance(value, Sequence) and bool(value) and all(isinstance(record, Mapping) for record in value)


def channels(records: Sequence[Mapping[str, Any]], limit: int = 3) -> str:
    """`607 ×10.2, 821 ×3.1`: the loudest channels and how often the median one goes into them."""
    return ", ".join(f"{record['channel']}{_times(record.get('over_median'))}" for record in records[:limit])


def tokens(records: Sequence[Mapping[str, Any]], limit: int = 3) -> str:
    """`0 (id 101) 20.4, 30 (id 1007) 6.2`: positions of the largest tokens, their ids and their largest elements."""
    return ", ".join(
        f"{record['position']}{_id(record.get('id'))} {_three(record['value'])}" for record in records[:limit]
    )


def _id(value: Any) -> str:
    return "" if value is None else f" (id {value})"


def _times(value: Any) -> str:
    figure = number(value)
    return "" if figure is None else f" ×{_three(figure)}"


def _three(value: Any) -> str:
    figure = number(value)
    return "–" if figure is None else f"{figure:.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def cell(value: Any) -> str:
    """A value as people read it, whatever it means."""
    if isinstance(value, float):
        return short(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    return "–" if value is None else (count(value) if isinstance(value, int) and value > 99999 else str(value))


_SPELLED: Mapping[str, Callable[[Any], str]] = {
    "macs": count,
    "macs_that_can_be_int8": percent,
    "share": percent,
    "int8_db": decibel,
    "weight_bytes": size,
    "top_channels": channels,
    "top_tokens": tokens,
    "crest": _three,
    "kurtosis": _three,
    "ratio": _three,
    "over_channels": _three,
}
