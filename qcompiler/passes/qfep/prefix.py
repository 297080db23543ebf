"""A prefix: a few tokens whose keys and values every attention sees in front of the text.

They are computed once, by running the float model on the prefix alone. A causal model that is then given a text with
these keys and values in front computes exactly what it computes for [prefix + text]; `prove` checks that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import DataError, ModelError
from qcompiler.ir.model import Model
from qcompiler.ir.signature import Feeds
from qcompiler.passes.qfep import layout, sites
from qcompiler.passes.qfep.sites import POSITIONS, Interface, UnfitError
from qcompiler.runtime.token_feeds import MASKS
from qcompiler.support import npz

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens and what they leave in the cache.

    Attributes:
        ids: token ids, at least one.
        keys: of each attention in graph order, [kv_heads, len(ids), size], rotated where the model rotates.
        values: the same.
    """

    ids: tuple[int, ...]
    keys: tuple[NDArray[Any], ...]
    values: tuple[NDArray[Any], ...]

    def save(self, path: str | Path) -> Path:
        """Writes `ids` int64 [length] and `past_key_values.N.key` / `.value` [1, kv_heads, length, size] as `.npz`."""
        arrays: dict[str, Any] = {"ids": np.asarray(self.ids, np.int64)}
        for number, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            arrays[f"past_key_values.{number}.key"] = key[None]
            arrays[f"past_key_values.{number}.value"] = value[None]
        with Path(path).open("wb") as stream:
            np.savez(stream, **arrays)
        return Path(path)

    @staticmethod
    def load(path: str | Path) -> Prefix:
        """Reads what `save` wrote; nothing is unpickled.

        Raises:
            DataError: it is no such file.
        """
        found = {name: member.whole() for name, member in npz.members(Path(path)).items()}
        count = (len(found) - 1) // 2
        wanted = [f"past_key_values.{number}.{kind}" for number in range(count) for kind in ("key", "value")]
        if not count or set(found) != {"ids", *wanted}:
            raise DataError(
                f"'{path}' is no prefix: it needs ids and, for each attention, past_key_values.N.key and .value. "
                "`qcompiler compile --qfep` writes such a file beside its output."
            )
        ids = tuple(int(one) for one in found["ids"])
        arrays = [np.array(found[name]) for name in wanted]
        if any(one.ndim != 4 or one.shape[0] != 1 or one.shape[2] != len(ids) for one in arrays):
            raise DataError(f"'{path}' is no prefix: its arrays are not [1, kv_heads, {len(ids)}, size].")
        return Prefix(ids, tuple(one[0] for one in arrays[::2]), tuple(one[0] for one in arrays[1::2]))

    def in_cache(self, feeds: Feeds, face: Interface) -> Feeds:
        """A feed whose cache begins with the prefix, as a caller has to give it who manages the cache."""
        found = dict(feeds)
        for number, (name, _) in enumerate(face.past):
            rows = (self.keys, self.values)[number % 2][number // 2]
            batch = len(feeds[name])
            whole = np.broadcast_to(rows.astype(feeds[name].dtype), (batch, *rows.shape))
            found[name] = np.concatenate([whole, feeds[name]], axis=2)
        return shifted_by(found, len(self.ids))


def run(model: Model | gs.Graph, ids: Sequence[int]) -> Prefix:
    """Runs the float model once on `ids` and keeps what its attentions keep of them.

    Raises:
        ModelError: the model is no decoder that is understood; the message says what is in the way.
    """
    graph = model.graph if isinstance(model, Model) else model
    try:
        face = sites.interface(graph)
        found = None if face.past else layout.layout(graph, face)
        taken = layout.keys_and_values(graph, face, ids, found)
    except UnfitError as error:
        raise ModelError(unfit(error)) from error
    return Prefix(tuple(ids), tuple(key for key, _ in taken), tuple(value for _, value in taken))


def unfit(error: UnfitError) -> str:
    """The sentence for people."""
    return f'a prefix cannot be put in front of this model: {error}. Compile it with `[qfep] prefix = "off"`.'


def shifted_by(feeds: Feeds, by: int) -> Feeds:
    """Positions moved on, and masks with ones in front."""
    found = dict(feeds)
    for name, array in feeds.items():
        if name in (*POSITIONS, "cache_position"):
            found[name] = array + by
        elif name in MASKS:
            found[name] = np.concatenate([np.ones((len(array), by), array.dtype), array], axis=-1)
    return found
