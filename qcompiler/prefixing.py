"""The stage of QFeP: finds the prefix, proves it, puts it into the float model, and lets texts be read accordingly.

It stands before the data is observed, so that ranges, smoothing and QFeM see the model as it will run. What it looks at
itself are a few samples: how single tokens stand out in front of it and behind it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qcompiler import model as models
from qcompiler import prefix, qfep
from qcompiler.data import Source
from qcompiler.errors import DataError, ModelError, UsageError
from qcompiler.filling import MASKS
from qcompiler.passes.bake_prefix import BakePrefix
from qcompiler.passes.eliminate_dead import EliminateDead
from qcompiler.prefix import Prefix
from qcompiler.prefix_sites import Interface, UnfitError, interface
from qcompiler.session import return_freed_memory
from qcompiler.signature import Feeds
from qcompiler.verification import Verification, score_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.decide import Candidate
    from qcompiler.stages import Run

SAMPLES = 8  # whose tokens are looked at
PROOFS = 2  # texts that the proof runs


@dataclass(frozen=True, eq=False)
class Prefixed:
    """What the stage did.

    Attributes:
        prefix: what stands in front of all texts; None where nothing does.
        found: how it was found.
        rule: what the recipe asked for: auto, prefixquant or given.
        baked: it is in the graph.
        error: of the proof, relative.
        after: ratios of activations behind the prefix, by name.
        readers: a layer that reads each activation.
        plain: the float model without it, for its score.
    """

    prefix: Prefix | None
    found: qfep.Found
    rule: str
    baked: bool = False
    error: float | None = None
    after: Mapping[str, float] = dataclasses.field(default_factory=dict)
    readers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    plain: models.Model | None = None


def stage(
    run: Run, model: models.Model, normal: models.Model, samples: Source | None, found: Sequence[Candidate]
) -> tuple[models.Model, models.Model, Source | None, Prefixed | None]:
    """The reference model, the model to go on with, the samples for it, and what was done; all as given if it is off.

    Args:
        run: recipe, progress and reports.
        model: as it was loaded.
        normal: normalised.
        samples: the calibration data.
        found: layers that may be quantized.

    Raises:
        ModelError: a prefix was given that cannot be put in front of this model.
        UsageError: it is to be left to the caller, and the model has no cache to give it by.
        EquivalenceError: the model with the prefix does not compute what it computes for [prefix + text].
    """
    wanted = run.recipe.qfep
    if wanted.prefix == "off" or samples is None:
        return model, normal, samples, None
    with run.stage("qfep", 1.0) as advance:
        rule = wanted.prefix if wanted.prefix in ("auto", "prefixquant") else "given"
        try:
            done = _find(run, normal, samples, found, str(rule), advance)
        except ModelError as error:
            if rule == "given":
                raise
            run.warn(str(error))
            return model, normal, samples, Prefixed(None, qfep.Found((), str(error), None, {}), str(rule))
        if done.prefix is None:
            return model, normal, samples, done
        face = interface(normal.graph)
        texts = list(itertools.islice(samples, PROOFS))
        if not wanted.bake:
            moved = prefix.prove(normal, normal, done.prefix, texts, baked=False)
            front = functools.partial(done.prefix.in_cache, face=face)
            samples = through(samples, [_dropper(done.found, face), front], face)
            return model, normal, samples, dataclasses.replace(done, error=moved)
        baked, moved = _baked(run, normal, done.prefix, texts)
    return_freed_memory()
    if done.found.drops_first:
        run.warn(
            f"the prefix has token {done.found.bos}, which all texts begin with: give the compiled model texts without "
            "it (in a tokenizer: add_special_tokens=False)"
        )
    run.fronted = functools.partial(through, changes=[_dropper(done.found, face)], face=face)
    done = dataclasses.replace(done, baked=True, error=moved, plain=model)
    return models.copy(baked), baked, run.fronted(samples), done


def _baked(run: Run, normal: models.Model, wanted: Prefix, texts: Sequence[Feeds]) -> tuple[models.Model, float]:
    """The model with the prefix inside, and by how much its outputs differ from those for [prefix + text]."""
    baked = models.copy(normal)
    report = BakePrefix(wanted)(baked.graph)
    if not report.changed:
        raise ModelError(prefix.unfit(UnfitError(report.notes[0].text if report.notes else "nothing was changed")))
    EliminateDead()(baked.graph)
    moved = prefix.prove(normal, baked, wanted, texts)
    run.reports.append(report)
    run.equivalence[report.name] = moved
    return baked, moved


def _find(
    run: Run,
    normal: models.Model,
    samples: Source,
    found: Sequence[Candidate],
    rule: str,
    advance: Callable[[float], None],
) -> Prefixed:
    """The prefix and the ratios in front of it and behind it; nothing is edited."""
    wanted = run.recipe.qfep
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
        why = "nothing is to be quantized" if not run.recipe.formats() else "no layer can be quantized"
        return Prefixed(None, qfep.Found((), why, None, {}), rule)
    rows = texts_of(itertools.islice(samples, SAMPLES), face)
    if not rows:
        raise DataError("QFeP needs texts of at least two tokens; give longer samples, or switch it off.")
    if rule == "given":
        ids = _given(run, wanted.prefix)
        bos = qfep.leading(rows) if wanted.bos is None else wanted.bos
        before = qfep.Meter(normal, list(readers)).ratios(rows)
        chosen = qfep.Found(ids, "given by the user", bos, before)
    else:
        chosen = qfep.search(
            normal, list(readers), rows, rule=rule, most=wanted.max_length, bos=wanted.bos, advance=advance
        )
    if not chosen.ids:
        return Prefixed(None, chosen, rule, readers=readers)
    kept = prefix.run(normal, chosen.ids)
    behind = [row[1:] if chosen.drops_first and row[0] == chosen.bos else row for row in rows]
    try:
        after = qfep.Meter(normal, list(readers)).ratios(behind, chosen.ids)
    except (ModelError, DataError) as error:
        longest = max(row.size for row in behind)
        raise ModelError(
            f"a text of {longest} tokens cannot be read behind a prefix of {len(chosen.ids)}: the model takes so many "
            f"positions and no more ({str(error).rstrip('.')}). Give samples that are shorter by the prefix, or switch "
            "QFeP off."
        ) from error
    return Prefixed(kept, chosen, rule, after=after, readers=readers)


def _given(run: Run, wanted: str | tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(wanted, str):
        return wanted
    if run.recipe.text.tokenizer is None:
        raise UsageError("a prefix that is given as text needs a tokenizer: give --tokenizer, or token ids")
    from qcompiler.tokenizing import load_tokenizer

    tokenizer = load_tokenizer(run.recipe.text.tokenizer)
    return (*tokenizer.before, *tokenizer.encode(wanted.removeprefix("text:")))


def texts_of(feeds: Iterable[Feeds], face: Interface) -> list[NDArray[np.int64]]:
    """Token ids of every sample of the feeds, without padding; those with less than two tokens are left out."""
    found: list[NDArray[np.int64]] = []
    for feed in feeds:
        ids = np.atleast_2d(feed[face.filler.ids]).astype(np.int64)
        masks = [feed[name] for name in MASKS if name in feed]
        seen = masks[0][:, -ids.shape[1] :] != 0 if masks else np.ones(ids.shape, np.bool_)
        found += [row[keep] for row, keep in zip(ids, seen, strict=True)]
    return [row for row in found if row.size > 1]


def _dropper(found: qfep.Found, face: Interface) -> Callable[[Feeds], Feeds]:
    """Takes the first token off texts where the prefix has it already."""

    def drop(feeds: Feeds) -> Feeds:
        return prefix.without_first(feeds, face, found.bos) if found.drops_first else feeds

    return drop


def through(samples: Source, changes: Sequence[Callable[[Feeds], Feeds]], face: Interface) -> Source:
    """The samples as they are after some changes; they are checked again."""

    def start() -> Iterable[Feeds]:
        for feeds in samples:
            for change in changes:
                feeds = change(feeds)
            yield feeds

    return Source(samples.name, start, face.inputs, random=samples.random, details=samples.details)


def rows(done: Prefixed | None, run: Run, verification: Verification | None, file: str | None) -> dict[str, Any] | None:
    """What the manifest says of it; None where it was off."""
    if done is None:
        return None
    found, score = done.found, None if verification is None else verification.score
    plain = score_of(run.metric, done.plain) if score is not None and run.metric and done.plain is not None else None
    return {
        "ids": list(found.ids),
        "rule": done.rule,
        "why": found.why,
        "bos": found.bos,
        "drops_first": found.drops_first,
        "baked": done.baked,
        "file": file,
        "relative_error": done.error,
        "float_score_without": plain,
        "float_score_with": score.float_score if score is not None and done.baked else None,
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
