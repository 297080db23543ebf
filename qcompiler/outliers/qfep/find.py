"""The prefix of a model: given, or found on texts of the calibration data."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler.data.identity import tokenizer_of
from qcompiler.data.source import Source
from qcompiler.errors import DataError, EquivalenceError, ModelError, UsageError
from qcompiler.ir import model as models
from qcompiler.ir.signature import Feeds
from qcompiler.outliers.qfep import proof, search
from qcompiler.passes.base import Report
from qcompiler.passes.cleanup.eliminate_dead import EliminateDead
from qcompiler.passes.qfep import prefix
from qcompiler.passes.qfep.bake_prefix import BakePrefix
from qcompiler.passes.qfep.prefix import Prefix
from qcompiler.passes.qfep.sites import Interface, UnfitError, interface
from qcompiler.recipe.tables import QfepTable
from qcompiler.runtime.token_feeds import MASKS
from qcompiler.statistics.timed import Timed
from qcompiler.support.foreseen import Foreseen, between
from qcompiler.verification.equivalence import UNDONE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.plan import Candidate


SAMPLES = 8  # whose tokens are looked at
PROOFS = 2  # texts that the proof runs


@dataclass(frozen=True)
class QfepOptions:
    """What is asked for.

    Attributes:
        table: the recipe's.
        tokenizer: what a prefix that is given as text is read with.
        quantizes: whether layers get a static format, for the reason why nothing was found.
    """

    table: QfepTable
    tokenizer: str | None
    quantizes: bool

    def content(self) -> object:
        """As it is written, and the file of the tokenizer: another one at the same path gives other tokens."""
        return self.table, self.tokenizer, tokenizer_of(self.tokenizer), self.quantizes

    @property
    def rule(self) -> str:
        """How the prefix is found: auto, prefixquant or given."""
        wanted = self.table.prefix
        return wanted if isinstance(wanted, str) and wanted in ("auto", "prefixquant") else "given"


@dataclass(frozen=True, eq=False)
class Prefixed:
    """What was found, and what became of it.

    Attributes:
        prefix: what stands in front of all texts; None where nothing does.
        found: how it was found.
        rule: what the recipe asked for: auto, prefixquant or given.
        baked: it is in the graph.
        error: of the proof, relative.
        after: ratios of activations behind the prefix, by name.
        readers: a layer that reads each activation.
        plain: the float model without it, for its score.
        front: how other texts are read behind it; None where they are read as they are.
    """

    prefix: Prefix | None
    found: search.Found
    rule: str
    baked: bool = False
    error: float | None = None
    after: Mapping[str, float] = dataclasses.field(default_factory=dict)
    readers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    plain: models.Model | None = None
    front: Front | None = None


@dataclass(frozen=True, eq=False)
class Front:
    """How texts are read behind a prefix.

    Attributes:
        face: the inputs of the model.
        dropped: the token that is taken off texts that begin with it, because the prefix has it; None: none is.
        prefix: what is put into the cache of each feed; None where the graph has it inside.
    """

    face: Interface
    dropped: int | None = None
    prefix: Prefix | None = None

    def feed(self, feeds: Feeds) -> Feeds:
        """The feed behind the prefix."""
        if self.dropped is not None:
            feeds = proof.without_first(feeds, self.face, self.dropped)
        return feeds if self.prefix is None else self.prefix.in_cache(feeds, self.face)

    def through(self, samples: Source) -> Source:
        """All feeds of a source, which are checked again."""
        return Source(
            samples.name,
            partial(map, self.feed, samples),
            self.face.inputs,
            random=samples.random,
            details=samples.details,
            places=samples.place,
        )


@dataclass(frozen=True, eq=False)
class Behind:
    """A model behind a prefix.

    Attributes:
        reference: what results are compared with: the model as it was loaded, or the one with the prefix inside.
        model: the normalised one to go on with.
        front: how its samples are read; None as they are.
        done: what was done; None where nothing was asked for.
        reports: of the passes that ran.
        errors: largest relative error that the proof of each saw, by its text form.
        warnings: sentences for people.
    """

    reference: models.Model
    model: models.Model
    front: Front | None = None
    done: Prefixed | None = None
    reports: tuple[Report, ...] = ()
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def put_in_front(
    model: models.Model,
    normal: models.Model,
    samples: Source,
    found: Sequence[Candidate],
    options: QfepOptions,
    advance: Callable[[float], None] = lambda share: None,
) -> Behind:
    """Finds the prefix, proves it, and puts it into the float model or in front of the samples.

    A prefix behind which the model does not compute what it computes for [prefix + text] is undone, which the report
    says: no prefix stands in front then.

    Args:
        model: as it was loaded.
        normal: normalised.
        samples: the calibration data.
        found: layers that may be quantized.
        options: what is asked for.
        advance: called with the share of the work that was done since the last call.

    Raises:
        ModelError: a prefix was given that cannot be put in front of this model.
        UsageError: it is to be left to the caller, and the model has no cache to give it by.
    """
    rule = options.rule
    try:
        done = find(normal, samples, found, options, advance)
    except ModelError as error:
        if rule == "given":
            raise
        nothing = Prefixed(None, search.Found((), str(error), None, {}), rule)
        return Behind(model, normal, None, nothing, warnings=(str(error),))
    if done.prefix is None:
        return Behind(model, normal, None, done)
    face = interface(normal.graph)
    front = Front(face, done.found.bos if done.found.drops_first else None)
    texts = list(itertools.islice(samples, PROOFS))
    try:
        if not options.table.bake:
            moved = proof.prove(normal, normal, done.prefix, texts, baked=False)
            caller = dataclasses.replace(front, prefix=done.prefix)
            return Behind(model, normal, caller, dataclasses.replace(done, error=moved))
        baked, report, moved = _baked(normal, done.prefix, texts)
    except EquivalenceError as error:
        nothing = dataclasses.replace(done, prefix=None, found=dataclasses.replace(done.found, ids=(), why=UNDONE))
        undone = Report(str(BakePrefix(done.prefix)), (), 0.0, str(error))
        return Behind(model, normal, None, nothing, (undone,))
    done = dataclasses.replace(done, baked=True, error=moved, plain=model, front=front)
    return Behind(models.copy(baked), baked, front, done, (report,), {report.name: moved}, _warnings(done.found))


def _warnings(found: search.Found) -> tuple[str, ...]:
    if not found.drops_first:
        return ()
    dropped = (
        f"the prefix has token {found.bos}, which all texts begin with: give the compiled model texts without it "
        "(in a tokenizer: add_special_tokens=False)"
    )
    return (dropped,)


def _baked(normal: models.Model, wanted: Prefix, texts: Sequence[Feeds]) -> tuple[models.Model, Report, float]:
    """The model with the prefix inside, and by how much its outputs differ from those for [prefix + text]."""
    baked = models.copy(normal)
    report = BakePrefix(wanted)(baked.graph)
    if not report.changed:
        raise ModelError(prefix.unfit(UnfitError(report.notes[0].text if report.notes else "nothing was changed")))
    EliminateDead()(baked.graph)
    return baked, report, proof.prove(normal, baked, wanted, texts)


def find(
    normal: models.Model,
    samples: Source,
    found: Sequence[Candidate],
    options: QfepOptions,
    advance: Callable[[float], None] = lambda share: None,
) -> Prefixed:
    """The prefix and the ratios in front of it and behind it; nothing is edited.

    Args and errors are those of `put_in_front`; whatever is in the way is an error here.
    """
    wanted, rule = options.table, options.rule
    try:
        face = interface(normal.graph)
    except UnfitError as error:
        raise ModelError(prefix.unfit(error)) from error
    if not wanted.bake and not face.past:
        raise UsageError(
            "recipe table [qfep] has bake = false, but the model has no past_key_values inputs through which a caller "
            "could give the prefix: export it with a cache, or bake the prefix in"
        )
    readers = {one.activation: one.node for one in found if not one.op.startswith("Conv")}
    if not readers:
        why = "nothing is to be quantized" if not options.quantizes else "no layer can be quantized"
        return Prefixed(None, search.Found((), why, None, {}), rule)
    texts = texts_of(itertools.islice(samples, SAMPLES), face)
    if not texts:
        raise DataError("QFeP needs texts of at least two tokens; give longer samples, or switch it off.")
    if rule == "given":
        ids = _given(wanted.prefix, options.tokenizer)
        bos = search.leading(texts) if wanted.bos is None else wanted.bos
        before = search.Meter(normal, list(readers)).ratios(texts)
        chosen = search.Found(ids, "given by the user", bos, before)
    else:
        chosen = search.find_prefix(
            normal, list(readers), texts, rule=rule, most=wanted.max_length, bos=wanted.bos, advance=advance
        )
    if not chosen.ids:
        return Prefixed(None, chosen, rule, readers=readers)
    kept = prefix.run(normal, chosen.ids)
    behind = [text[1:] if chosen.drops_first and text[0] == chosen.bos else text for text in texts]
    try:
        after = search.Meter(normal, list(readers)).ratios(behind, chosen.ids)
    except (ModelError, DataError) as error:
        longest = max(text.size for text in behind)
        raise ModelError(
            f"a text of {longest} tokens cannot be read behind a prefix of {len(chosen.ids)}: the model takes so many "
            f"positions and no more ({str(error).rstrip('.')}). Give samples that are shorter by the prefix, or switch "
            "QFeP off."
        ) from error
    return Prefixed(kept, chosen, rule, after=after, readers=readers)


def _given(wanted: str | tuple[int, ...], tokenizer: str | None) -> tuple[int, ...]:
    if not isinstance(wanted, str):
        return wanted
    if tokenizer is None:
        raise UsageError("a prefix that is given as text needs a tokenizer: give --tokenizer, or token ids")
    from qcompiler.data.tokenizer import load_tokenizer

    reader = load_tokenizer(tokenizer)
    return (*reader.before, *reader.encode(wanted.removeprefix("text:")))


def texts_of(feeds: Iterable[Feeds], face: Interface) -> list[NDArray[np.int64]]:
    """Token ids of every sample of the feeds, without padding; those with less than two tokens are left out."""
    found: list[NDArray[np.int64]] = []
    for feed in feeds:
        ids = np.atleast_2d(feed[face.filler.ids]).astype(np.int64)
        masks = [feed[name] for name in MASKS if name in feed]
        seen = masks[0][:, -ids.shape[1] :] != 0 if masks else np.ones(ids.shape, np.bool_)
        found += [row[keep] for row, keep in zip(ids, seen, strict=True)]
    return [row for row in found if row.size > 1]


def record_of(done: Prefixed | None) -> dict[str, Any] | None:
    """What the manifest says of it; None where it was off. Its file and its scores are known when there are some."""
    if done is None:
        return None
    found = done.found
    return {
        "ids": list(found.ids),
        "rule": done.rule,
        "why": found.why,
        "bos": found.bos,
        "drops_first": found.drops_first,
        "baked": done.baked,
        "file": None,
        "relative_error": done.error,
        "float_score_without": None,
        "float_score_with": None,
        "layers": [
            {"tensor": name, "reader": done.readers.get(name), "before": before, "after": done.after.get(name)}
            for name, before in found.before.items()
        ],
        "trials": [dataclasses.asdict(one) for one in found.trials],
        "pairs": [{**dataclasses.asdict(one), "rate": one.rate} for one in found.pairs],
    }


def save(done: Prefixed | None, folder: Path, stem: str) -> Path | None:
    """Writes `<stem>.prefix.npz` beside the other artefacts."""
    if done is None or done.prefix is None:
        return None
    return done.prefix.save(folder / f"{stem}.prefix.npz")


def foreseen(known: Timed, options: QfepOptions) -> Foreseen:
    """What `put_in_front` runs: the proof, in front of it a look at each text, and trials where a token spikes.

    Texts of trials are cut to `search.TOKENS` tokens, and count as whole ones here.
    """
    proof = Foreseen(runs=2 * PROOFS, sessions=2, copies=1)
    if options.rule == "given":
        return proof
    look = Foreseen(runs=min(SAMPLES, known.calibrate), sessions=1)
    nominees = 2 + search.CANDIDATES if options.rule == "auto" else 1
    contexts = search.CANDIDATES * search.CONTEXTS / search.AT_ONCE if options.rule == "auto" else 0
    trials = Foreseen(runs=search.TEXTS * (1 + nominees) + contexts, sessions=2)
    return between(look, look + trials + proof)
