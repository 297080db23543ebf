"""Calibration and evaluation data: any source becomes a stream of checked feeds that can be walked again and again.

A source is an `.npz` or `.npy` file (axis 0 of each array counts the samples), a folder of them (one feed each, in
natural order), a folder of pictures, sounds or other files that `Prepared` says how to read, `package.module:function`,
`file.py:function`, or, from Python, a `Text`, an iterable or a callable that returns one. `random` makes standard
normal noise from the model's inputs and says so wherever the result is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import onnx_graphsurgeon as gs

from qcompiler.data.batches import NO_BATCH, BatchAxes, groups, samples_of
from qcompiler.data.check import check, kind_of
from qcompiler.data.files.listing import kind_at
from qcompiler.data.files.opened import UNPREPARED, no_data, open_path
from qcompiler.data.noise import RandomData, noise_for
from qcompiler.data.samples import fingerprint, loudness
from qcompiler.data.text import Text, fitted
from qcompiler.errors import DataError, QCompilerError, UsageError
from qcompiler.ir.signature import Array, Feeds, Inputs, Stored
from qcompiler.recipe.tables import PreprocessTable
from qcompiler.support.user_code import UserCode


@dataclass(frozen=True)
class Prepared:
    """A file or folder, and how what lies there becomes feeds.

    Attributes:
        path: written like any other data.
        table: how pictures, sounds and other files are prepared.
    """

    path: str
    table: PreprocessTable


Data = (
    str
    | Path
    | Prepared
    | Text
    | RandomData
    | Iterable[Mapping[str, Array]]
    | Callable[[], Iterable[Mapping[str, Array]]]
)

_D = TypeVar("_D")

RANDOM_SAMPLES = 16
_FORMS = (
    "an .npz or .npy file, a folder of them, a folder of pictures or sounds with --preprocess, "
    "'package.module:function', 'file.py:function', or 'random' for a smoke test"
)
_CODE = UserCode(
    "data", forms=_FORMS, missing=DataError, broken=DataError, purpose="takes no arguments and yields the samples"
)


class Source:
    """Feeds that fit the model, streamed; iterate as often as needed.

    Attributes:
        name: what the manifest calls it.
        random: made up by `random`, so results mean nothing beyond "it runs".
        details: what else the manifest says of it.
        batch: so many feeds are joined, where they can be; None for none.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Iterable[Any]],
        inputs: Inputs,
        *,
        samples: int | None = None,
        batch: int | None = None,
        random: bool = False,
        details: Mapping[str, Any] | None = None,
        only: frozenset[bytes] | None = None,
        places: Callable[[int], int] | None = None,
    ) -> None:
        """`start` begins a new pass; `samples` and `batch` as in `open_source`; `only` as of `part`.

        `places` tells of each sample of this source, from 0, where it stands in the data as the user gave it.
        """
        self.name = name
        self.random = random
        self.details = dict(details or {})
        self._start = start
        self._inputs = inputs
        self._samples = samples
        self.batch = batch
        self._axes = NO_BATCH
        self._stored: Stored = {}
        self._only = only
        self._counted: int | None = None
        self._prints: tuple[bytes, ...] = ()
        self._loud: tuple[float, ...] = ()
        self._places = places
        self._begins = [0]  # of each feed, which sample it begins with, as far as feeds have been read

    def content(self) -> object:
        """What it is called, and the fingerprints of its feeds in their order; the data is read once for them.

        Raises:
            DataError: as of `__iter__`.
        """
        return self.name, self.random, self.details, self.batch, self._axes, self.prints()

    def prints(self) -> tuple[bytes, ...]:
        """The fingerprint of each sample, in order; the data is read once for them.

        Raises:
            DataError: as of `__iter__`.
        """
        self._look()
        return self._prints

    def loudness(self) -> tuple[float, ...]:
        """How far each sample reaches (`samples.loudness`), in order; read with `prints`.

        Raises:
            DataError: as of `__iter__`.
        """
        self._look()
        return self._loud

    def _look(self) -> None:
        if self._prints:
            return
        found = [(fingerprint(feed), loudness(feed)) for feed in self._checked()]
        self._prints, self._loud = tuple(one for one, _ in found), tuple(loud for _, loud in found)

    def place(self, index: int) -> int:
        """Where the sample that a feed begins with stands in the data as the user gave it, from 0.

        Args:
            index: of a feed that has been read, from 0.
        """
        sample = index if self.batch is None else self._begins[index]
        return sample if self._places is None else self._places(sample)

    def part(self, prints: Iterable[bytes]) -> Source:
        """The samples with these fingerprints, in their order.

        Raises:
            DataError: as of `prints`.
        """
        only = frozenset(prints)
        places = [index for index, own in enumerate(self.prints()) if own in only]
        other = Source(
            self.name,
            self._start,
            self._inputs,
            samples=self._samples,
            batch=self.batch,
            random=self.random,
            details=self.details,
            only=only,
            places=lambda index: places[index] if self._places is None else self._places(places[index]),
        )
        return other.along(self._axes).stored_as(self._stored)

    def apart(self) -> Source:
        """The samples of the feeds one by one, joined again as many at a time; itself where no feed holds several.

        Raises:
            DataError: as of `__iter__`.
        """
        most = max(self._axes.count(feed) for feed in self._checked())
        if most == 1:
            return self
        whole, axes = self, self._axes
        return Source(
            self.name,
            lambda: (sample for feed in whole for sample in samples_of(feed, axes)),
            self._inputs,
            batch=most,
            random=self.random,
            details=self.details,
        ).along(axes)

    def along(self, axes: BatchAxes) -> Source:
        """The same data with its batch axes known: `batch` feeds at a time are joined along them from now on."""
        other = copy(self)
        other._axes, other._begins = axes, [0]
        return other

    def stored_as(self, types: Stored) -> Source:
        """The same data for a model whose source has other types than float32 for these inputs, as of `check`."""
        other = copy(self)
        other._stored = dict(types)
        return other

    def __iter__(self) -> Iterator[Feeds]:
        """Yields dicts from input name to array.

        Raises:
            DataError: there is no sample, a sample does not fit the model (index and input are named), or the user's
                code failed.
        """
        if self.batch is None:
            return self._checked()
        return self._joined(self.batch)

    def _joined(self, size: int) -> Iterator[Feeds]:
        begins = [0]
        for group in groups(self._checked(), size, self._axes):
            begins.append(begins[-1] + len(group))
            if len(begins) > len(self._begins):
                self._begins = begins
            yield self._axes.joined(group)

    def _checked(self) -> Iterator[Feeds]:
        count, missing = 0, set(self._only or ())
        for raw in self._raw():
            feed = check(raw, self._inputs, f"sample {count} of {self.name}", self._stored)
            count += 1
            if self._only is None:
                yield feed
            elif (own := fingerprint(feed)) in self._only:
                missing.discard(own)
                yield feed
            if count == self._samples:
                break
        if missing:
            raise DataError(
                f"{self.name} gave other samples than when it was read first: {len(missing)} of them did not come "
                "again. It is read several times: let it give the same samples each time, with a fixed random seed."
            )
        if self._counted is not None and count != self._counted:
            raise DataError(
                f"{self.name} gave {self._counted} samples the first time and {count} the next: it cannot be read "
                "twice. Give a function that starts anew at each call."
            )
        if not count:
            raise DataError(f"{self.name} has no samples; give at least one.")
        self._counted = count

    def _raw(self) -> Iterator[Any]:
        """Samples as the source gives them; whatever its code raises is reported with the index it happened at."""
        index = 0
        try:
            started = self._start()
            if isinstance(started, Mapping) or not isinstance(started, Iterable):
                raise DataError(
                    f"{self.name} returned {kind_of(started)} where an iterable of samples is needed: "
                    "yield one dict from input name to array for each sample."
                )
            for raw in started:
                yield raw
                index += 1
        except QCompilerError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{self.name} failed at sample {index} with {type(error).__name__}: {error}. "
                "Repair the function, or call it by itself to see where it fails."
            ) from error


def open_source(
    data: Data,
    inputs: Inputs,
    *,
    samples: int | None = None,
    batch: int | None = None,
    stored: Stored | None = None,
) -> Source:
    """Makes a `Source` of whatever the user gave.

    Args:
        data: see the module's docstring.
        inputs: the model's inputs: name to dtype and shape (int for a fixed size, text or None for a free one).
        samples: take the first so many feeds; None for all (16 for `random`).
        batch: join so many consecutive feeds along the batch axes, once these are known (`Source.along`), where the
            other sizes agree (inputs that have no batch axis, such as a sampling rate, must be equal instead); others
            stay as they are, and so does a last batch that is not full.
        stored: types that inputs have in the model's source where they are float32 in `inputs`, as of `check`.

    Raises:
        DataError: there is no such source, or it can be read only once.
        UsageError: `samples` or `batch` is below 1.
    """
    opened = _opened(data, inputs, samples, batch)
    return opened.stored_as(stored) if stored else opened


def _opened(data: Data, inputs: Inputs, samples: int | None, batch: int | None) -> Source:
    for name, value in (("samples", samples), ("batch", batch)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1.")
    if isinstance(data, (str, Path)):
        return _open_text(str(data), UNPREPARED, inputs, samples, batch)
    if isinstance(data, Prepared):
        return _open_text(data.path, data.table, inputs, samples, batch)
    if isinstance(data, RandomData):
        return _open_noise(data, inputs, samples, batch)
    if isinstance(data, Text):
        return Source(
            data.name,
            data.start(inputs, samples),
            inputs,
            samples=samples,
            batch=batch,
            details=data.describe(inputs),
        )
    if isinstance(data, Mapping):
        raise DataError(
            "the data is one dict where several samples are needed: give a list of dicts, one for each sample, "
            "or an .npz file whose arrays have the samples along axis 0."
        )
    if callable(data):
        name = f"function '{getattr(data, '__qualname__', type(data).__name__)}'"
        return Source(name, data, inputs, samples=samples, batch=batch)
    if not isinstance(data, Iterable):
        raise DataError(f"the data is {kind_of(data)}; give {_FORMS}, an iterable of dicts, or a callable.")
    if iter(data) is data:
        raise DataError(
            f"the data is {kind_of(data)}, which can be read only once, and the compiler reads it several times: "
            "give the function that makes it (without calling it), or a list."
        )
    return Source(f"{kind_of(data)} of samples", lambda: data, inputs, samples=samples, batch=batch)


def suited(data: _D, graph: gs.Graph) -> _D | RandomData:
    """Text that knows the model's embedding, and noise in sizes that the model takes; other data as it is."""
    return noise_for(graph) if isinstance(data, str) and data == "random" else fitted(data, graph)


def _open_noise(noise: RandomData, inputs: Inputs, samples: int | None, batch: int | None) -> Source:
    count = samples or RANDOM_SAMPLES
    return Source("random", lambda: noise.feeds(inputs, count), inputs, samples=samples, batch=batch, random=True)


def prepared(data: _D, table: PreprocessTable, beside: object = None) -> _D | Prepared:
    """A path with the way that what lies there is prepared; other data, or where nothing is asked for, as it is.

    Args:
        data: as the user gave it.
        table: how files are prepared.
        beside: other data that the same is asked for: where that has files to prepare, this need not.
    """
    if table == UNPREPARED or not isinstance(data, (str, Path)) or str(data) == "random":
        return data
    if not _has_files(data) and _has_files(beside):
        return data
    return Prepared(str(data), table)


def _has_files(data: object) -> bool:
    """Whether there is something to prepare."""
    if isinstance(data, Prepared):
        return True
    if not isinstance(data, (str, Path)) or not Path(data).exists():
        return False
    return kind_at(Path(data), prepared=True) not in ("", "arrays")


def _open_text(text: str, table: PreprocessTable, inputs: Inputs, samples: int | None, batch: int | None) -> Source:
    if text == "random":
        return _open_noise(RandomData(), inputs, samples, batch)
    found = open_path(Path(text), inputs, table, samples)
    if found is not None:
        return Source(found.name, found.start, inputs, samples=samples, batch=batch, details=found.details)
    if Path(text).exists():
        raise no_data(Path(text), _FORMS)
    if ":" not in text:
        raise DataError(f"'{text}' does not exist; give {_FORMS}.")
    if table != UNPREPARED:
        raise UsageError(
            f"--preprocess is for files, and '{text}' is a function, which prepares by itself: leave it out"
        )
    return Source(f"'{text}'", _CODE.load(text)[0], inputs, samples=samples, batch=batch)
