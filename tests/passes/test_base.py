"""Pass and Pipeline: names, reports, and what becomes of errors and of wrong orders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs
import pytest

from qcompiler.errors import ModelError, PassError, PipelineError
from qcompiler.passes.base import Changed, Decided, Fact, Kept, Note, Pass, Pipeline, Released, Report, Skipped
from qcompiler.plan import Decision
from qcompiler.target import DType
from tests.kit.rewrite import model, to_graph


@dataclass(frozen=True)
class RenameReLU6(Pass):
    """Prefix names.

    Not this line.
    """

    prefix: str = "new"
    provides: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        for node in graph.nodes:
            if node.name.startswith(self.prefix):
                yield Skipped(node.name, "has it")
                continue
            node.name = self.prefix + node.name
            yield Changed(node.name, "renamed")


@dataclass(frozen=True)
class NeedsNames(Pass):
    """Need names and lose them."""

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED})

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        yield from ()


@dataclass(frozen=True)
class Fails(Pass):
    """Fail."""

    user: bool = False

    def rewrite(self, graph: gs.Graph) -> Iterator[Note]:
        yield Changed("x", "y")
        if self.user:
            raise ModelError("the model is to blame")
        raise KeyError("oops")


def graph() -> gs.Graph:
    return to_graph(model(("Relu", "x", "a"), ("Neg", "a", "y")))


def test_name_help_and_text_come_from_the_class() -> None:
    assert RenameReLU6.name() == "rename-re-lu6"
    assert RenameReLU6.help() == "Prefix names."
    assert str(RenameReLU6()) == "rename-re-lu6"
    assert "old" in str(RenameReLU6(prefix="old"))


def test_a_run_is_exhausted_and_reported() -> None:
    one = graph()
    report = RenameReLU6()(one)
    assert [node.name for node in one.nodes] == ["newA", "newY"]
    assert (report.changed, report.skipped) == (2, 0)
    report = RenameReLU6()(one)
    assert (report.changed, report.skipped) == (0, 2)
    assert report.seconds >= 0
    assert [note.text for note in report.notes] == ["has it", "has it"]


def test_findings_for_later_stages_are_read_off_the_report() -> None:
    one, other = (Decision(node, "Relu", DType.FP16, "fits", "it fits") for node in "ab")
    notes = (
        Decided("b", "it fits", other),
        Changed("a", "cast"),
        Decided("a", "it fits", one),
        Kept("x", "it counts"),
        Released("t", "first"),
        Released("s", "second"),
        Released("t", "third"),
    )
    report = Report("p", notes, 0.0)
    assert (report.changed, report.skipped) == (1, 1)  # what is kept was refused; the others are neither
    assert report.decisions == (other, one)
    assert report.kept == {"x": "it counts"}
    assert list(report.released.items()) == [("t", "third"), ("s", "second")]


def test_a_defect_in_a_pass_names_it_and_keeps_the_cause() -> None:
    with pytest.raises(PassError, match=r"pass 'fails' failed: KeyError: 'oops'.*report it") as caught:
        Fails()(graph())
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_of_the_user_passes_through() -> None:
    with pytest.raises(ModelError, match="to blame"):
        Fails(user=True)(graph())
    with pytest.raises(ModelError, match="to blame"):
        Pipeline(Fails(user=True))(graph())


def test_a_pipeline_runs_in_order_and_reports_each_pass() -> None:
    seen: list[tuple[str, int]] = []

    def after(one: Pass, report: Report) -> None:
        seen.append((one.name(), report.changed))

    reports = Pipeline(RenameReLU6("p"), RenameReLU6("q"), NeedsNames())(graph(), after)
    assert seen == [("rename-re-lu6", 2), ("rename-re-lu6", 2), ("needs-names", 0)]
    assert [one.changed for one in reports] == [2, 2, 0]


def test_a_pipeline_says_which_passes_ran_before_the_defect() -> None:
    with pytest.raises(PassError, match=r"Passes already run: rename-re-lu6\.") as caught:
        Pipeline(RenameReLU6(), Fails())(graph())
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_order_that_cannot_work_is_refused_when_it_is_built() -> None:
    with pytest.raises(PipelineError, match="requires 'named', which no earlier pass provides"):
        Pipeline(NeedsNames(), RenameReLU6())
    with pytest.raises(PipelineError, match="named"):
        Pipeline(RenameReLU6(), NeedsNames(), NeedsNames())
    Pipeline(RenameReLU6(), NeedsNames(), RenameReLU6(), NeedsNames())
    Pipeline(NeedsNames(), given=frozenset({Fact.NAMED}))


def test_passes_and_pipelines_are_values() -> None:
    assert Pipeline(RenameReLU6("a")) == Pipeline(RenameReLU6("a"))
    assert Pipeline(RenameReLU6("a")) != Pipeline(RenameReLU6("b"))
    assert str(Pipeline(RenameReLU6(), NeedsNames())) == "rename-re-lu6,needs-names"
