"""Whether a result that is wrong is called so: quantized models broken on purpose, one layer at a time.

    python -m benchmarks.mutations [--models a,b] [--per-model N] [--seed S] [--out OUT]

Every model of the tests is compiled once to INT8 for TensorRT. Then one layer of the written file is broken, in one of
the ways of `benchmarks.breaking`, early, in the middle and late in the graph, and the file is compared with the float
model by `qcompiler.verify`, on samples that nothing was fitted to:

    found    the verdict is doubtful or broken
    named    the broken layer is among the three suspects
    close    the verdict is holds, and the model's own metric loses 1 % at most to the unbroken one
    missed   the verdict is holds, and the metric loses more

What costs the worst view less than 1 dB breaks nothing: it is counted apart, and another layer takes its place. OUT
gets the compiled models (those that lie there are taken as they are), `mutations.json` and `mutations.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import onnx

import qcompiler
from benchmarks.breaking import KINDS, SWAPPED, Break, broken, layers_of
from qcompiler.errors import QCompilerError
from qcompiler.recipe.recipe import Recipe
from qcompiler.support.as_json import plain
from qcompiler.verification.compare import Verification
from qcompiler.verification.compare import verify as compare
from qcompiler.verification.gates import Gates
from qcompiler.verification.verdict import Word, verdict_of
from tests.kit import models as real

MODELS = (
    "silero-vad-seq",
    "nsnet2",
    "ppocr-cls",
    "magika",
    "paraphrase-minilm-l3",
    "ppocr-rec",
    "ppocr-det",
)  # silero-vad has all its layers inside of Ifs
PLACES = {"early": 0.1, "middle": 0.5, "late": 0.9}
CALIBRATION, JUDGED = 16, 4  # feeds
PER_MODEL = 8
PAIRS = 4  # of channels that are tried for each output
MEASURABLE_DB = 1.0
CLOSE = 0.01  # share of a score
_SAME_DB = 100.0  # more is as good


@dataclass(frozen=True)
class Row:
    """One broken model, and what was said of it.

    Attributes:
        model: name of the model.
        kind: what was done, of `benchmarks.breaking.KINDS`.
        place: where in the graph.
        layer: which layer.
        detail: which values.
        before_db: SQNR of the worst view, unbroken.
        after_db: the same, broken.
        verdict: the word.
        reasons: of the verdict.
        suspects: nodes that are named, the most guilty first.
        named: rank of the broken layer among them, from 1; None where it is not among them.
        drop: share of the float score that the metric loses to the unbroken model; None where it was not measured.
        seconds: that the comparison took.
    """

    model: str
    kind: str
    place: str
    layer: str
    detail: str
    before_db: float | None
    after_db: float | None
    verdict: str
    reasons: tuple[str, ...]
    suspects: tuple[str, ...]
    named: int | None
    drop: float | None
    seconds: float

    @property
    def found(self) -> bool:
        """Whether anybody would look at it before it is shipped."""
        return self.verdict != Word.HOLDS

    @property
    def missed(self) -> bool:
        """Whether nobody looks at it, although it does its work worse."""
        return self.drop is not None and not self.drop <= CLOSE


@dataclass(frozen=True)
class Outcome:
    """All of one model.

    Attributes:
        model: its name.
        before_db: SQNR of the worst view, unbroken.
        verdict: on the unbroken model.
        rows: what was broken.
        harmless: changes that moved nothing by 1 dB, for which others were taken.
    """

    model: str
    before_db: float | None
    verdict: str
    rows: tuple[Row, ...]
    harmless: int


def measure(model: real.RealModel, per_model: int, seed: int, out: Path) -> Outcome:
    """Breaks one model in `per_model` ways; fewer where it has not so many layers.

    Raises:
        QCompilerError: the model cannot be compiled, or a broken one not compared.
    """
    path = out / f"{model.name}.qdq.onnx"
    if not path.exists():
        feeds = list(islice(model.calibration(), CALIBRATION))
        recipe = Recipe(precision="int8", target="tensorrt", samples=CALIBRATION, allow_broken=True)
        qcompiler.quantize(model.path, data=feeds, recipe=recipe, output=path)
    subject = _Subject(model, path, list(islice(model.evaluation(), JUDGED)))
    random = np.random.default_rng([seed, *model.name.encode()])
    rows: list[Row] = []
    harmless = 0
    for kind, place in islice(_order(), per_model):
        for row in subject.tries(kind, place, random):
            if row is not None:
                rows.append(row)
                print(line(row), flush=True)
                break
            harmless += 1
    return Outcome(model.name, subject.before.worst_sqnr_db, str(subject.word), tuple(rows), harmless)


def _order() -> Iterator[tuple[str, str]]:
    """Kinds in turn, each somewhere else the next time."""
    kinds, places = list(KINDS), list(PLACES)
    for turn in range(len(places)):
        for at, kind in enumerate(kinds):
            yield kind, places[(at + turn) % len(places)]


class _Subject:
    """A compiled model that is broken again and again.

    Attributes:
        before: the unbroken one compared with the float model, and `word`, the verdict on it.
    """

    def __init__(self, model: real.RealModel, path: Path, feeds: list[real.Feeds]) -> None:
        self._model, self._path, self._feeds, self._proto = model, path, feeds, onnx.load(path)
        self.before = self._verified(path)
        self.word = verdict_of(self.before, Gates()).word
        self._done: set[tuple[str, str]] = set()

    def tries(self, kind: str, place: str, random: np.random.Generator) -> Iterator[Row | None]:
        """The layers nearest to a place, one after the other: a row, or None where it broke nothing.

        Outputs are few, and so channels of the same one are swapped more than once.
        """
        layers = layers_of(self._proto, kind)
        wanted = PLACES[place] * (len(layers) - 1)
        order = sorted(range(len(layers)), key=lambda at: abs(at - wanted) + random.uniform(0, 1))
        for layer in (layers[at] for at in order if (kind, layers[at]) not in self._done):
            self._done.add((kind, layer))
            for _ in range(PAIRS if kind == SWAPPED else 1):
                made = broken(self._proto, kind, layer, random)
                if made is not None:
                    yield self._judged(*made, place)

    def _verified(self, path: Path) -> Verification:
        recipe = Recipe(target="tensorrt", verify_samples=len(self._feeds))
        return qcompiler.verify(self._model.path, path, data=self._feeds, recipe=recipe)

    @cached_property
    def _usual_drop(self) -> float:
        return self._drop(self._path)

    def _drop(self, path: Path) -> float:
        """Share of the float score that the metric loses."""
        model = self._model
        found = compare(model.path, path, self._feeds, metric=model.metric, float_score=model.score, drift=False)
        assert found.score is not None
        return found.score.drop

    def _judged(self, proto: onnx.ModelProto, broke: Break, place: str) -> Row | None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "broken.qdq.onnx"
            onnx.save(proto, path)
            quick = compare(self._model.path, path, self._feeds, samples=len(self._feeds), drift=False)
            if not _differs(self.before, quick):
                return None
            began = time.perf_counter()
            found = self._verified(path)
            seconds = time.perf_counter() - began
            judged = verdict_of(found, Gates())
            drop = self._drop(path) - self._usual_drop if judged.word is Word.HOLDS else None
        nodes = [(one.node, one.layer) for one in found.suspects]
        ranks = [rank for rank, names in enumerate(nodes, 1) if broke.guilty & {*names}]
        return Row(
            model=self._model.name,
            kind=broke.kind,
            place=place,
            layer=broke.layer,
            detail=broke.detail,
            before_db=self.before.worst_sqnr_db,
            after_db=found.worst_sqnr_db,
            verdict=str(judged.word),
            reasons=judged.reasons,
            suspects=tuple(node for node, _ in nodes),
            named=ranks[0] if ranks else None,
            drop=drop,
            seconds=round(seconds, 1),
        )


def _differs(before: Verification, after: Verification) -> bool:
    """Whether the worst view lost 1 dB, or anything is not finite."""
    first, second = before.worst_sqnr_db, after.worst_sqnr_db
    if after.failures != before.failures or first is None or second is None:
        return True
    return min(first, _SAME_DB) - second >= MEASURABLE_DB


def line(row: Row) -> str:
    """A row of the table of `report`."""
    named = f"{row.named}." if row.named else "**no**" if row.found or row.missed else "no"
    drop = "" if row.drop is None else f"{row.drop:.1%}"
    word = f"**{row.verdict}**" if row.missed else row.verdict
    cells = (row.model, row.kind, row.place, f"`{row.layer}`", _db(row.before_db), _db(row.after_db), word, named, drop)
    return f"| {' | '.join(cells)} |"


def report(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Lines of Markdown: the sums by kind and by model, then every row."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    yield "| what | how many | found | of them named | close | missed |"
    yield "|---|---|---|---|---|---|"
    for kind in (*KINDS, "all"):
        own = [row for row in rows if kind in (row.kind, "all")]
        if own:
            yield f"| {kind} | {_counts(own)} |"
    yield ""
    yield "| model | unbroken, dB | verdict | how many | found | of them named | close | missed | without effect |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for one in outcomes:
        yield f"| {one.model} | {_db(one.before_db)} | {one.verdict} | {_counts(one.rows)} | {one.harmless} |"
    yield ""
    yield "| model | what | place | layer | dB before | dB after | verdict | named as | metric loses |"
    yield "|---|---|---|---|---|---|---|---|---|"
    yield from map(line, rows)


def _counts(rows: Sequence[Row]) -> str:
    found = [row for row in rows if row.found]
    named, missed = sum(row.named is not None for row in found), sum(row.missed for row in rows)
    return f"{len(rows)} | {len(found)} | {named} | {len(rows) - len(found) - missed} | {missed}"


def _db(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if math.isfinite(value) else "exact" if value > 0 else "not finite"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables and writes the files; 0: nothing was missed and all that was found was named, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=_names, default=MODELS, metavar="A,B", help=", ".join(MODELS))
    parser.add_argument("--per-model", type=int, default=PER_MODEL, metavar="N", help=f"breaks (default: {PER_MODEL})")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="chooses layers and channels")
    parser.add_argument(
        "--out", type=Path, default=Path(".cache/mutations"), metavar="OUT", help="folder of the results"
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    failed = False
    for name in options.models:
        try:
            outcomes.append(measure(real.get(name), options.per_model, options.seed, options.out))
            write(outcomes, options.out)
        except QCompilerError as error:
            failed = True
            print(f"error: {name}: {error}", file=sys.stderr)
    print("\n".join(report(outcomes)))
    rows = [row for outcome in outcomes for row in outcome.rows]
    return 0 if rows and not failed and all(row.named if row.found else not row.missed for row in rows) else 1


def write(outcomes: Sequence[Outcome], out: Path) -> None:
    """Writes `mutations.json` and `mutations.md`."""
    data = [dataclasses.asdict(outcome) for outcome in outcomes]
    (out / "mutations.json").write_text(json.dumps(plain({"models": data}), indent=1) + "\n", encoding="utf8")
    (out / "mutations.md").write_text("\n".join(report(outcomes)) + "\n", encoding="utf8")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in real.NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no model '{unknown[0]}': {', '.join(MODELS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
