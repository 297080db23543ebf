"""Pass, Pipeline, Note, Fact: the whole contract of a graph rewrite.

A pass is a frozen dataclass. Its fields are its options, its name is its class name in kebab-case, the first line of
its docstring is its help. It edits the graph it is given in `rewrite` and yields a `Note` for everything it changed,
everything it looked at and left alone, and everything it found out that a later stage needs. A pass keeps nothing of a
run, and measures nothing: what was measured comes in as an option. `Pass.__call__` belongs to the framework: it times,
exhausts the generator and puts the name of the pass on whatever goes wrong.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import ClassVar

import onnx_graphsurgeon as gs

from qcompiler.errors import PassError, PipelineError, QCompilerError
from qcompiler.ir import edit
from qcompiler.plan import Decision


class Fact(StrEnum):
    """A promise about a graph that a later pass may rely on; `tests.kit.facts.verify` checks each one."""

    NAMED = "named"  # every node and tensor has a unique, non-empty name
    CONSTANTS = "constants"  # weights are gs.Constant, no Constant nodes, no input that is an initializer
    FOLDED = "folded"  # no foldable constant subgraph, Identity, Dropout or BatchNormalization after a linear node
    UNSHARED = "unshared"  # the weight of each linear node has that node as its only consumer
    QDQ = "qdq"  # Q/DQ pairs are placed and weights are stored quantized
    TYPED = "typed"  # the graph is legal strongly typed input
    LEGAL = "legal"  # the target's parser and compiler take it and mean the same


@dataclass(frozen=True, slots=True)
class Note:
    """What a pass says about one node (`node` is its name, or a tensor's name where no node is concerned)."""

    node: str
    text: str


@dataclass(frozen=True, slots=True)
class Changed(Note):
    """The pass edited the graph here; `text` says what now stands there."""


@dataclass(frozen=True, slots=True)
class Skipped(Note):
    """The pass could have edited the graph here and did not; `text` says why."""


@dataclass(frozen=True, slots=True)
class Kept(Skipped):
    """An input or output of the model (`node` is its name) was to change its type and keeps it; `text` says why."""


@dataclass(frozen=True, slots=True)
class Widened(Skipped):
    """An input or output of the model (`node` is its name) does not get its source's type again; `text` says why."""


@dataclass(frozen=True, slots=True)
class Released(Note):
    """A float tensor (`node` is its name) lost the quantizer that it came with; `text` says why."""


@dataclass(frozen=True, slots=True)
class Decided(Note):
    """What the pass decided for a node, edited or not; `text` is the reason, `decision` goes to the plan."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class Report:
    """One run of one pass.

    Attributes:
        name: its text form.
        notes: in graph order; none where it was undone.
        seconds: wall time.
        undone: why its edits were taken back, or why it did not run; empty where they stand.
    """

    name: str
    notes: tuple[Note, ...]
    seconds: float
    undone: str = ""

    @property
    def changed(self) -> int:
        """How many edits were made."""
        return sum(isinstance(note, Changed) for note in self.notes)

    @property
    def skipped(self) -> int:
        """How many opportunities were refused."""
        return sum(isinstance(note, Skipped) for note in self.notes)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What was decided for nodes, in the order of the notes."""
        return tuple(note.decision for note in self.notes if isinstance(note, Decided))

    @property
    def kept(self) -> dict[str, str]:
        """Why inputs and outputs that were to change their type keep it, by name."""
        return {note.node: note.text for note in self.notes if isinstance(note, Kept)}

    @property
    def widened(self) -> dict[str, list[str]]:
        """Inputs and outputs that have another type than in the source, by which types these are, and why."""
        found: dict[str, list[str]] = {}
        for note in self.notes:
            if isinstance(note, Widened):
                found.setdefault(note.text, []).append(note.node)
        return found

    @property
    def released(self) -> dict[str, str]:
        """Why tensors lost the quantizers that they came with, by the name of the float tensor."""
        return {note.node: note.text for note in self.notes if isinstance(note, Released)}


@dataclass(frozen=True)
class Pass(ABC):
    """One graph rewrite. Subclasses are frozen dataclasses with one method, `rewrite`.

    `exact_to` is the largest relative error (of any output, against its own absolute maximum) that the equivalence
    check lets a float pass introduce; None for passes that change numbers on purpose.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset()
    provides: ClassVar[frozenset[Fact]] = frozenset()
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    exact_to: ClassVar[float | None] = 1e-5

    @classmethod
    def name(cls) -> str:
        """The class name in kebab-case: `FoldBatchNorm` is `fold-batch-norm`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()

    @classmethod
    def help(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    @abstractmethod
    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        """Edits `graph` in place, yielding a note per edit, per refusal and per finding that a later stage needs."""

    def __call__(self, graph: gs.Graph) -> Report:
        """Runs the pass to its end.

        Raises:
            PassError: `rewrite` raised something that is not a `QCompilerError`.
        """
        started = time.perf_counter()
        try:
            notes = tuple(self.rewrite(graph))
            edit.put_down(graph)
        except QCompilerError:
            raise
        except Exception as error:
            raise PassError(
                f"pass '{self}' failed: {type(error).__name__}: {error}. This is a defect of qcompiler; "
                "please report it with the model. Running again with --debug shows where it happened."
            ) from error
        return Report(str(self), notes, time.perf_counter() - started)

    def __str__(self) -> str:
        """`name` or `name{option=value,...}` with the options that differ from their defaults."""
        options = [
            f"{f.name}={spell(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if f.repr and getattr(self, f.name) != _default(f)
        ]
        return self.name() + (f"{{{','.join(options)}}}" if options else "")


def _default(option: dataclasses.Field[object]) -> object:
    if option.default_factory is not dataclasses.MISSING:
        return option.default_factory()
    return option.default


def spell(value: object) -> str:
    """The text that `qcompiler.passes.text_form` reads back equal."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"({','.join(spell(one) for one in value)})"
    if isinstance(value, Enum):
        return str(value.value)
    plain = not isinstance(value, str) or re.fullmatch(r"[A-Za-z_/][\w./:-]*", value, re.ASCII)
    if plain and str(value).lower() not in ("none", "true", "false", "nan", "inf", "infinity"):
        return str(value)
    return json.dumps(value) if isinstance(value, str) else str(value)


@dataclass(frozen=True)
class Pipeline:
    """Passes in a fixed order, checked when it is built.

    Raises:
        PipelineError: a pass requires a fact that no pass before it provides, or that one has broken since.
    """

    passes: tuple[Pass, ...]
    given: frozenset[Fact] = field(default=frozenset())

    def __init__(self, *passes: Pass, given: frozenset[Fact] = frozenset()) -> None:
        object.__setattr__(self, "passes", passes)
        object.__setattr__(self, "given", given)
        have = set(given)
        for one in passes:
            missing = one.requires - have
            if missing:
                there = ", ".join(sorted(have)) or "nothing"
                raise PipelineError(
                    f"pass '{one}' requires '{', '.join(sorted(missing))}', which no earlier pass provides "
                    f"(there is: {there}); put a pass that provides it before '{one.name()}'"
                )
            have = (have - one.breaks) | one.provides

    def __str__(self) -> str:
        """The passes separated by commas; `qcompiler.passes.text_form.parse` reads it back to an equal pipeline."""
        return ",".join(str(one) for one in self.passes)

    def __call__(self, graph: gs.Graph, after: Callable[[Pass, Report], None] | None = None) -> tuple[Report, ...]:
        """Runs all passes on `graph`; `after` is called behind each one (the equivalence check, progress)."""
        reports: list[Report] = []
        for one in self.passes:
            report = run_behind(reports, one, graph)
            reports.append(report)
            if after is not None:
                after(one, report)
        return tuple(reports)


def run_behind(done: Sequence[Report], one: Pass, graph: gs.Graph) -> Report:
    """Runs a pass of a pipeline on `graph`; where it fails, the error names those of the pipeline that ran before.

    Raises:
        PassError: as of `Pass.__call__`.
    """
    try:
        return one(graph)
    except PassError as error:
        before = ", ".join(report.name for report in done) or "none"
        raise PassError(f"{error} Passes already run: {before}.") from error.__cause__
