"""What the builder says, in words."""

from __future__ import annotations

import pytest

from qcompiler.engines.rtx_words import KEEP, plain, remedy, why

NO_KERNEL = (
    "[tacticSupply.cpp::getSupportedFormats::48] Error Code 2: Internal Error (Assertion !layerImpls.empty() failed. "
    "nms_0 has no runners that implement it In getSupportedFormats at /_src/optimizer/builder/tacticSupply.cpp:48)"
)
TOO_MANY = (
    "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (ITopKLayer topk: topk: K exceeds the maximum "
    "value allowed (3840). In processCheck at /_src/a/a.cpp:1066 In analyzeShapes at /_src/a/b.cpp:2825)"
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (NO_KERNEL, "it has no kernel for this operator"),
        (TOO_MANY, "K exceeds the maximum value allowed (3840)"),
        ("something\n else.", "something else"),
    ],
)
def test_source_files_and_error_codes_are_left_out(words: str, expected: str) -> None:
    assert plain(words) == expected


def test_the_nodes_that_are_meant_stand_in_front() -> None:
    assert why(TOO_MANY, [("topk", "TopK")]).startswith("at node 'topk' (TopK): K exceeds")


def test_every_remedy_is_a_sentence() -> None:
    assert remedy(TOO_MANY).startswith("Ask it for fewer values, or end the model in front of it")
    assert remedy("who knows") == f"{KEEP[0].upper()}{KEEP[1:]}."
