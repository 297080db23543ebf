"""`diff()`: what changed between two compilations, from their manifests alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qcompiler.errors import AccuracyError, UsageError
from qcompiler.report.figures import bytes_of
from qcompiler.support.as_json import plain
from qcompiler.support.suggest import did_you_mean
from qcompiler.tools.stored import opened

Record = Mapping[str, Any]
FAILS: Final = ("precision", "accuracy", "size", "time")  # what `fail_on` takes
VERDICTS: Final = ("holds", "doubtful", "broken")  # from good to bad
LOW: Final = ("int8", "fp8", "int4", "int8-weight", "int4-weight", "fp4-weight")
_ABSENT: Final = "–"  # of a key that one of the manifests does not have


@dataclass(frozen=True)
class Difference:
    """What changed from A to B. Pairs are `a` and `b`, as they stand in the manifests; None is what one does not say.

    Attributes:
        manifests: `a` and `b`: the names of the files.
        versions: `what` (qcompiler, a library, the system), `a`, `b`.
        source: what is different of the model and the data: `what`, `a`, `b`.
        recipe: keys of the recipe, tables as `table.key`: `what`, `a`, `b`.
        precision: nodes that another type was chosen for, those with one change and one reason together: `a`, `b`,
            `rule` and `why` (of B's first), `nodes`, and the `macs` of all. None as a type: the node is not there.
        ranges: of activations: `tensor`, `a`, `b`, `ratio` (b / a), their types and calibrators; largest change first.
        accuracy: views, `worst`, and the metric: `what`, `a`, `b`, `loss` (in dB, or of the metric relative to float),
            `judged`.
        verdict: `a`, `b`.
        share: of multiply-accumulates in a quantized type, 0..1: `a`, `b`.
        sizes: bytes: `what`, `a`, `b`.
        time: predicted µs, by `sm`: `a`, `b`, `ratio`.
        warnings: `new` and `gone`.
        seconds: of the whole compilation: `a`, `b`; and of each stage.
        worse: which gates B misses, in sentences.
    """

    manifests: Record
    versions: Sequence[Record] = ()
    source: Sequence[Record] = ()
    recipe: Sequence[Record] = ()
    precision: Sequence[Record] = ()
    ranges: Sequence[Record] = ()
    accuracy: Sequence[Record] = ()
    verdict: Record = field(default_factory=dict)
    share: Record = field(default_factory=dict)
    sizes: Sequence[Record] = ()
    time: Sequence[Record] = ()
    warnings: Record = field(default_factory=dict)
    seconds: Record = field(default_factory=dict)
    worse: Sequence[str] = ()

    @property
    def same(self) -> bool:
        """Whether nothing but seconds differs."""
        rows = (*self.accuracy, *self.sizes, *self.time, self.verdict, self.share)
        lists = (self.versions, self.source, self.recipe, self.precision, self.ranges, *self.warnings.values())
        return not any(lists) and all(row["a"] == row["b"] for row in rows)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"same": self.same, **plain(self)}

    def require(self) -> None:
        """Refuses a B that misses a gate.

        Raises:
            AccuracyError: it is worse than A by what was not to be.
        """
        if self.worse:
            raise AccuracyError(f"{self.manifests['b']} is worse than {self.manifests['a']}: {'; '.join(self.worse)}")


def diff(
    a: str | Path | Record,
    b: str | Path | Record,
    *,
    max_loss_db: float | None = None,
    max_slower: float | None = None,
    fail_on: Iterable[str] = (),
) -> Difference:
    """What changed from one compilation to another.

    Args:
        a: the manifest to compare with: a file, an artefact beside which it lies, a folder, or the manifest itself.
        b: the other one.
        max_loss_db: how much SQNR, in dB, each judged view may lose.
        max_slower: how much the predicted time may grow on any GPU, relative: 0.05 for 5 %.
        fail_on: some of `precision`, `accuracy`, `size`, `time`: B may not be worse in that at all.

    Returns:
        The difference; `worse` says which gates B misses, `require()` makes an error of that.

    Raises:
        UsageError: a manifest cannot be read, or does not say what a gate asks for.
    """
    (name_a, one), (name_b, other) = opened(a), opened(b)
    _check(max_loss_db, max_slower, gates := tuple(dict.fromkeys(fail_on)))
    if name_a == name_b:  # of the same name in two folders
        name_a, name_b = (str(path) if isinstance(path, str | Path) else text for path, text in ((a, "A"), (b, "B")))
    found = Difference(
        {"a": name_a, "b": name_b},
        list(_changed(_versions(one), _versions(other))),
        list(_changed(_source(one), _source(other))),
        list(_changed(_flat(one.get("recipe") or {}), _flat(other.get("recipe") or {}))),
        list(_precision(one, other)),
        list(_ranges(one, other)),
        list(_accuracy(one, other)),
        _pair(*(_verdict(each) for each in (one, other))),
        _pair(*((each.get("macs") or {}).get("quantized_share") for each in (one, other))),
        list(_both(_sizes(one), _sizes(other))),
        list(_time(one, other)),
        _warnings(one, other),
        {
            **_pair(*(_total(each) for each in (one, other))),
            "stages": list(_both(one.get("timings") or {}, other.get("timings") or {})),
        },
    )
    worse = tuple(_worse(found, max_loss_db, max_slower, gates))
    return Difference(**{**vars(found), "worse": worse})


def _check(max_loss_db: float | None, max_slower: float | None, fail_on: Collection[str]) -> None:
    for one in fail_on:
        if one not in FAILS:
            raise UsageError(f"nothing can fail on '{one}': {did_you_mean(one, FAILS)}")
    for name, value in (("--max-loss-db", max_loss_db), ("--max-slower", max_slower)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{name} takes a number from 0 up, not {value}")


def _pair(a: Any, b: Any) -> dict[str, Any]:
    return {"a": a, "b": b}


def _both(one: Record, other: Record) -> Iterator[Record]:
    """Everything that either has, side by side."""
    for what in dict.fromkeys([*one, *other]):
        yield {"what": what, **_pair(one.get(what), other.get(what))}


def _changed(one: Record, other: Record) -> Iterator[Record]:
    return (row for row in _both(one, other) if row["a"] != row["b"])


def _versions(said: Record) -> Record:
    engine = said.get("engine") or {}
    built = {f"engine of {engine.get('engine')}": engine["version"]} if engine.get("version") else {}
    return {"qcompiler": said.get("qcompiler"), **(said.get("environment") or {}), **built}


def _source(said: Record) -> Record:
    """What was compiled, and by what data."""
    model, data, target = said.get("source") or {}, said.get("data") or {}, said.get("target") or {}
    return {
        "model": model.get("name"),
        "model sha256": model.get("sha256"),
        "weights sha256": ", ".join(one.get("sha256") or "" for one in model.get("data") or ()) or None,
        "data": data.get("name"),
        "data fingerprint": data.get("fingerprint"),
        "feeds": data.get("feeds"),
        "judged on": (said.get("verification") or {}).get("data"),
        "SMs": ", ".join(target.get("sms") or ()) or None,
        "not accepted": (said.get("missed") or {}).get("error"),
    }


def _flat(recipe: Record, before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in recipe.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


def _precision(one: Record, other: Record) -> Iterator[Record]:
    """Changes of type, those that go the same way for the same rule together; the most work first."""
    before, after = ({row["node"]: row for row in each.get("plan") or ()} for each in (one, other))
    groups: dict[tuple[Any, Any, Any], list[Record]] = {}
    for node in dict.fromkeys([*before, *after]):
        old, new = before.get(node), after.get(node)
        types = (old or {}).get("precision"), (new or {}).get("precision")
        if types[0] != types[1]:
            groups.setdefault((*types, (new or old or {}).get("rule")), []).append(new or old or {})
    rows = [
        {
            **_pair(was, now),
            "rule": rule,
            "why": members[0].get("why"),
            "nodes": [each["node"] for each in members],
            "macs": sum(each.get("macs") or 0 for each in members),
        }
        for (was, now, rule), members in groups.items()
    ]
    yield from sorted(rows, key=lambda row: (-row["macs"], -len(row["nodes"])))


def _ranges(one: Record, other: Record) -> Iterator[Record]:
    """Ranges that moved, the largest change first; then those that only one has."""
    before, after = ({row["tensor"]: row for row in each.get("quantizers") or ()} for each in (one, other))
    rows = []
    for tensor in dict.fromkeys([*before, *after]):
        old, new = before.get(tensor) or {}, after.get(tensor) or {}
        keys = ("amax", "dtype", "calibrator")
        if all(old.get(key) == new.get(key) for key in keys):
            continue
        a, b = old.get("amax"), new.get("amax")
        ratio = b / a if a and b else None
        more = {f"{key}_{side}": row.get(key) for key in keys[1:] for side, row in (("a", old), ("b", new))}
        rows.append({"tensor": tensor, **_pair(a, b), "ratio": ratio, **more})
    yield from sorted(rows, key=lambda row: -abs(math.log(row["ratio"])) if row["ratio"] else 0.0)


def _accuracy(one: Record, other: Record) -> Iterator[Record]:
    """The worst view, each view, and the user's metric."""
    before, after = (each.get("verification") or {} for each in (one, other))
    if not before and not after:
        return
    a, b = (each.get("worst_sqnr_db") for each in (before, after))
    yield {"what": "worst view", **_pair(a, b), "loss": _loss(a, b), "unit": "dB", "judged": True}
    old, new = ({row["name"]: row for row in each.get("views") or ()} for each in (before, after))
    for name in dict.fromkeys([*old, *new]):
        rows = old.get(name) or {}, new.get(name) or {}
        judged = any(row.get("judged") for row in rows)
        for key, unit in (("sqnr_db", "dB"), ("agreement", "")):
            a, b = (row.get(key) for row in rows)
            if a is not None or b is not None:
                yield {"what": name, **_pair(a, b), "loss": _loss(a, b), "unit": unit, "judged": judged}
    scores = [each.get("score") or {} for each in (before, after)]
    if any(scores):
        name = next(score["name"] for score in scores if score)
        a, b = (score.get("quantized_score") for score in scores)
        drops = [_figure(score.get("drop")) for score in scores]
        loss = None if drops[0] is None or drops[1] is None else drops[1] - drops[0]
        yield {"what": f"metric {name}", **_pair(a, b), "loss": loss, "unit": "of float", "judged": True}


def _figure(value: Any) -> float | None:
    """A figure of a manifest; `inf` is infinity."""
    if value is None or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(found) else found


def _loss(a: Any, b: Any) -> float | None:
    """How much less B has; 0 where both are exact."""
    old, new = _figure(a), _figure(b)
    if old is None or new is None:
        return None
    return 0.0 if old == new else old - new


def _verdict(said: Record) -> str | None:
    found = (said.get("verdict") or {}).get("verdict")
    return None if found is None else str(found)


def _sizes(said: Record) -> Record:
    """Bytes of what was read and made."""
    files = {name: bytes_of(file) for name, file in (said.get("files") or {}).items() if file}
    every = {
        "float model": bytes_of(said.get("source")),
        **({"quantized ONNX": files.pop("qdq")} if "qdq" in files else {}),
        **files,
        "engine": (said.get("engine") or {}).get("bytes"),
    }
    return {name: value for name, value in every.items() if value is not None}


def _time(one: Record, other: Record) -> Iterator[Record]:
    """Predicted time of the engines, by GPU."""
    before, after = ((each.get("prediction") or {}).get("sms") or {} for each in (one, other))
    for sm in dict.fromkeys([*before, *after]):
        a, b = ((each.get(sm) or {}).get("engine_us") for each in (before, after))
        yield {"sm": sm, **_pair(a, b), "ratio": b / a if a and b else None}


def _warnings(one: Record, other: Record) -> Record:
    before, after = (list(map(str, each.get("warnings") or ())) for each in (one, other))
    return {
        "new": [text for text in after if text not in before],
        "gone": [text for text in before if text not in after],
    }


def _total(said: Record) -> float | None:
    timings = said.get("timings")
    return sum(timings.values()) if timings else None


def _worse(
    found: Difference, max_loss_db: float | None, max_slower: float | None, fail_on: Collection[str]
) -> Iterator[str]:
    """What B misses, in sentences.

    Raises:
        UsageError: a gate asks for what a manifest does not say.
    """
    refused = {row["what"]: row for row in found.source}.get("not accepted", {"b": None})["b"]
    if refused and (max_loss_db is not None or max_slower is not None or fail_on):
        yield f"it was not accepted ({refused})"
    if max_loss_db is not None or "accuracy" in fail_on:
        yield from _less_accurate(found, max_loss_db or 0.0, everything="accuracy" in fail_on)
    if max_slower is not None or "time" in fail_on:
        yield from _slower(found, max_slower or 0.0)
    if "precision" in fail_on:
        yield from _less_quantized(found)
    if "size" in fail_on:
        yield from _larger(found)


def _less_accurate(found: Difference, most: float, *, everything: bool) -> Iterator[str]:
    """Views that lost more than `most` dB; with `everything` also agreements, the metric and the verdict."""
    judged = [row for row in found.accuracy if row["judged"] and row["a"] is not None]
    if not judged or not any(row["loss"] is not None for row in judged):
        raise UsageError("a gate asks for accuracy, and not both compilations were verified: drop the gate")
    for row in judged:
        unit = f" {row['unit']}" if row["unit"] == "dB" else ""
        if row["loss"] is None:
            yield f"'{row['what']}' had {row['a']}{unit} and is judged no more"
        elif row["loss"] > (most if row["unit"] == "dB" else 0.0) and (everything or row["unit"] == "dB"):
            yield f"'{row['what']}' went from {row['a']} to {row['b']}{unit}"
    a, b = found.verdict["a"], found.verdict["b"]
    if everything and a in VERDICTS and b in VERDICTS and VERDICTS.index(b) > VERDICTS.index(a):
        yield f"the verdict went from {a} to {b}"


def _slower(found: Difference, most: float) -> Iterator[str]:
    if not any(row["ratio"] is not None for row in found.time):
        raise UsageError("a gate asks for predicted time, and the manifests have none for the same GPU: drop the gate")
    for row in found.time:
        if row["ratio"] is not None and row["ratio"] > 1 + most:
            yield f"predicted time on {row['sm']} went from {row['a']} to {row['b']} µs"


def _less_quantized(found: Difference) -> Iterator[str]:
    for row in found.precision:
        if row["a"] in LOW and row["b"] not in LOW:
            names = ", ".join(f"'{node}'" for node in row["nodes"][:3]) + ", …" * (len(row["nodes"]) > 3)
            yield f"{len(row['nodes'])} nodes left {row['a']} for {row['b'] or 'nothing'} ({names})"


def _larger(found: Difference) -> Iterator[str]:
    """Of the engine, or of the quantized model where one of the two is without an engine."""
    made = {row["what"]: row for row in found.sizes if row["a"] is not None and row["b"] is not None}
    row = made.get("engine") or made.get("quantized ONNX")
    if row is None:
        raise UsageError("a gate asks for size, and the manifests have no artefact in common: drop the gate")
    if row["b"] > row["a"]:
        yield f"the {row['what']} went from {row['a']} to {row['b']} bytes"
