"""The tables of docs/figures/benchmarks.md, between two marks; the prose around them is written by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median

from benchmarks.results import Outcome
from benchmarks.subjects import SUBJECTS

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
COLUMNS = (
    "quantizer",
    "whole process",
    "÷ plain process",
    "÷ plain pass",
    "without imports ÷ plain pass",
    "peak memory",
    "÷ plain",
    "SQNR dB",
    "metric",
    "INT8 MACs",
    "CPU time ÷ FP32",
    "size MB",
)
SCALING = ("model", "samples", "quantizer", "plain pass", *COLUMNS[1:7], "CPU seconds ÷ plain", "repeats")


def replace_results(document: Path, folder: Path) -> int:
    """Puts the tables of all cells in `folder` between the marks of `document`; returns how many cells there are.

    Raises:
        ValueError: The document has no marks.
    """
    outcomes = [Outcome.read(path) for path in sorted(folder.glob("*.json"))]
    put_between_marks(document, markdown(outcomes))
    return len(outcomes)


def put_between_marks(document: Path, tables: str) -> None:
    """Replaces what stands between the marks.

    Raises:
        ValueError: The document has no marks.
    """
    text = document.read_text(encoding="utf8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document} lacks the lines {BEGIN} and {END}")
    document.write_text(f"{head}{BEGIN}\n{tables}\n{END}{tail}", encoding="utf8")


def markdown(outcomes: Iterable[Outcome]) -> str:
    """All tables, each model's with its plain pass, and the remarks."""
    order = list(SUBJECTS)
    known = sorted(outcomes, key=lambda one: (one.cell.model, one.cell.samples, order.index(one.cell.subject)))
    if not known:
        return "\nNothing was measured yet.\n"
    judged = [one for one in known if one.cell.judged]
    models = dict.fromkeys(one.cell.model for one in judged)
    parts = [_circumstances(known)]
    parts += [_accuracy_table(model, [one for one in judged if one.cell.model == model]) for model in models]
    large = {(one.cell.model, one.cell.subject) for one in known if not one.cell.judged}
    if large:
        scaled = [one for one in known if (one.cell.model, one.cell.subject) in large]  # the small ones beside them
        parts.append("### More samples\n\n" + table(SCALING, [_scaling_row(one) for one in scaled]) + _remarks(scaled))
    return "\n" + "\n\n".join(parts) + "\n"


def _circumstances(outcomes: list[Outcome]) -> str:
    machines = {
        f"{one.machine['cores']} cores of {one.machine['cpu']} ({one.machine['int8']}), {one.machine['memory_gb']} GB, "
        f"{one.machine['system']}, Python {one.machine['python']}"
        for one in outcomes
    }
    measured = (
        f"Measured {_from_to(one.when[:10] for one in outcomes)} on {'; '.join(sorted(machines))}. "
        f"Load average before a cell: {_from_to(f'{one.load:.1f}' for one in outcomes)}; "
        f"medians of {_from_to(str(len(one.runs)) for one in outcomes)} repeats."
    )
    versions = {SUBJECTS[one.cell.subject].peer or "qcompiler": run.versions for one in outcomes for run in one.runs}
    versions["plain pass"] = outcomes[0].limits[0].versions
    judges = {one.evaluation["onnxruntime"] for one in outcomes if one.evaluation and "onnxruntime" in one.evaluation}
    versions["evaluation"] = {"onnxruntime": " and ".join(sorted(judges)) or "not run"}
    rows = [
        [name, ", ".join(f"{package} {number}" for package, number in found.items())]
        for name, found in versions.items()
    ]
    return f"{measured}\n\n" + table(("process", "versions"), rows)


def _from_to(values: Iterable[str]) -> str:
    ordered = sorted(set(values))
    return " to ".join(dict.fromkeys((ordered[0], ordered[-1])))


def _accuracy_table(model: str, outcomes: list[Outcome]) -> str:
    limits = [limit for one in outcomes for limit in one.limits]
    evaluation = next((one.evaluation for one in outcomes if one.evaluation and "metric" in one.evaluation), None)
    head = f"### {model}, {outcomes[0].cell.samples} samples\n\n"
    if evaluation:
        better = "higher" if evaluation["higher_is_better"] else "lower"
        head += f"Metric: {evaluation['metric_name']}; float {evaluation['metric_float']:.4f}, {better} is better. "
    head += (
        f"Plain FP32 pass: {median(one.wall_s for one in limits):.2f} s "
        f"({median(one.work_s or 0.0 for one in limits):.2f} s without imports), "
        f"{median(one.peak_mb for one in limits):.0f} MB; {outcomes[0].float_bytes / 1e6:.1f} MB on disk.\n\n"
    )
    return head + table(COLUMNS, [_row(one) for one in outcomes]) + _remarks(outcomes)


def _row(one: Outcome) -> list[str]:
    title = SUBJECTS[one.cell.subject].title
    if not one.ok:
        return [title, "**fails**", *[""] * 3, f"{one.peak_mb():.0f} MB", *[""] * 6]
    return [title, *_cost(one), *_worth(one), f"{one.bytes / 1e6:.1f}"]


def _cost(one: Outcome) -> list[str]:
    work = one.work_to_pass()
    return [
        f"{one.wall_s():.1f} s",
        f"{one.like_for_like():.2f}",
        f"{one.to_pass():.2f}",
        "" if work is None else f"{work:.2f}",
        f"{one.peak_mb():.0f} MB",
        f"{one.peak_ratio():.2f}",
    ]


def _worth(one: Outcome) -> list[str]:
    found = one.evaluation or {}
    if "error" in found:
        return ["", "**does not run**", "", ""]
    if not found:
        return [""] * 4
    levels = [level for level in found["sqnr_db"].values() if level is not None]
    share = found["int8_share"]
    return [
        f"{min(levels):.1f}" if levels else "–",
        f"{found['metric']:.4f}",
        "" if share is None else f"{share:.0%}",
        f"{found['latency']['ratio']:.2f}",
    ]


def _scaling_row(one: Outcome) -> list[str]:
    plain = median(limit.work_s or 0.0 for limit in one.limits)
    start = [one.cell.model, str(one.cell.samples), SUBJECTS[one.cell.subject].title, f"{plain:.2f} s"]
    cost = [*_cost(one), f"{one.cpu_ratio():.2f}"] if one.ok else ["**fails**", *[""] * 6]
    return [*start, *cost, str(len(one.runs))]


def _remarks(outcomes: list[Outcome]) -> str:
    lines = [f"* {SUBJECTS[one.cell.subject].title}: {'; '.join(one.remarks)}" for one in outcomes if one.remarks]
    return "\n\n" + "\n".join(dict.fromkeys(lines)) if lines else ""


def table(columns: Iterable[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    columns = tuple(columns)
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)
