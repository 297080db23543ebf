from __future__ import annotations

import onnx

from qcompiler.passes.opsets._table import NEWEST, OLDEST, TABLE
from qcompiler.runtime.schemas import changes, versions
from qcompiler.target import ENGINES, parse_target

OPERATORS = {one.name for one in onnx.defs.get_all_schemas_with_history() if one.domain == ""}


def test_every_change_of_a_signature_has_its_row() -> None:
    lacking = [
        (op, at) for op in sorted(OPERATORS) for at in changes(op) if OLDEST < at <= NEWEST and (op, at) not in TABLE
    ]
    assert lacking == []


def test_every_row_stands_for_a_version_of_its_operator() -> None:
    assert [(op, at) for op, at in TABLE if at not in versions(op)] == []


def test_no_target_asks_for_more() -> None:
    assert max(parse_target(engine).opset for engine in ENGINES) == NEWEST
