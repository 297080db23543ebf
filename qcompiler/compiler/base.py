"""The contract of a step: `Stage`, `Done`, and the `Compilation` that runs them.

    @stage(version=1)
    def observe(run: Compilation, subject: Subject, watch: Watch, options: ObserveOptions) -> Done[Subject]: ...

    subject = run(observe, subject, asked.watch, asked.observe)

A stage is a function of declared inputs. What it is not given cannot change what it does, so the content of its
arguments is its key: with a cache, the same question is answered from there. It hands back a value that nobody changes
any more, its part of the manifest, and the passes it ran. What it says while it works goes through `run`: progress and
warnings; the warnings are kept with the result, so that an answer from the cache tells the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from qcompiler.compiler.content import digest
from qcompiler.compiler.subject import Subject
from qcompiler.compiler.workers.opened import Workers
from qcompiler.errors import EquivalenceError
from qcompiler.passes.base import Report
from qcompiler.runtime.memory import trim
from qcompiler.support.each import I, Others, in_turn
from qcompiler.support.outlook import Outlook
from qcompiler.support.progress import Progress, silent
from qcompiler.verification.blame import blaming

P = ParamSpec("P")
T = TypeVar("T")
Section = Mapping[str, Any]
WORTH_KEEPING = 1.0  # seconds that an item took


Checked = tuple[Report, float | None]  # what a pass did, and the relative error of an output behind it


def checked(reports: Iterable[Report], errors: Mapping[str, float]) -> tuple[Checked, ...]:
    """Reports with the errors that the equivalence check found; None where there was nothing to run.

    Args:
        reports: of passes, in order.
        errors: relative, by the text form of the pass.
    """
    return tuple((report, errors.get(report.name)) for report in reports)


def tell_undone(run: Compilation, reports: Iterable[Report], *, strict: bool) -> None:
    """Warns of every pass whose edits were taken back, or that did not run for it.

    Raises:
        EquivalenceError: strict, and there is one.
    """
    for report in reports:
        if report.undone and strict:
            raise EquivalenceError(f"{report.undone} Without --strict the model is compiled without that pass.")
        if report.undone:
            run.warn(f"{report.undone} The model goes on without that pass.")


@dataclass(frozen=True, eq=False)
class Done(Generic[T]):
    """What a stage hands back.

    Attributes:
        value: goes on to the next stages.
        record: its part of the manifest, by key. A mapping under a key that another stage has, too, is joined with
            that: a later stage may fill in what only it can know.
        passes: the passes it ran, in order, each with the relative error that the equivalence check found; None where
            there was nothing to run.
        warnings: what it told the user; filled in by `Compilation`.
    """

    value: T
    record: Section = field(default_factory=dict)
    passes: tuple[Checked, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage(Generic[P, T]):
    """A step of a compilation; made by `@stage`.

    Attributes:
        function: the work.
        version: grows when the same inputs give another result.
        kept: whether its results may come from a cache; False where it is cheap, or asks the world outside.
        judged: whether it asks what results are judged by. Where that is code of the user, which may look into files
            that nobody else knows of, the result is made again.
    """

    function: Callable[Concatenate[Compilation, P], Done[T]]
    version: int = 1
    kept: bool = True
    judged: bool = False

    @property
    def name(self) -> str:
        """The name of the function: that of its file, of its timing and of its part of the manifest."""
        return self.function.__name__

    def key(self, *inputs: P.args, **options: P.kwargs) -> str:
        """What its result depends on, as 64 hex digits: name, version, and the content of every argument.

        Raises:
            TypeError: an argument has no content, such as an open session or a closure.
        """
        return digest((self.name, self.version, inputs, options))


def stage(
    *, version: int = 1, kept: bool = True, judged: bool = False
) -> Callable[[Callable[Concatenate[Compilation, P], Done[T]]], Stage[P, T]]:
    """Makes a `Stage` of a function whose first argument is the `Compilation`."""

    def make(function: Callable[Concatenate[Compilation, P], Done[T]]) -> Stage[P, T]:
        return Stage(function, version, kept, judged)

    return make


class Cache(Protocol):
    """Where results are kept by the key of the question; `inputs` are the arguments of the stage."""

    def get(self, name: str, key: str, inputs: Sequence[object]) -> tuple[Done[Any], float] | None:
        """The result of a stage by its key, and the seconds that it took; None where there is none."""

    def put(self, name: str, key: str, done: Done[Any], seconds: float, inputs: Sequence[object]) -> None:
        """Keeps the result of a stage that took so many seconds."""


class Compilation:
    """Runs stages; collects what they record, what they warn of, and how long they take.

    Attributes:
        cache: where results of stages are kept; None for nowhere.
        workers: who does items of work; None for this process.
        passes: by stage, the passes that its last run ran.
        timings: seconds of work by stage, in the order in which they began.
        reused: by stage that was answered from the cache, the seconds that it took when it was made.
        warnings: what the user was told, in order.
    """

    def __init__(self, progress: Progress = silent, *, cache: Cache | None = None) -> None:
        self.passes: dict[str, tuple[Checked, ...]] = {}
        self.timings: dict[str, float] = {}
        self.reused: dict[str, float] = {}
        self.warnings: list[str] = []
        self._progress = progress
        self.cache = cache
        self._running = ""
        self.workers: Workers | None = None
        self._outlook = Outlook({})
        self._recorded: dict[str, Section] = {}
        self._lent: object = None

    def __call__(self, one: Stage[P, T], *inputs: P.args, **options: P.kwargs) -> T:
        """The value of a stage, from the cache where it has been asked before."""
        given = (*inputs, *options.values())
        key = self._key(one, given, lambda: one.key(*inputs, **options))
        known = None if key is None or self.cache is None else self.cache.get(one.name, key, given)
        if known is not None:
            done: Done[T] = known[0]
            self._again(one.name, done, known[1])
        else:
            started = time.perf_counter()
            done = self._made(one, *inputs, **options)
            if key is not None and self.cache is not None:
                self.cache.put(one.name, key, done, time.perf_counter() - started, given)
        self._recorded[one.name] = done.record
        self.passes[one.name] = done.passes
        return done.value

    def item(self, name: str, inputs: Sequence[object], make: Callable[[], T]) -> T:
        """A piece of the work of the stage that runs, kept by itself.

        A stage that is killed goes on behind its last item, and one that is asked something else does only those that
        are new.

        Args:
            name: of this kind of item, in this stage.
            inputs: all that the item depends on, and nothing else.
            make: the work; what it returns is not changed afterwards.
        """
        return self._kept(f"{self._running}.{name}", inputs, make)

    def figure(self, name: str, inputs: Sequence[object], make: Callable[[], T]) -> T:
        """The same for what several stages ask for, whichever asks first: see `support.each.Keeper`."""
        return self._kept(f"figure.{name}", inputs, make)

    @property
    def others(self) -> Others:
        """Who else may have run what a search runs, or may run it."""
        return Others(self.figure, None if self.workers is None else self.each)

    def _kept(self, name: str, inputs: Sequence[object], make: Callable[[], T]) -> T:
        key = None
        if self.cache is not None:
            with suppress(TypeError):  # as in `_key`
                key = digest((name, tuple(inputs)))
        known = None if key is None or self.cache is None else self.cache.get(name, key, inputs)
        if known is not None:
            self.reused[name] = self.reused.get(name, 0.0) + known[1]
            found: T = known[0].value
            return found
        started = time.perf_counter()
        value = make()
        if key is not None and self.cache is not None:
            self.cache.put(name, key, Done(value), time.perf_counter() - started, inputs)
        return value

    def each(
        self, name: str, begin: Callable[..., Callable[[I], T]], shared: tuple[Any, ...], items: Iterable[I]
    ) -> Iterator[T]:
        """The results of items of work, in their order, each kept by itself: see `support.each.Each`.

        They are done by the workers of this compilation, or here. What took less than it takes to read it again is not
        kept.
        """
        name = f"{self._running}.{name}"
        known: deque[tuple[str | None, T | None]] = deque()  # of the items so far, the key or the result

        def missing() -> Iterator[I]:
            for item in items:
                key = self._item_key(name, begin, shared, item)
                found = None if key is None or self.cache is None else self.cache.get(name, key, ())
                if found is None:
                    known.append((key, None))
                    yield item
                else:
                    self.reused[name] = self.reused.get(name, 0.0) + found[1]
                    known.append((None, found[0].value))

        results = in_turn(name, begin, shared, missing())
        if self.workers is not None:
            results = self.workers.each(begin, shared, missing())
        began = time.perf_counter()
        for result in results:
            while known[0][1] is not None:
                yield known.popleft()[1]  # type: ignore[misc] # it is not None
            key, seconds = known.popleft()[0], time.perf_counter() - began
            if key is not None and self.cache is not None and seconds > WORTH_KEEPING:
                self.cache.put(name, key, Done(result), seconds, ())
            yield result
            began = time.perf_counter()
        yield from (found for _, found in known if found is not None)

    def _item_key(self, name: str, begin: Callable[..., Any], shared: tuple[Any, ...], item: object) -> str | None:
        if self.cache is None:
            return None
        with suppress(TypeError):  # as in `_key`
            return digest((name, begin.__module__, begin.__qualname__, shared, item))
        return None

    def _key(self, one: Stage[Any, Any], given: Sequence[object], key: Callable[[], str]) -> str | None:
        """The key of a question that the cache may answer; None for any other."""
        if self.cache is None or not one.kept:
            return None
        if one.judged and any(isinstance(subject, Subject) and subject.judge.foreign for subject in given):
            return None
        try:
            return key()
        except TypeError:  # an object of the caller's, such as a loader of samples: nobody can tell if it is the same
            return None

    def _again(self, name: str, done: Done[Any], seconds: float) -> None:
        """Tells what was found in the cache, as it was told when it was made."""
        self.reused[name] = self.reused.get(name, 0.0) + seconds
        self._outlook.skipped(name)
        self._progress.reuse(name, seconds)
        for text in done.warnings:
            self.warn(text)

    def _made(self, one: Stage[P, T], *inputs: P.args, **options: P.kwargs) -> Done[T]:
        """Runs a stage; a graph that fails although the model itself runs is never told as a fault of the data."""
        told = len(self.warnings)
        outer, self._running = self._running, one.name
        subject = next((given for given in (*inputs, *options.values()) if isinstance(given, Subject)), None)
        try:
            with blaming(f"stage '{one.name}'", None if subject is None else subject.reference):
                done = one.function(self, *inputs, **options)
        finally:
            self._running = outer
            trim()  # what a stage leaves unused would stand beside what the next one needs
        return Done(done.value, MappingProxyType(dict(done.record)), done.passes, tuple(self.warnings[told:]))

    @contextmanager
    def working(self, total: float | None = None) -> Iterator[Callable[[float], None]]:
        """Shows and times the work of the stage that runs; yields the function that advances it.

        A stage that finds nothing to do does not open it.

        Args:
            total: how many steps there are; None where nobody knows.
        """
        name, started, done = self._running, time.perf_counter(), 0.0
        self._outlook.began(name)

        def advance(steps: float) -> None:
            nonlocal done
            done += steps
            if total:
                self._outlook.reached(done / total)
            shown.advance(steps)

        with self._progress.stage(name, total) as shown:
            yield advance
        self._outlook.ended()
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - started

    def expect(self, text: str, foreseen: Mapping[str, float]) -> None:
        """Shows what all of it is thought to take.

        Args:
            text: a few words.
            foreseen: seconds of the stages to come, in their order.
        """
        self._outlook = Outlook(foreseen)
        self._progress.expect(text, self._outlook)

    def warn(self, text: str) -> None:
        """Shows a sentence to the user and keeps it for the manifest."""
        self.warnings.append(text)
        self._progress.warn(text)

    def lend(self, thing: object) -> None:
        """Leaves a thing that has no content, such as open sessions, for a stage that will need the same.

        It may save that stage work and never change what it finds: who gets none, or one that does not fit, makes its
        own.
        """
        self._lent = thing

    def lent(self, kind: type[T]) -> T | None:
        """The thing of this kind that was left last, which then belongs to the caller; None where there is none."""
        thing, self._lent = self._lent, None
        return thing if isinstance(thing, kind) else None

    @property
    def threads(self) -> int:
        """That an item of `each` may take; 0 for one per processor."""
        return 0 if self.workers is None else self.workers.threads

    @property
    def records(self) -> dict[str, Any]:
        """The parts of the manifest so far, by key: what each stage recorded in its last run."""
        found: dict[str, Any] = {}
        for sections in self._recorded.values():
            for key, value in sections.items():
                found[key] = _joined(found.get(key), value)
        return found


def _joined(known: Any, value: Any) -> Any:
    if isinstance(known, Mapping) and isinstance(value, Mapping):
        return {**known, **value}
    return value
