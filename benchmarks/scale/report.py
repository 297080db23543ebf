"""Tables and plots of what was measured: `python -m benchmarks.scale.report OUT [PAGE.md]`.

OUT gets `scale.md` and the plots; of a page, what stands between its marks is replaced, and the plots go beside it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import put_between_marks, table
from benchmarks.scale.measured import Measured

TITLES = {
    "data": "Time and memory against data",
    "depth": "Time and memory against depth",
    "entropy": "Entropy calibration and INT8, whole process",
    "memory": "Memory for 64 and 4096 samples",
    "second": "A second compile with something else",
    "workers": "One worker and two",
    "stacks": "Stacks of decoder blocks",
    "large": "Stacks of decoder blocks, 1.66 and 3.3 GB",
    "llama-7b": "Seven billion parameters",
}
PLOTTED = ("data", "depth")
COLUMNS = ("row", "samples", "plain CPU s", "compile CPU s", "÷", "wall s", "plain MB", "peak MB", "÷", "written MB")
FINDS = ("INT8 share", "SQNR dB", "from earlier")


def read(out: Path) -> dict[str, list[Measured]]:
    """What there is, by study; rows in the order in which they were measured."""
    found: dict[str, list[Measured]] = {}
    for path in sorted((out / "rows").glob("*.json"), key=lambda one: one.stat().st_mtime):
        one = Measured.read(path)
        found.setdefault(one.row.study, []).append(one)
    for study in PLOTTED:
        found.get(study, []).sort(key=size_of)
    return {study: found[study] for study in TITLES if study in found}


def line(one: Measured) -> list[str]:
    """A row of a table."""
    plain, ours = one.plain, one.ours
    reused = sorted({name.partition(".")[0] for name in one.manifest["reused"]})
    level = one.manifest["sqnr_db"]
    return [
        one.row.name,
        str(one.row.samples),
        f"{plain.cpu_s:.1f}",
        f"{ours.cpu_s:.1f}",
        f"{one.time_ratio:.1f}",
        f"{ours.wall_s:.0f}",
        f"{plain.peak_mb:.0f}",
        f"{ours.peak_mb:.0f}",
        f"{one.memory_ratio:.2f}",
        f"{ours.written_mb:.0f}",
        f"{100 * one.manifest['share']:.1f} %",
        "" if level is None else f"{level:.1f}",
        f"{len(reused)} {'stage' if len(reused) == 1 else 'stages'}" if reused else "",
    ]


def sameness(rows: Sequence[Measured]) -> Iterator[str]:
    """Of rows that differ in the number of workers alone, whether their artefacts do."""
    groups: dict[str, list[Measured]] = {}
    for one in rows:
        groups.setdefault(one.row.name.rpartition("-")[0], []).append(one)
    for name, members in groups.items():
        if len(members) < 2:
            continue
        first = graph_files(members[0])
        same = all(graph_files(one) == first for one in members)
        yield f"{name}: the artefacts of 1 and 2 workers are {'the same, byte for byte' if same else 'NOT the same'}."


def graph_files(one: Measured) -> dict[str, str]:
    """Hashes of the artefacts without the manifest, which has the number of workers in its recipe."""
    return {name: content for name, content in one.files.items() if not name.endswith(".manifest.json")}


def growth(rows: Sequence[Measured], sizes: Sequence[float]) -> Iterator[str]:
    """Between neighbours, by how much time and memory grow as the size does."""
    for before, after, small, large in zip(rows, rows[1:], sizes, sizes[1:], strict=False):
        yield (
            f"{before.row.name} to {after.row.name}: size × {large / small:.0f}, CPU time × "
            f"{after.ours.cpu_s / before.ours.cpu_s:.2f}, peak memory × {after.ours.peak_mb / before.ours.peak_mb:.2f}."
        )


def size_of(one: Measured) -> float:
    """What grows in its study: blocks or samples."""
    return float(one.row.layers or one.row.samples)


def kills(records: Iterable[Mapping[str, Any]]) -> Iterator[list[str]]:
    """A row for each series of ended compiles."""
    for record in records:
        moments = record["moments"]
        count = len(moments)
        whole = sum(1 for one in moments if not one["again"] and not one["differs"])
        clean = sum(1 for one in moments if not one["strays"])
        resumed = sum(1 for one in moments if one["reused"])
        could = sum(1 for one in moments if one["kept"])
        again = sum(one["cpu_s"] for one in moments) / count
        faults = sum(1 for one in moments if one["faults"])
        yield [
            record["name"],
            f"`{' '.join(Path(word).name if '/' in word else word for word in record['flags'])}`",
            f"{record['cpu_s']:.1f}",
            str(count),
            f"{whole} of {count}",
            f"{clean} of {count}",
            f"{resumed} of {could}",
            f"{again:.1f}",
            str(sum(one["orphans"] for one in moments)),
            str(faults),
        ]


KILLED = (
    "series",
    "command",
    "undisturbed CPU s",
    "moments",
    "same artefacts",
    "no stray files",
    "resumed, of those with something kept",
    "CPU s of the second",
    "orphans",
    "with faults",
)


def markdown(found: Mapping[str, Sequence[Measured]], killed: Sequence[Mapping[str, Any]]) -> str:
    """All tables."""
    parts = []
    for study, rows in found.items():
        dates = sorted({one.when for one in rows})
        environment = rows[-1].manifest["environment"]
        versions = ", ".join(
            f"{name} {environment[name]}" for name in ("onnx", "numpy", "python") if name in environment
        )
        runtime = next((f"{name} {version}" for name, version in environment.items() if "onnxruntime" in name), "")
        where = rows[-1].where
        parts.append(f"### {TITLES[study]}\n")
        parts.append(f"{', '.join(dates)}; {where['cpu']}, {runtime}, {versions}.\n")
        if study in PLOTTED:
            parts.append(f"![{TITLES[study]}](scale_{study}.svg)\n")
        parts.append(table((*COLUMNS, *FINDS), map(line, rows)) + "\n")
        if study in PLOTTED:
            parts.append("\n".join(f"* {text}" for text in growth(rows, [size_of(one) for one in rows])) + "\n")
        if study == "workers":
            parts.append("\n".join(f"* {text}" for text in sameness(rows)) + "\n")
    if killed:
        parts.append("### Ended at random moments\n")
        parts.append(table(KILLED, kills(killed)) + "\n")
    return "\n".join(parts) or "Nothing was measured yet.\n"


def plot(rows: Sequence[Measured], path: Path, label: str) -> None:
    """Processor time (left) and peak memory (right) over what grows, with lines of linear and of no growth."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = path.stem  # the same figures give the same file
    from matplotlib import pyplot

    sizes = [size_of(one) for one in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for name, usages in (("compile", [one.ours for one in rows]), ("plain pass", [one.plain for one in rows])):
        left.plot(sizes, [usage.cpu_s for usage in usages], marker="o", label=name)
        right.plot(sizes, [usage.peak_mb for usage in usages], marker="o", label=name)
    first = rows[0].ours.cpu_s
    left.plot(sizes, [first * size / sizes[0] for size in sizes], "--", color="grey", label="linear")
    left.set(xscale="log", yscale="log", xlabel=label, ylabel="CPU seconds")
    right.set(xscale="log", xlabel=label, ylabel="peak memory, MB")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
        axes.minorticks_off()
    left.legend()
    right.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main(out: Path, page: Path | None = None) -> None:
    """Writes tables and plots."""
    found = read(out)
    killed = [json.loads(path.read_text(encoding="utf8")) for path in sorted(out.glob("kills.*.json"))]
    text = markdown(found, killed)
    (out / "scale.md").write_text(text, encoding="utf8")
    folders = [out] if page is None else [out, page.parent]
    for study in PLOTTED:
        if len(found.get(study, ())) > 1:
            for folder in folders:
                plot(found[study], folder / f"scale_{study}.svg", "samples" if study == "data" else "blocks")
    if page is not None:
        put_between_marks(page, text)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
