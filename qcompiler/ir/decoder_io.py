"""Decoders of text by the names of their inputs and outputs: where tokens go in, and how the key-value cache grows.

The names are those of the ecosystem: `input_ids` in and `logits` out; with a cache also `past_key_values.N.key` and
`.value` in and `present.N.key` and `.value` out. What a step gives as `present` is the `past` of the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import ModelError, UsageError
from qcompiler.ir import graph as graphs
from qcompiler.ir.operators import VIEWS
from qcompiler.ir.signature import Feeds, Inputs, InputShapes, Shape, inputs_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcompiler.ir.model import Model


TOKENS, LOGITS, PAST, PRESENT = "input_ids", "logits", "past_key_values.", "present."
ENCODERS_ONLY = "token_type_ids"  # an encoder with logits, such as BERT, has it; decoders do not
ROLES: Mapping[str, tuple[str, ...]] = {
    TOKENS: ("batch", "sequence"),
    "attention_mask": ("batch", "total"),
    "position_ids": ("batch", "sequence"),
    "cache_position": ("sequence",),
}
Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class CachePair:
    """One tensor of the cache.

    Attributes:
        past: name of the input.
        present: name of the output that becomes this input in the next step.
        shape: of the input as declared: a number for a fixed size, a name or None for a free one.
        dtype: numpy name of its type.
        axis: which axis grows by one with each token.
    """

    past: str
    present: str
    shape: tuple[int | str | None, ...]
    dtype: str
    axis: int

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token of one sequence adds; free axes other than the batch count once."""
        sizes = [size for axis, size in enumerate(self.shape) if axis not in (0, self.axis) and isinstance(size, int)]
        return int(np.prod(sizes, dtype=np.int64)) * _itemsize(self.dtype)


@dataclass(frozen=True)
class Decoder:
    """What is known of a decoder.

    Attributes:
        inputs: dtype and shape of each of its inputs.
        pairs: its cache; empty for a model that reads the whole text anew for each token.
        roles: what each axis of each input counts: a fixed size, `batch`, `sequence` (new tokens), `past` (tokens in
            the cache) or `total` (both).
        unknown: inputs that are none of the known ones.
    """

    inputs: Inputs
    pairs: tuple[CachePair, ...]
    roles: Mapping[str, tuple[int | str, ...]]
    unknown: tuple[str, ...] = ()

    def shapes(self, batch: int, sequence: int, past: int) -> dict[str, tuple[int, ...]]:
        """The shape of each input for so many sequences, new tokens and tokens in the cache.

        Raises:
            ModelError: there is an input that no rule speaks of.
        """
        if self.unknown:
            raise ModelError(
                f"this decoder takes '{self.unknown[0]}', which is none of the inputs that are known: "
                f"{', '.join(ROLES)} and {PAST}N.key / .value; give its shapes and data yourself (--shapes, --data)"
            )
        sizes = {"batch": batch, "sequence": sequence, "past": past, "total": past + sequence}
        return {
            name: tuple(role if isinstance(role, int) else sizes[role] for role in roles)
            for name, roles in self.roles.items()
        }

    def feeds(self, tokens: NDArray[np.int64], past: int) -> Feeds:
        """Every input but the cache for tokens [batch, sequence] behind `past` tokens: nothing is masked.

        Raises:
            ModelError: there is an input that no rule speaks of, or a fixed size that the tokens do not have.
        """
        batch, sequence = tokens.shape
        wanted = self.shapes(batch, sequence, past)
        if wanted[TOKENS] != tokens.shape:
            fixed = "x".join(str(size) if isinstance(size, int) else "?" for size in self.roles[TOKENS])
            raise ModelError(
                f"the decoder takes '{TOKENS}' of {fixed} only, not of {batch}x{sequence}: choose --batch and --prompt "
                "to fit, or export it with dynamic sizes"
            )
        found: Feeds = {}
        for name, shape in wanted.items():
            dtype = self.inputs[name][0]
            if name == TOKENS:
                found[name] = tokens.astype(dtype)
            elif name == "attention_mask":
                found[name] = np.ones(shape, dtype)
            elif not name.startswith(PAST):
                found[name] = np.broadcast_to(np.arange(past, past + sequence), shape).astype(dtype)
        return found

    def empty(self, batch: int) -> Feeds:
        """The cache before the first token."""
        shapes = self.shapes(batch, 1, 0)
        return {pair.past: np.zeros(shapes[pair.past], self.inputs[pair.past][0]) for pair in self.pairs}

    def profiles(self, batch: tuple[int, int, int], prompt: int, max_length: int) -> list[dict[str, Range]]:
        """Shapes (smallest, usual, largest) of every dynamic input for the prefill, then for the decode.

        The prefill takes a whole prompt, also behind tokens that are in the cache already (a prefix, an earlier turn
        of a talk); the decode takes one token. Kernels for one token differ, so each phase has a profile of its own.

        Args:
            batch: smallest, usual and largest.
            prompt: usual tokens of a prompt.
            max_length: most tokens of a text. The prefill's largest shapes are that many new tokens behind nearly as
                many in the cache.

        Raises:
            UsageError: the prompt does not fit the length.
        """
        if not 1 <= prompt < max_length:
            raise UsageError(
                f"a prompt of {prompt} tokens leaves no room for an answer in max_length = {max_length}: make "
                "--max-length larger or --prompt smaller"
            )
        middle = (prompt + max_length) // 2
        prefill = self._profile(batch, (1, prompt, max_length), (0, 0, max_length - 1))
        decode = self._profile(batch, (1, 1, 1), (0, middle, max_length - 1))
        return [prefill, decode]

    def _profile(
        self, batch: tuple[int, int, int], sequence: tuple[int, int, int], past: tuple[int, int, int]
    ) -> dict[str, Range]:
        """Each of the three points must fit itself: TensorRT checks that `total` is what the graph adds up to."""
        points = [self.shapes(*sizes) for sizes in zip(batch, sequence, past, strict=True)]
        return {
            name: (points[0][name], points[1][name], points[2][name])
            for name, roles in self.roles.items()
            if any(isinstance(role, str) for role in roles)
        }

    def to_json(self) -> dict[str, Any] | None:
        """The cache for the manifest; None without one."""
        if not self.pairs:
            return None
        return {
            "bytes_per_token": sum(pair.bytes_per_token for pair in self.pairs),
            "pairs": [
                {
                    "past": pair.past,
                    "present": pair.present,
                    "shape": list(self.roles[pair.past]),
                    "dtype": pair.dtype,
                    "axis": pair.axis,
                    "bytes_per_token": pair.bytes_per_token,
                }
                for pair in self.pairs
            ],
        }


def lengths(
    seen: InputShapes | None, batch: int | None, prompt: int | None, max_length: int | None
) -> tuple[tuple[int, int, int], int, int]:
    """Smallest, usual and largest batch, usual prompt, and most tokens: as asked for, else as seen.

    Args:
        seen: shapes of the tokens in the data; None without data.
        batch: most texts at a time; None for what was seen.
        prompt: tokens of a usual prompt; None for the median, but no more than half of the most.
        max_length: most tokens of a text; None for the longest seen.

    Raises:
        UsageError: there is neither data nor a length.
    """
    longest = max_length or (seen.max[1] if seen else None)
    if longest is None:
        raise UsageError(
            "a decoder with a key-value cache needs to know how long texts get: give --max-length (and --prompt), "
            "data, or --shapes"
        )
    most = batch or (seen.max[0] if seen else 1)
    usual = min(seen.opt[0] if seen else 1, most)
    return (1, usual, most), prompt or max(1, min(seen.opt[1] if seen else longest, longest // 2)), longest


def of_model(model: Model) -> Decoder | None:
    """The decoder that a loaded model is; None if it is something else."""
    return of_graph(model.graph)


def of_graph(graph: gs.Graph) -> Decoder | None:
    """The decoder that a graph is; None if it is something else."""
    inputs = inputs_of(graph)
    return detect(inputs, {one.name: graphs.shape_of(one) for one in graph.outputs})


def detect(inputs: Inputs, outputs: Mapping[str, Shape]) -> Decoder | None:
    """The decoder with these inputs (dtype and shape) and outputs (shape, or None if it is not known).

    A model with tokens and logits but without a cache is a decoder too, unless it has inputs of encoders.

    Returns:
        None if this is no decoder.
    """
    logits = outputs.get(LOGITS)
    if TOKENS not in inputs or LOGITS not in outputs or ENCODERS_ONLY in inputs:
        return None
    if (logits is not None and len(logits) != 3) or len(inputs[TOKENS][1] or ()) != 2:
        return None
    pairs = tuple(pair for name in inputs if (pair := _pair(name, inputs, outputs)) is not None)
    axes = {pair.past: pair.axis for pair in pairs}
    roles, unknown = {}, []
    for name, (_, shape) in inputs.items():
        known = _roles(name, shape, axes)
        if known is None:
            unknown.append(name)
        else:
            roles[name] = known
    return Decoder(dict(inputs), pairs, roles, tuple(unknown))


def _pair(name: str, inputs: Inputs, outputs: Mapping[str, Shape]) -> CachePair | None:
    present = PRESENT + name.removeprefix(PAST)
    dtype, shape = inputs[name]
    if not name.startswith(PAST) or present not in outputs or shape is None or dtype is None:
        return None
    free = [axis for axis, size in enumerate(shape) if axis and not isinstance(size, int)]
    named = [axis for axis in free if any(word in str(shape[axis]).lower() for word in ("past", "seq", "total"))]
    if not free:
        return None  # a cache of fixed size, or that of an encoder
    axis = free[0] if len(free) == 1 else (named or free)[0]
    return CachePair(name, present, shape, dtype.name, axis)


def _roles(name: str, shape: Shape, axes: Mapping[str, int]) -> tuple[int | str, ...] | None:
    if shape is None:
        return None
    if name in axes:
        named = tuple("batch" if axis == 0 else "past" if axis == axes[name] else 1 for axis in range(len(shape)))
    else:
        found = ROLES.get(name)
        if found is None or len(found) != len(shape):
            return None
        named = found
    return tuple(size if isinstance(size, int) else role for size, role in zip(shape, named, strict=True))


def _itemsize(dtype: str) -> int:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize


def vocabulary_outputs(graph: gs.Graph) -> list[str]:
    """Names of the outputs that hold a figure for each token of a vocabulary: what comes next is drawn by them.

    Of a decoder that is what it calls logits; of others, what is as wide as the table that the ids are looked up in.
    Logits that are much narrower than that are classes of tokens.
    """
    rows, decoder = embedding_rows(graph), of_graph(graph)
    found = []
    for output in graph.outputs:
        shape = graphs.shape_of(output)
        width = shape[-1] if shape else None
        if decoder is not None and output.name == LOGITS:
            narrow = rows is not None and isinstance(width, int) and 2 * width < rows
            found += [] if narrow or not (decoder.pairs or isinstance(width, int)) else [output.name]
        elif shape is not None and len(shape) > 1 and rows is not None and width == rows:
            found.append(output.name)
    return found


def embedding_rows(graph: gs.Graph) -> int | None:
    """Rows of the table that the model looks its token ids up in; None where no Gather of a constant reads them."""
    for tensor in graph.inputs:
        dtype = graphs.dtype_of(tensor)
        if dtype is None or dtype.kind not in "iu" or "mask" in tensor.name or "position" in tensor.name:
            continue
        rows = _gathered(tensor)
        if rows is not None and "type" not in tensor.name:
            return rows
    return None


def looked_up(graph: gs.Graph) -> dict[str, int]:
    """Rows of the table that each input of the graph picks from, by name; without the inputs that pick from none."""
    rows = {tensor.name: _gathered(tensor) for tensor in graph.inputs}
    return {name: count for name, count in rows.items() if count is not None}


def _gathered(tensor: gs.Tensor) -> int | None:
    waiting = [tensor]
    while waiting:
        for node, index in graphs.consumers(waiting.pop()):
            if graphs.is_op(node, "Gather") and index == 1:
                shape = graphs.static_shape(node.inputs[0])
                if shape:
                    return int(shape[int(node.attrs.get("axis", 0))])
            if graphs.is_op(node, *VIEWS, "Clip") and index == 0:
                waiting += node.outputs
    return None
