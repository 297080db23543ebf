"""Text as data: files and a tokenizer become windows of token ids, and these become feeds for a language model.

Each file is cut in two: calibration takes its windows from the first 80 % of the bytes, evaluation from the last 20 %,
so that no text does both. Windows are spread over the files: one after the other from each file in turn, and within a
file each from a stretch of its own, at a place drawn with a seed. A window opens and ends with the special tokens that
the tokenizer's own post-processor puts around a text. Only the stretches that are used are read.
"""

from __future__ import annotations

import codecs
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.data.tokenizer import Tokenizer, load_tokenizer
from qcompiler.errors import DataError, UsageError
from qcompiler.ir.decoder_io import embedding_rows
from qcompiler.ir.signature import Feeds, Inputs
from qcompiler.runtime.token_feeds import Filler

PARTS: Final = ("calibration", "evaluation", "all")
LENGTH: Final = 256  # tokens of a window where nobody says
WINDOWS: Final = 64  # of them where nobody says how many
SHARE: Final = 0.8  # of a file that calibration may see
_BYTES: Final = 8  # of text that are read for a token at first; most tokenizers need 3 to 5
_MORE: Final = 16  # tokens beyond the last one wanted: the last ones of a stretch may be halves of words
_NEAR: Final = 4096  # bytes in which a word must end

_D = TypeVar("_D")


@dataclass(frozen=True)
class Text:
    """Text files that become calibration data or evaluation text.

    Attributes:
        path: a UTF-8 text file, a folder of .txt files, or several of both.
        tokenizer: a `tokenizer.json`, or the folder that has one.
        length: tokens of a window, special tokens included; None: what the model takes, or 256 where that is free.
        part: calibration (the first 80 % of each file), evaluation (the last 20 %), or all.
        seed: of the places that windows are taken from.
        whole: files of which `part` does not hold: all of them is used.
        rows: rows of the model's embedding, which no id may reach; None where they are not known.
    """

    path: str | Path | Sequence[str | Path]
    tokenizer: str | Path
    length: int | None = None
    part: str = "calibration"
    seed: int = 0
    whole: tuple[Path, ...] = ()
    rows: int | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuses what cannot be meant.

        Raises:
            UsageError: a length below 2, or no such part.
        """
        if self.length is not None and self.length < 2:
            raise UsageError(f"the length of a text window is {self.length} tokens; it must be at least 2.")
        if self.part not in PARTS:
            raise UsageError(f"there is no part '{self.part}' of a text: choose one of {', '.join(PARTS)}.")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files, folders opened, in natural order.

        Raises:
            DataError: one is not there, or a folder has no .txt file.
        """
        paths = [self.path] if isinstance(self.path, str | Path) else list(self.path)
        if not paths:
            raise DataError("no text file was given; name at least one.")
        return tuple(itertools.chain.from_iterable(_files(Path(path)) for path in paths))

    @property
    def name(self) -> str:
        """How reports call it."""
        names = [f"'{file.name}'" for file in self.files]
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        share = {"calibration": "first 80 %", "evaluation": "last 20 %"}.get(self.part)
        return f"text {listed}" + (f" ({share})" if share and not self.whole else "")

    def describe(self, inputs: Inputs) -> dict[str, Any]:
        """For the manifest: files, tokenizer, and how windows are made."""
        tokenizer = load_tokenizer(self.tokenizer)
        return {
            "files": [{"name": file.name, "bytes": file.stat().st_size} for file in self.files],
            "part": self.part,
            "tokenizer": tokenizer.name,
            "tokenizer_sha256": tokenizer.digest,
            "length": self.window_length(Filler(inputs)),
            "seed": self.seed,
        }

    def start(self, inputs: Inputs, samples: int | None = None) -> Callable[[], Iterator[Feeds]]:
        """A function that begins a pass over the feeds.

        Args:
            inputs: the model's, as in `qcompiler.data.source.open_source`.
            samples: how many feeds; None: 64, or fewer where the text is short.

        Raises:
            DataError: file, tokenizer, or an input that text cannot fill.
            UsageError: the package that reads the tokenizer is not installed.
        """
        tokenizer, filler, stretches = load_tokenizer(self.tokenizer), Filler(inputs), self.stretches()
        length = self.window_length(filler)
        for stretch in stretches[: samples or WINDOWS]:  # what is too short is found out now and not in the run
            stretch.window(tokenizer, 0.0, self._body(tokenizer, length))
        count = (samples or self._enough(length, stretches, filler.rows)) * filler.rows

        def begin() -> Iterator[Feeds]:
            group: list[list[int]] = []
            for window in self._windows(tokenizer, stretches, length, count):
                group.append(window)
                if len(group) == filler.rows:
                    yield filler.feed(group)
                    group = []

        return begin

    def streams(self, tokenizer: Tokenizer, tokens: int | None) -> list[list[int]]:
        """The first ids of each file's part, without special tokens; `tokens` of all together, None for all there are.

        Raises:
            DataError: a file has fewer than two tokens, or an id that the model does not have.
        """
        stretches = self.stretches()
        each = None if tokens is None else math.ceil(tokens / len(stretches))
        found = []
        for stretch in stretches:
            ids = stretch.ids(tokenizer, stretch.begin, each)
            if len(ids) < 2:
                raise DataError(
                    f"{stretch} has {len(ids)} token{'s' * (len(ids) != 1)}: too short to predict anything. Give "
                    "longer text."
                )
            self.check_ids(tokenizer, ids)
            found.append(ids)
        return found

    def stretches(self) -> list[Stretch]:
        """The part of each file that is used.

        Raises:
            DataError: a file is not there, cannot be read or is empty.
        """
        return [Stretch.of(file, "all" if file in self.whole else self.part) for file in self.files]

    def check_ids(self, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
        """Refuses ids that the model's embedding does not have.

        Raises:
            DataError: it is the tokenizer of another model.
        """
        largest = max(ids, default=0)
        if self.rows is not None and largest >= self.rows:
            raise DataError(
                f"tokenizer '{tokenizer.name}' makes the token id {largest} of this text, but the model's embedding "
                f"has only {self.rows} rows (ids 0 to {self.rows - 1}): it is the tokenizer of another model. Give "
                "--tokenizer the folder that this model came in."
            )

    def window_length(self, filler: Filler) -> int:
        """Tokens of a window for that model.

        Raises:
            DataError: the model takes another number of tokens than was asked for.
        """
        if filler.length is not None and self.length not in (None, filler.length):
            raise DataError(
                f"the model takes exactly {filler.length} tokens in '{filler.ids}', and windows of {self.length} were "
                "asked for: leave --length out, or export the model with a free length."
            )
        return filler.length or self.length or LENGTH

    @staticmethod
    def _enough(length: int, stretches: Sequence[Stretch], rows: int) -> int:
        """Feeds where nobody says how many: no more than the text has windows beside each other, at 4 bytes a token."""
        room = sum(one.size for one in stretches) // (4 * length * rows)
        return max(1, min(WINDOWS, room))

    def _windows(
        self, tokenizer: Tokenizer, stretches: Sequence[Stretch], length: int, count: int
    ) -> Iterator[list[int]]:
        body = self._body(tokenizer, length)
        each = math.ceil(count / len(stretches))
        for index in range(count):
            stretch = stretches[index % len(stretches)]
            drawn = np.random.default_rng([self.seed, index]).random()
            share = (index // len(stretches) + drawn) / each
            ids = stretch.window(tokenizer, share, body)
            window = [*tokenizer.before, *ids, *tokenizer.after]
            self.check_ids(tokenizer, window)
            yield window

    @staticmethod
    def _body(tokenizer: Tokenizer, length: int) -> int:
        """Tokens of a window that are text."""
        body = length - len(tokenizer.before) - len(tokenizer.after)
        if body < 1:
            raise DataError(
                f"a window of {length} tokens has no room beside the special tokens of '{tokenizer.name}': raise "
                "--length."
            )
        return body


@dataclass(frozen=True)
class Stretch:
    """Bytes `begin` to `end` of a file; both stand where a word begins."""

    file: Path
    begin: int
    end: int
    part: str

    @staticmethod
    def of(file: Path, part: str) -> Stretch:
        """The part of a file."""
        try:
            size = file.stat().st_size
            whole = Stretch(file, 0, size, "all")
            border = whole.word(int(size * SHARE)) if part != "all" else size
        except OSError as error:
            raise DataError(f"text file '{file}' cannot be read: {error.strerror}.") from error
        begin, end = {"calibration": (0, border), "evaluation": (border, size), "all": (0, size)}[part]
        found = Stretch(file, begin, end, part)
        if not found.size:
            raise DataError(f"{found} is empty; give longer text.")
        return found

    def __str__(self) -> str:
        """As messages call it."""
        share = {"calibration": "the first 80 % of ", "evaluation": "the last 20 % of "}.get(self.part, "")
        return f"{share}text file '{self.file}'"

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin

    def window(self, tokenizer: Tokenizer, share: float, count: int) -> list[int]:
        """`count` ids from about that share of the stretch on, further in front where it ends too soon.

        Raises:
            DataError: the whole stretch has fewer ids.
        """
        at = self.begin + int(share * max(0, self.size - _BYTES * count))
        while True:
            ids = self.ids(tokenizer, self.word(at) if at > self.begin else at, count)
            if len(ids) == count:
                return ids
            if at == self.begin:
                raise DataError(
                    f"{self} has {len(ids)} tokens, and a window takes {count}: the text is too short. Give longer "
                    "text, or a smaller --length."
                )
            at = max(self.begin, at - _BYTES * count)

    def ids(self, tokenizer: Tokenizer, at: int, count: int | None) -> list[int]:
        """The first `count` ids of the text from byte `at` on; fewer where it ends; all of them for None."""
        if count is None:
            return tokenizer.encode(self.text(at, self.end - at))
        size = _BYTES * (count + _MORE)
        while True:
            ids = tokenizer.encode(self.text(at, size))
            if len(ids) >= count + _MORE or at + size >= self.end:
                return ids[:count]
            size *= 2

    def word(self, at: int) -> int:
        """The first byte from there on at which a word begins; a character where no word begins nearby."""
        raw = self._raw(at, min(_NEAR, self.end - at))
        space = re.search(rb"\s+(?=\S)", raw)
        if space is not None:
            return at + space.end()
        return at + next((i for i, byte in enumerate(raw) if byte & 0xC0 != 0x80), len(raw))

    def text(self, at: int, size: int) -> str:
        """At most so many bytes as text; a character that is cut off at the end is left out.

        Raises:
            DataError: they are not UTF-8.
        """
        size = min(size, self.end - at)
        raw = self._raw(at, size)
        try:
            text = codecs.getincrementaldecoder("utf-8")().decode(raw, final=at + size == self.end)
        except UnicodeDecodeError as error:
            raise DataError(
                f"text file '{self.file}' is not UTF-8: byte 0x{raw[error.start]:02x} at offset {at + error.start} "
                "does not belong there. Convert it first, such as with iconv -f latin1 -t utf-8."
            ) from error
        if "\0" in text:
            raise DataError(f"text file '{self.file}' has zero bytes: it is UTF-16 or no text. Convert it to UTF-8.")
        return text.removeprefix("\ufeff") if not at else text

    def _raw(self, at: int, size: int) -> bytes:
        try:
            with self.file.open("rb") as stream:
                stream.seek(at)
                return stream.read(size)
        except OSError as error:
            raise DataError(f"text file '{self.file}' cannot be read: {error.strerror}.") from error


def _files(path: Path) -> Iterable[Path]:
    if path.is_dir():
        found = sorted(path.glob("*.txt"), key=lambda file: _natural(file.name))
        if not found:
            raise DataError(f"folder '{path}' has no .txt file; name the text files themselves.")
        return found
    if not path.exists():
        raise DataError(f"there is no text file '{path}'; check the spelling of the path.")
    return [path]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts `part10` behind `part9`."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name)]


def feeds(
    path: str | Path | Sequence[str | Path],
    tokenizer: str | Path,
    inputs: Inputs,
    *,
    length: int | None = None,
    samples: int | None = None,
    part: str = "calibration",
    seed: int = 0,
) -> Callable[[], Iterator[Feeds]]:
    """Feeds out of text for every input that a language model has; each call of the result begins a new pass.

    Args:
        path: UTF-8 text file, folder of .txt files, or several.
        tokenizer: `tokenizer.json` or the folder that has one.
        inputs: the model's: name to dtype and shape.
        length: tokens of a window; None: what the model takes, or 256.
        samples: how many feeds; None: 64, fewer where the text is short.
        part: calibration, evaluation or all.
        seed: of the places in the text.

    Raises:
        DataError: files, tokenizer or model do not fit.
        UsageError: the package that reads the tokenizer is not installed.
    """
    return Text(path, tokenizer, length, part, seed).start(inputs, samples)


def fitted(data: _D, graph: gs.Graph) -> _D:
    """Text data that knows the rows of the model's embedding; other data as it is."""
    if not isinstance(data, Text):
        return data
    return dataclasses.replace(data, rows=data.rows or embedding_rows(graph))
