"""The proof of a prefix: the model with it computes what the model behind its tokens computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import EquivalenceError
from qcompiler.ir.model import Model
from qcompiler.ir.signature import Feeds
from qcompiler.passes.qfep import sites
from qcompiler.passes.qfep.prefix import Prefix, shifted_by
from qcompiler.passes.qfep.sites import POSITIONS, Interface
from qcompiler.runtime.stream import OpenModel
from qcompiler.runtime.token_feeds import MASKS

if TYPE_CHECKING:
    from numpy.typing import NDArray


TOLERANCE = 1e-4  # of the proof: largest difference of an output, relative to its largest value
HALF_TOLERANCE = 5e-3  # of a model that computes in 16 bits
LONGEST_PROOF = 64  # tokens of a text that the proof runs


def in_front(feeds: Feeds, ids: Sequence[int], face: Interface) -> Feeds:
    """The feed of [prefix + text] for the feed of a text; the cache is left as it is."""
    shifted = shifted_by(feeds, len(ids))
    for name, array in feeds.items():
        front = _front(name, array, ids, face)
        if front is not None:
            shifted[name] = np.concatenate([front, shifted[name]], axis=-1)
    return shifted


def _front(name: str, array: NDArray[Any], ids: Sequence[int], face: Interface) -> NDArray[Any] | None:
    """What stands for the prefix in an input that has one element for each token; None for other inputs."""
    shape = (*array.shape[:-1], len(ids))
    if name == face.filler.ids:
        return np.broadcast_to(np.asarray(ids, array.dtype), shape)
    if name == "token_type_ids":
        return np.zeros(shape, array.dtype)
    if name in (*POSITIONS, "cache_position"):
        return np.broadcast_to(np.arange(len(ids), dtype=array.dtype), shape)
    return None


def without_first(feeds: Feeds, face: Interface, first: int | None) -> Feeds:
    """A feed of texts without their first token, where that is `first` in all of them and not the only one."""
    ids = face.filler.ids
    if feeds[ids].ndim != 2 or feeds[ids].shape[1] < 2 or not (feeds[ids][:, 0] == first).all():
        return feeds
    found = dict(feeds)
    for name, array in feeds.items():
        if name in (ids, "token_type_ids", *MASKS):
            found[name] = array[:, 1:]
        elif name in (*POSITIONS, "cache_position"):
            found[name] = array[..., :-1]
    return found


def prove(
    before: Model | gs.Graph, after: Model | gs.Graph, prefix: Prefix, feeds: Sequence[Feeds], *, baked: bool = True
) -> float:
    """Holds a model with the prefix against the float model that reads [prefix + text].

    With a cache also a decoding step behind it: what the model gave is fed back.

    Args:
        before: the float model without the prefix.
        after: the model that has it inside; the same as `before` where callers put it into the cache.
        prefix: the prefix.
        feeds: texts; the first `LONGEST_PROOF` tokens of each are used, with an empty cache.
        baked: False where callers put the prefix into the cache.

    Returns:
        The largest difference of a float output in the rows of the text, relative to its largest value.

    Raises:
        EquivalenceError: it is above `TOLERANCE` (`HALF_TOLERANCE` where the outputs are 16 bits wide).
    """
    reference, other = (model.graph if isinstance(model, Model) else model for model in (before, after))
    face = sites.interface(reference)
    first, second = OpenModel(reference, quick=True), OpenModel(other, quick=True)
    worst, half, length = (0.0, ""), False, len(prefix.ids)
    for feed in feeds:
        texts = feed[face.filler.ids][:, :LONGEST_PROOF].tolist()
        plain, first_tokens = face.filler.feed(texts), [text[:1] for text in texts]
        own = plain if baked else prefix.in_cache(plain, face)
        wanted, got = first.run(in_front(plain, prefix.ids, face)), second.run(own)
        worst = max(worst, _difference(wanted, got))
        half = half or any(value.dtype.itemsize == 2 for value in wanted.values())
        if face.past:
            seen = len(texts[0]) + length
            own = face.filler.feed(first_tokens, _fed_back(face, got), seen - length if baked else seen)
            wanted = first.run(face.filler.feed(first_tokens, _fed_back(face, wanted), seen))
            worst = max(worst, _difference(wanted, second.run(own)))
    allowed = HALF_TOLERANCE if half else TOLERANCE
    if not worst[0] <= allowed:
        raise EquivalenceError(
            f"with the prefix {list(prefix.ids)} in front of its attentions, the model does not compute what it "
            f"computes for [prefix + text]: output '{worst[1]}' differs by {worst[0]:.3g} of its largest value, and "
            f"{allowed:g} is allowed. This is a defect of qcompiler; please report it with the model."
        )
    return worst[0]


def _fed_back(face: Interface, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {past: values[present] for past, present in face.past}


def _difference(wanted: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]]) -> tuple[float, str]:
    worst = (0.0, "")
    for name, reference in wanted.items():
        value = got[name]
        if reference.dtype.kind != "f":
            continue
        reference, value = reference.astype(np.float64), value.astype(np.float64)
        if reference.ndim != value.ndim:
            return float("inf"), name
        for axis, (long, short) in enumerate(zip(reference.shape, value.shape, strict=True)):
            reference = np.moveaxis(np.moveaxis(reference, axis, 0)[max(long - short, 0) :], 0, axis)
        if reference.shape != value.shape or not np.isfinite(value).all():
            return float("inf"), name
        largest = float(np.abs(reference).max(initial=0.0)) or 1.0
        worst = max(worst, (float(np.abs(reference - value).max(initial=0.0)) / largest, name))
    return worst
