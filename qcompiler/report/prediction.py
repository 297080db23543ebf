"""The predicted times in words: a line for the top of a summary, and a section of the HTML report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from qcompiler.report.figures import count, number, percent, size
from qcompiler.report.page import fold, section, table

Record = Mapping[str, Any]


def line(found: Record | None) -> str:
    """`predicted on SM89: float16 412 µs, this engine 236 µs (1.7 ×)`; empty where nothing was predicted."""
    sms = (found or {}).get("sms")
    if not found or not sms:
        return ""
    decode = (found.get("decode") or {}).get("sms")
    second = f"; in the decode {_on(found, decode)}" if decode else ""
    return f"predicted on {_on(found, sms)}{second}"


def _on(found: Record, sms: Record) -> str:
    """The times on each GPU."""
    high = found.get("high_precision", "float16")
    told = (
        f"{sm.upper()}: {high} {_us(one['high_us'])}, this engine {_us(one['engine_us'])} ({_times(one)})"
        for sm, one in sms.items()
    )
    return "; ".join(told)


def left_out(found: Record | None) -> str:
    """What the line does not say; empty where nothing was predicted."""
    if not found or not found.get("sms"):
        return ""
    shapes, decode = _shapes(found), _shapes(found.get("decode") or {})
    shapes += f", in the decode {decode}" if decode else ""
    return f"predicted{f' for {shapes}' * bool(shapes)} from the engines' own listings, without {found['leaves_out']}"


def _shapes(found: Record) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in (found.get("shapes") or {}).items())


def slower(found: Record | None) -> bool:
    """Whether high precision is predicted to be faster somewhere."""
    return bool((found or {}).get("sms")) and bool((found or {}).get("warning"))


def prediction(found: Record | None) -> str:
    """The section: times on each GPU, what both engines move, and the plans that were looked at."""
    if not found or not found.get("sms"):
        return ""
    high = str(found.get("high_precision", "float16"))
    body = _times_table(found, high)
    if (found.get("decode") or {}).get("sms"):
        body += f"<h3>In the decode</h3>{_times_table(found['decode'], high)}"
    if found.get("high") and found.get("engine"):
        taken = ((escape(what), *_taken(found[key])) for what, key in ((high, "high"), ("this engine", "engine")))
        body += table(("engine", "kernels", "memory traffic", "multiply-accumulates"), taken, figures=(1, 2))
    tried = list(_tried(found))
    if tried:
        columns = ("plan", "share", "worst speed-up", "kept")
        body += fold(f"{len(tried)} plans that are predicted faster", len(tried), table(columns, tried, figures=(1, 2)))
    note = left_out(found)
    return section("Predicted time", f"{note[0].upper()}{note[1:]}.", body)


def _times_table(found: Record, high: str) -> str:
    rows = (
        (
            escape(sm.upper()),
            escape(str(one.get("gpu", "–"))),
            _us(one["high_us"]),
            _us(one["engine_us"]),
            escape(_times(one)),
        )
        for sm, one in found["sms"].items()
    )
    return table(("SM", "GPU", high, "this engine", "speed-up"), rows, figures=range(2, 5))


def _taken(one: Record) -> tuple[str, str, str]:
    macs = ", ".join(f"{count(macs)} {dtype}" for dtype, macs in one["macs"].items())
    return str(one["kernels"]), size(one["bytes"]), escape(macs or "–")


def _tried(found: Record) -> Iterator[tuple[str, str, str, str]]:
    for one in found.get("tried") or ():
        what = f"{len(one['high'])} layers to high precision, {len(one['single'])} with one weight scale"
        worst = min(_ratio(times) for times in one["sms"].values())
        yield what, percent(one["share"]), f"{worst:.2f} ×", "yes" if one["kept"] else escape(f"no: {one['why']}")


def _ratio(one: Record) -> float:
    return (number(one["high_us"]) or 0.0) / (number(one["engine_us"]) or 1.0)


def _times(one: Record) -> str:
    """How many times as fast as high precision."""
    ratio = _ratio(one)
    return f"{ratio:.2g} ×" + ": slower" * (ratio < 1 and one["high_us"] != one["engine_us"])


def _us(value: Any) -> str:
    """Microseconds, or milliseconds where there are many."""
    figure = number(value)
    if figure is None:
        return "–"
    return f"{figure:.0f} µs" if figure < 10_000 else f"{figure / 1000:.1f} ms"
