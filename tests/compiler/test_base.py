"""The contract of a stage: declared inputs are its key, its record is its part of the manifest, warnings are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from qcompiler.compiler.base import Compilation, Done, stage, tell_undone
from qcompiler.compiler.record import manifest
from qcompiler.errors import EquivalenceError
from qcompiler.passes.base import Report
from qcompiler.recipe.recipe import Recipe
from qcompiler.support.outlook import Outlook
from qcompiler.support.progress import ShownStage as Shown
from tests.kit.memory import Memory


@dataclasses.dataclass(frozen=True)
class Options:
    factor: int = 2


@stage(version=1)
def double(run: Compilation, values: tuple[int, ...], options: Options) -> Done[tuple[int, ...]]:
    """Multiplies."""
    with run.working(len(values)) as advance:
        for _ in values:
            advance(1)
    if options.factor == 1:
        run.warn("nothing to multiply")
    return Done(tuple(options.factor * one for one in values), {"double": {"factor": options.factor}})


@stage(version=2, kept=False)
def look(run: Compilation, values: tuple[int, ...]) -> Done[int]:
    """Sums, and never from the cache."""
    return Done(sum(values), {"double": {"sum": sum(values)}})


@stage()
def recording(run: Compilation, sections: dict[str, Any]) -> Done[None]:
    """Records what it is given."""
    return Done(None, sections)


@stage()
def completing(run: Compilation, sections: dict[str, Any]) -> Done[None]:
    """Fills in what an earlier stage could not know."""
    return Done(None, sections)


class Heard:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, float | None]] = []
        self.warnings: list[str] = []
        self.reused: list[tuple[str, float]] = []
        self.steps = 0.0

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[Shown]:
        self.stages.append((name, total))
        yield self

    def advance(self, steps: float = 1) -> None:
        self.steps += steps

    def total(self, steps: float | None) -> None: ...

    def note(self, text: str) -> None: ...

    def expect(self, text: str, outlook: Outlook) -> None: ...

    def reuse(self, name: str, seconds: float) -> None:
        self.reused.append((name, seconds))

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_a_stage_gives_its_value_and_its_record_joins_what_is_there() -> None:
    run = Compilation()
    values = run(double, (1, 2), Options(3))
    assert values == (3, 6)
    assert run(look, values) == 9
    assert run.records == {"double": {"factor": 3, "sum": 9}}


def test_work_is_shown_and_timed_under_the_name_of_the_stage() -> None:
    heard = Heard()
    run = Compilation(heard)
    run(double, (1, 2, 3), Options())
    assert heard.stages == [("double", 3)]
    assert heard.steps == 3
    assert list(run.timings) == ["double"]


def test_a_stage_with_nothing_to_do_is_not_shown() -> None:
    heard = Heard()
    run = Compilation(heard)
    run(look, (1,))
    assert not heard.stages
    assert not run.timings


def test_the_key_is_made_of_name_version_and_every_argument() -> None:
    key = double.key((1, 2), Options())
    assert key == double.key((1, 2), Options(2))
    assert key != double.key((2, 1), Options())
    assert key != double.key((1, 2), Options(3))
    assert key != dataclasses.replace(double, version=2).key((1, 2), Options())


def test_the_same_question_is_answered_from_the_cache_with_its_record_and_its_warnings() -> None:
    cache, heard = Memory(), Heard()
    first = Compilation(cache=cache)
    made = first(double, (1, 2), Options(1))
    again = Compilation(heard, cache=cache)
    assert again(double, (1, 2), Options(1)) == made
    assert cache.hits == ["double"]
    assert again.records == first.records
    assert again.warnings == heard.warnings == ["nothing to multiply"]
    assert not heard.stages  # nothing was done
    [(name, seconds)] = heard.reused
    assert (name, again.reused) == ("double", {"double": seconds})
    assert not again.timings


def test_what_asks_the_world_outside_is_never_kept() -> None:
    cache = Memory()
    for _ in range(2):
        assert Compilation(cache=cache)(look, (1, 2)) == 3
    assert not cache.hits
    assert not cache.kept


def test_what_has_no_content_is_made_again_and_not_kept() -> None:
    @stage()
    def call(run: Compilation, function: object) -> Done[object]:
        return Done(function)

    given = lambda: 1  # noqa: E731
    cache = Memory()
    for _ in range(2):
        assert Compilation(cache=cache)(call, given) is given
    assert not cache.kept


def test_an_interrupt_leaves_the_run_ready_for_the_next_stage() -> None:
    @stage()
    def stop(run: Compilation) -> Done[None]:
        raise KeyboardInterrupt

    run = Compilation()
    with pytest.raises(KeyboardInterrupt):
        run(stop)
    run(double, (1,), Options())
    assert list(run.timings) == ["double"]


def test_the_manifest_is_what_the_stages_recorded_in_a_fixed_order() -> None:
    run = Compilation()
    run(recording, {"verification": {"samples": 1}, "something_new": {"zeros": 3}, "source": None})
    told = manifest(run, Recipe())
    keys = list(told)
    assert keys.index("source") < keys.index("recipe") < keys.index("verification") < keys.index("something_new")
    assert keys.index("something_new") < keys.index("timings")
    assert told["something_new"] == {"zeros": 3}
    assert told["audit"] is None  # what no stage recorded did not take place


def test_a_stage_that_runs_again_records_anew_and_another_one_fills_in() -> None:
    run = Compilation()
    run(recording, {"split": {"layers": 3, "why": "first"}})
    run(completing, {"split": {"kernels": 7}})
    run(recording, {"split": {"layers": 2}})
    assert run.records == {"split": {"layers": 2, "kernels": 7}}


def test_arrays_are_part_of_the_key() -> None:
    @stage()
    def first(run: Compilation, values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Done[float]:
        return Done(float(values[0]))

    one = np.asarray([1, 2], np.float32)
    assert first.key(one) == first.key(one.copy())
    assert first.key(one) != first.key(one + 1)


def test_undone_passes_are_warned_of_and_end_a_strict_run() -> None:
    reports = [Report("fold-pad", (), 0.1), Report("fold-ifs", (), 0.1, "pass 'fold-ifs' is wrong.")]
    run = Compilation()
    tell_undone(run, reports, strict=False)
    assert run.warnings == ["pass 'fold-ifs' is wrong. The model goes on without that pass."]
    with pytest.raises(EquivalenceError, match="'fold-ifs' is wrong"):
        tell_undone(run, reports, strict=True)
    tell_undone(run, reports[:1], strict=True)


def test_what_a_stage_lends_goes_to_the_next_one_that_asks_for_its_kind() -> None:
    run = Compilation()
    assert run.lent(str) is None
    run.lend("a session")
    assert run.lent(str) == "a session"
    assert run.lent(str) is None
    run.lend("another")
    assert run.lent(int) is None
    assert run.lent(str) is None  # who asks for something else ends it: nothing is held for nobody
