"""The stage of QFeP where nobody asks, and where nothing can be found; the method itself: tests/outliers/qfep."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.compiler.stages.qfep import qfep
from qcompiler.errors import ModelError
from qcompiler.recipe.tables import QfepTable
from tests.kit.cases import prepared
from tests.kit.subjects import before


def test_without_a_wish_the_subject_goes_on_as_it_is(tmp_path: Path) -> None:
    standing = before("qfep", prepared(tmp_path, "transformer"))
    assert standing.run(qfep, standing.subject, standing.asked.qfep) is standing.subject
    assert standing.run.records["qfep"] is None
    assert "qfep" not in standing.run.timings


def test_a_model_without_tokens_is_told_and_goes_on(tmp_path: Path) -> None:
    standing = before("qfep", prepared(tmp_path, "transformer"), qfep=QfepTable(prefix="auto"))
    after = standing.run(qfep, standing.subject, standing.asked.qfep)
    assert after.model is standing.subject.model
    assert standing.run.records["qfep"]["ids"] == []
    assert len(standing.run.warnings) == 1


def test_a_prefix_that_was_given_and_does_not_fit_is_an_error(tmp_path: Path) -> None:
    standing = before("qfep", prepared(tmp_path, "transformer"), qfep=QfepTable(prefix=(1, 2)))
    with pytest.raises(ModelError):
        standing.run(qfep, standing.subject, standing.asked.qfep)
