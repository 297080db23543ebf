"""QFeP: the few tokens in front of every text that take the activation spikes upon themselves.

In GLU language models a handful of tokens (the first one, whatever it is; a delimiter where it first occurs) drive
single activations to thousands of times the median. Where such a token has occurred already, later ones hardly spike
(Yang et al. 2024, arXiv 2405.14428, §4.2). So these tokens are put in front of all texts, once, and only what they
leave in the attentions' caches takes part in the run.

The paper's search: candidates c are the tokens that spike most at the layer with the largest ratio r (mean over
samples of max_t a_t / median_t a_t, a_t = max_c |x_tc|); contexts x are frequent tokens; [bos, x, c, x, c] is run for
each pair, and the pair with the largest a(first c) / a(second c) gives the prefix [bos, x, c]. PrefixQuant (Chen et al.
2024, arXiv 2410.05265) counts tokens with max/median above 64 and takes the most frequent, then bos. Neither looks at
what the prefix does. Here both rules only nominate: every nominee is put in front of texts, the ratios of the worst
layers are measured again, and the best one grows, token by token, for as long as that pays.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qcompiler.ir import model as models
from qcompiler.ir.graph import tensors
from qcompiler.ir.signature import inputs_of
from qcompiler.passes.cleanup.eliminate_dead import EliminateDead
from qcompiler.runtime.stream import OpenModel
from qcompiler.runtime.token_feeds import Filler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]


SPIKE = 10.0  # largest token over median token from which a layer counts as spiking
WORST = 8  # layers that prefixes are judged by
TEXTS = 4  # that nominees are tried on
TOKENS = 128  # of each
CANDIDATES = 3  # of the paper
CONTEXTS = 64  # the paper takes 200; each is a run of five tokens for each candidate
AT_ONCE = 25  # sequences of a run with contexts
OUTLIER = 64.0  # PrefixQuant's threshold of max / median
PAYS = 0.9  # by what factor a further token must lower the ratios
VANISHES = 0.5  # by what factor the ratios must fall for a prefix to be taken at all

Ratios = dict[str, float]


@dataclass(frozen=True, slots=True)
class Trial:
    """One prefix that was tried.

    Attributes:
        ids: the prefix.
        mean: geometric mean of the ratios of the layers that prefixes are judged by.
        worst: the largest of them.
    """

    ids: tuple[int, ...]
    mean: float
    worst: float


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A candidate with the context in which its second occurrence spikes least, by the first one's."""

    candidate: int
    context: int
    first: float
    second: float

    @property
    def rate(self) -> float:
        """How many times the second occurrence goes into the first."""
        return self.first / max(self.second, 1e-30)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        ids: the prefix; empty where none helps.
        why: in words.
        bos: the token that all texts begin with; None where they don't.
        before: ratio of each activation on the texts as they are.
        trials: prefixes in the order in which they were tried, from none at all on.
        pairs: the paper's candidates.
    """

    ids: tuple[int, ...]
    why: str
    bos: int | None
    before: Mapping[str, float]
    trials: tuple[Trial, ...] = ()
    pairs: tuple[TokenPair, ...] = field(default=())

    @property
    def drops_first(self) -> bool:
        """Whether the prefix has the token that all texts begin with, so that they go without it."""
        return bool(self.ids) and self.bos is not None and self.bos in self.ids


class Meter:
    """Runs texts and measures the largest |x| of every token at some activations."""

    def __init__(self, model: models.Model, names: Sequence[str]) -> None:
        """`names` are tensors of the main graph, with channels on their last axis."""
        graph = model.graph.copy()
        wanted = dict.fromkeys(names)
        known = {tensor.name: tensor for tensor in tensors(graph)}
        self.names = [name for name in wanted if name in known]
        graph.outputs = [known[name] for name in self.names]
        EliminateDead()(graph)
        inputs = inputs_of(model.graph)
        self.filler = Filler(inputs)
        shape = inputs[self.filler.ids][1]
        self._free = not (shape and isinstance(shape[0], int))
        self._session = OpenModel(graph, outputs=self.names)

    def peaks(self, texts: Sequence[Ids], front: Sequence[int] = ()) -> dict[str, NDArray[np.float32]]:
        """Peaks of texts of one length behind `front`, by name [texts, tokens of the text]."""
        whole = [[*front, *map(int, text)] for text in texts]
        found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.names}
        step = self.filler.rows if self.filler.rows > 1 else len(whole) if self._free else 1
        for at in range(0, len(whole), step):
            part = whole[at : at + step]
            filled = part + part[:1] * (step - len(part))
            values = self._session.run(self.filler.feed(filled))
            for name, value in values.items():
                peaks = np.abs(value).max(axis=-1).astype(np.float32).reshape(len(filled), -1)
                found[name].append(peaks[: len(part), len(front) :])
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def ratios(self, texts: Sequence[Ids], front: Sequence[int] = ()) -> Ratios:
        """Mean over texts of largest over median token, behind `front`."""
        found: dict[str, list[float]] = {name: [] for name in self.names}
        for text in texts:
            for name, peaks in self.peaks([text], front).items():
                found[name].append(ratio(peaks[0]))
        return {name: math.fsum(values) / len(values) for name, values in found.items()}


def ratio(peaks: NDArray[np.float32]) -> float:
    """Largest over median of the tokens that are not zero; 1 where there are none."""
    used = peaks[peaks > 0].astype(np.float64)
    return float(used.max() / np.median(used)) if used.size else 1.0


def leading(texts: Sequence[Ids]) -> int | None:
    """The token that every text begins with, of two texts and more."""
    first = {int(text[0]) for text in texts if text.size}
    return first.pop() if len(first) == 1 and len(texts) > 1 else None


def find_prefix(
    model: models.Model,
    activations: Sequence[str],
    texts: Sequence[Ids],
    *,
    rule: str = "auto",
    most: int = 4,
    bos: int | None = None,
    advance: Callable[[float], None] = lambda share: None,
) -> Found:
    """Looks for the prefix behind which tokens spike least.

    Args:
        model: the float decoder.
        activations: tensors that will be quantized, channels on the last axis.
        texts: token ids of texts, without padding.
        rule: "auto", or "prefixquant" for that rule's nominee alone.
        most: tokens that a prefix may have.
        bos: the token that begins a text; None for the one that all `texts` begin with, if they do.
        advance: called with the share of the work that was done since the last call.
    """
    texts = [text for text in texts if text.size > 1]
    bos = leading(texts) if bos is None else bos
    whole = Meter(model, activations)
    before, spikes = _look(whole, texts)
    advance(0.4)
    watched = sorted((name for name in before if before[name] >= SPIKE), key=lambda name: -before[name])[:WORST]
    if not watched:
        worst = max(before.values(), default=1.0)
        return Found((), f"no token spikes: the largest is {worst:.3g} times the median", bos, before)
    meter = Meter(model, watched)
    judge = _Judge(meter, texts, bos)
    judge.try_out(())
    nominated: list[tuple[int, ...]] = [prefixquant(spikes, texts, bos, most)]
    pairs: list[TokenPair] = []
    if rule == "auto":
        pairs = contexts(Meter(model, watched[:1]), spiking_tokens(spikes[watched[0]], texts, bos), texts, bos)
        nominated += _nominees(pairs, texts, bos)
    for one in dict.fromkeys(ids[:most] for ids in nominated if ids):
        judge.try_out(one)
        advance(0.04)
    best = judge.best()
    while rule == "auto" and best.ids and len(best.ids) < most:
        for token in judge.spiking(best.ids):
            judge.try_out((*best.ids, token))
        longer = judge.best()
        if longer.ids == best.ids:
            break
        best = longer
    return _concluded(judge, best, bos, before, pairs, watched)


def _concluded(
    judge: _Judge, best: Trial, bos: int | None, before: Ratios, pairs: Sequence[TokenPair], watched: Sequence[str]
) -> Found:
    none = judge.trials[()]
    trials = tuple(judge.trials.values())
    figures = f"from {none.worst:.4g} to {best.worst:.4g} times the median at the worst of {len(watched)} layers"
    if not best.ids or best.worst > VANISHES * none.worst:
        closest = min((one for one in trials if one.ids), key=lambda one: one.worst, default=none)
        left = f"the best leaves {closest.worst:.4g} times the median instead of {none.worst:.4g}"
        return Found((), f"no prefix makes the spikes vanish: {left}", bos, before, trials, tuple(pairs))
    return Found(best.ids, f"spikes fall {figures}", bos, before, trials, tuple(pairs))


def _look(meter: Meter, texts: Sequence[Ids]) -> tuple[Ratios, dict[str, list[NDArray[np.float32]]]]:
    """Ratios of all activations, and every token's peak."""
    peaks: dict[str, list[NDArray[np.float32]]] = {name: [] for name in meter.names}
    for text in texts:
        for name, found in meter.peaks([text]).items():
            peaks[name].append(found[0])
    return {name: math.fsum(map(ratio, each)) / len(each) for name, each in peaks.items()}, peaks


def spiking_tokens(peaks: Sequence[NDArray[np.float32]], texts: Sequence[Ids], bos: int | None) -> list[int]:
    """The paper's: of each text the three largest tokens, the first occurrence of BOS apart; the largest of all."""
    best: dict[int, float] = {}
    for text, found in zip(texts, peaks, strict=True):
        for position in np.argsort(-found, kind="stable")[:CANDIDATES]:
            token = int(text[position])
            if token != bos:
                best[token] = max(best.get(token, 0.0), float(found[position]))
    return sorted(best, key=lambda token: (-best[token], token))[:CANDIDATES]


def frequent(texts: Sequence[Ids], bos: int | None, count: int) -> list[int]:
    """The most frequent tokens, BOS apart; of equal ones the smallest."""
    counted = Counter(int(one) for text in texts for one in text)
    return [token for token, _ in sorted(counted.items(), key=lambda one: (-one[1], one[0])) if token != bos][:count]


def contexts(meter: Meter, tokens: Sequence[int], texts: Sequence[Ids], bos: int | None) -> list[TokenPair]:
    """For each token c the context x with the largest a(first c) / a(second c) in [bos, x, c, x, c], the best first.

    Args:
        meter: of one activation.
        tokens: the candidates.
        texts: where frequent tokens are counted.
        bos: left out of the sequences where there is none.
    """
    found: list[TokenPair] = []
    front = () if bos is None else (bos,)
    usual = frequent(texts, bos, CONTEXTS)
    for token in tokens:
        best: TokenPair | None = None
        for at in range(0, len(usual), AT_ONCE):
            tried = [np.asarray([*front, x, token, x, token], np.int64) for x in usual[at : at + AT_ONCE]]
            peaks = meter.peaks(tried)[meter.names[0]]
            for context, one in zip(usual[at : at + AT_ONCE], peaks, strict=True):
                pair = TokenPair(token, context, float(one[len(front) + 1]), float(one[len(front) + 3]))
                best = pair if best is None or pair.rate > best.rate else best
        if best is not None:
            found.append(best)
    return sorted(found, key=lambda pair: -pair.rate)


def prefixquant(
    peaks: Mapping[str, Sequence[NDArray[np.float32]]], texts: Sequence[Ids], bos: int | None, most: int
) -> tuple[int, ...]:
    """PrefixQuant's rule: as many tokens as one text has outliers, the most frequent ones; then BOS.

    The token at position 0 counts as an outlier but nominates nobody: any token spikes there.
    """
    counts, ids = [0.0], Counter[int]()
    for each in peaks.values():
        total = 0
        for text, found in zip(texts, each, strict=True):
            used = found[found > 0]
            above = np.flatnonzero(found > OUTLIER * np.median(used)) if used.size else np.zeros(0, np.int64)
            total += len(above)
            ids.update(int(text[at]) for at in above if at)
        counts.append(total / len(texts))
    length = min(math.ceil(max(counts)), most)
    chosen = [token for token, _ in sorted(ids.items(), key=lambda one: (-one[1], one[0])) if token != bos]
    if bos is not None:
        return (*chosen[: max(length - 1, 0)], bos)[:most] if length else ()
    return tuple((chosen or frequent(texts, bos, 1))[:length])


def _nominees(pairs: Sequence[TokenPair], texts: Sequence[Ids], bos: int | None) -> list[tuple[int, ...]]:
    front = () if bos is None else (bos,)
    found = [front, *(((*front, pairs[0].context, pairs[0].candidate),) if pairs else ())]
    found += [(*front, pair.candidate) for pair in pairs]
    return found + [(*front, token) for token in frequent(texts, bos, 1)]


class _Judge:
    """Tries prefixes on a few short texts and remembers what they did."""

    def __init__(self, meter: Meter, texts: Sequence[Ids], bos: int | None) -> None:
        longest = sorted(texts, key=lambda text: -text.size)[:TEXTS]
        self._meter, self._bos = meter, bos
        self._short = [text[: TOKENS + 1] for text in longest]
        self._peaks: dict[tuple[int, ...], list[NDArray[np.float32]]] = {}  # at the layer that is worst then
        self.trials: dict[tuple[int, ...], Trial] = {}

    def _texts(self, ids: Sequence[int]) -> list[Ids]:
        """The texts behind a prefix: without the BOS that it has already."""
        if self._bos is None or self._bos not in ids:
            return self._short
        return [text[1:] if text[0] == self._bos else text for text in self._short]

    def try_out(self, ids: tuple[int, ...]) -> None:
        if ids in self.trials:
            return
        peaks: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self._meter.names}
        for text in self._texts(ids):
            for name, found in self._meter.peaks([text], ids).items():
                peaks[name].append(found[0])
        ratios = {name: math.fsum(map(ratio, each)) / len(each) for name, each in peaks.items()}
        worst = max(ratios, key=lambda name: ratios[name])
        self._peaks[ids] = peaks[worst]
        mean = math.exp(math.fsum(map(math.log, ratios.values())) / len(ratios))
        self.trials[ids] = Trial(ids, mean, ratios[worst])

    def best(self) -> Trial:
        """The shortest prefix from which no longer one lowers the ratios by much."""
        found = self.trials[()]
        for one in sorted(self.trials.values(), key=lambda one: (len(one.ids), one.mean, one.ids)):
            if one.mean < (PAYS if len(one.ids) > len(found.ids) else 1.0) * found.mean:
                found = one
        return found

    def spiking(self, ids: tuple[int, ...]) -> list[int]:
        """Ids that spike most behind a prefix, at the layer that is the worst then."""
        return spiking_tokens(self._peaks[ids], self._texts(ids), self._bos)
