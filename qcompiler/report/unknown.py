"""What the manifest says under a key that no section knows: one plain table each, so that a new stage shows at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

from qcompiler.report.figures import cell, is_table, words
from qcompiler.report.page import OPEN_ROWS, fold, section, table

KNOWN: Final = frozenset(  # keys that another section shows, or that are about the manifest itself
    {
        *(
            "schema",
            "qcompiler",
            "environment",
            "source",
            "export",
            "data",
            "ranges",
            "random_data",
            "target",
            "recipe",
        ),
        *("passes", "macs", "plan", "quantizers", "safety", "outliers", "residuals", "smooth_quant", "qfem", "qfep"),
        *("weight_only", "llm_int8", "verification", "engine", "cache", "audit", "files", "timings", "peak_memory_mb"),
        *("warnings", "verdict", "missed", "tries", "inputs", "equivalence", "rungs", "front", "goal", "prediction"),
        *("graph", "histograms", "edits", "estimate", "reused"),  # what `explain` looks up
    }
)


def sections(manifest: Mapping[str, Any]) -> str:
    """A section for each key that is not in `KNOWN` and that says anything, in the order of the manifest."""
    found = (_section(key, value) for key, value in manifest.items() if key not in KNOWN)
    return "\n".join(filter(None, found))


def _section(key: str, value: Any) -> str:
    if value is None or (isinstance(value, Mapping | Sequence) and not value):
        return ""
    if is_table(value):
        return section(key, "", _records(value))
    facts = value if isinstance(value, Mapping) else {key: value}
    single = [(name, one) for name, one in facts.items() if not is_table(one)]
    tables = [(name, one) for name, one in facts.items() if is_table(one)]
    return section(key, "", "".join((*_facts(single), *(_records(one, name) for name, one in tables))))


def _facts(single: Sequence[tuple[str, Any]]) -> Iterator[str]:
    if single:
        yield table(("what", ""), ((escape(words(str(name))), escape(cell(one))) for name, one in single))


def _records(records: Sequence[Mapping[str, Any]], name: str = "records") -> str:
    columns = list(dict.fromkeys(itertools.chain.from_iterable(records)))
    cells = ([escape(cell(record.get(column))) for column in columns] for record in records)
    body = table([words(str(column)) for column in columns], cells, find=len(records) > OPEN_ROWS)
    return fold(f"{words(name)}: {len(records)}", len(records), body)
