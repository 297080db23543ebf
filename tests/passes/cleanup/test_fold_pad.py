from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.passes.cleanup.fold_pad import FoldPad
from tests.kit.rewrite import check, check_skipped, check_untouched, model

IMAGE = {"x": (2, 4, 5, 5)}
W = np.random.default_rng(3).standard_normal((6, 4, 3, 3)).astype(np.float32)
SPATIAL = np.array([0, 0, 1, 2, 0, 0, 3, 0])


def _padded(pads: Any = SPATIAL, conv: Any = None, pad: Any = None, reads: str = "x p", **more: Any) -> Any:
    return model(
        ("Pad", reads, "a", pad or {}),
        ("Conv", "a w", "y", conv or {}),
        inputs=IMAGE,
        opset=18,
        weights={"w": W, "p": np.asarray(pads), **more},
    )


def test_the_widths_are_added_to_those_of_the_conv() -> None:
    graph, _ = check(FoldPad(), _padded(conv={"pads": [1, 1, 1, 1]}), ops=["Conv"])
    assert graph.nodes[0].attrs["pads"] == [2, 3, 4, 1]


def test_a_conv_without_padding_gets_it() -> None:
    graph, _ = check(FoldPad(), _padded(), ops=["Conv"])
    assert graph.nodes[0].attrs["pads"] == [1, 2, 3, 0]


def test_valid_means_no_padding_so_far() -> None:
    check(FoldPad(), _padded(conv={"auto_pad": "VALID"}), ops=["Conv"])


def test_axes_can_be_listed() -> None:
    graph, _ = check(FoldPad(), _padded([1, 2], reads="x p _ axes", axes=np.array([-1])), ops=["Conv"])
    assert graph.nodes[0].attrs["pads"] == [0, 1, 0, 2]


def test_widths_of_old_opsets_are_an_attribute() -> None:
    proto = model(
        ("Pad", "x", "a", {"pads": SPATIAL.tolist()}), ("Conv", "a w", "y"), inputs=IMAGE, opset=10, weights={"w": W}
    )
    check(FoldPad(), proto, ops=["Conv"])


def test_two_convs_behind_one_pad_both_get_it() -> None:
    proto = model(
        ("Pad", "x p", "a"),
        ("Conv", "a w", "y"),
        ("Conv", "a w", "z"),
        inputs=IMAGE,
        outputs=["y", "z"],
        weights={"w": W, "p": SPATIAL},
    )
    check(FoldPad(), proto, ops=["Conv", "Conv"])


def test_two_pads_in_a_row_go_in_one_run() -> None:
    proto = model(
        ("Pad", "x p", "a"), ("Pad", "a p", "b"), ("Conv", "b w", "y"), inputs=IMAGE, weights={"w": W, "p": SPATIAL}
    )
    check(FoldPad(), proto, ops=["Conv"])


def test_a_pad_that_others_read_stays_for_them() -> None:
    proto = model(
        ("Pad", "x p", "a"),
        ("Conv", "a w", "y"),
        ("Relu", "a", "z"),
        inputs=IMAGE,
        outputs=["y", "z"],
        weights={"w": W, "p": SPATIAL},
    )
    check(FoldPad(), proto, ops=["Pad", "Conv", "Relu"])


@pytest.mark.parametrize(
    ("proto", "why"),
    [
        pytest.param(_padded(reads="x p v", v=np.float32(1)), "does not pad with zeros", id="ones"),
        pytest.param(_padded(pad={"mode": "reflect"}), "pads with reflect values", id="reflection"),
        pytest.param(_padded([0, 0, 0, -1, 0, 0, 0, 0]), "crops", id="negative widths"),
        pytest.param(_padded([1, 0, 0, 0, 0, 0, 0, 0]), "pads batch or channels", id="batch"),
        pytest.param(_padded(conv={"auto_pad": "SAME_UPPER"}), "auto_pad=SAME_UPPER", id="automatic padding"),
    ],
)
def test_left_alone(proto: Any, why: str) -> None:
    check_skipped(FoldPad(), proto, why)


def test_widths_known_only_when_it_runs_are_left_alone() -> None:
    proto = model(("Pad", "x p", "a"), ("Conv", "a w", "y"), inputs={**IMAGE, "p": (np.int64, (8,))}, weights={"w": W})
    check_skipped(FoldPad(), proto, "not constant")


def test_a_pad_before_pooling_is_left_alone() -> None:
    proto = model(
        ("Pad", "x p", "a"), ("MaxPool", "a", "y", {"kernel_shape": [2, 2]}), inputs=IMAGE, weights={"p": SPATIAL}
    )
    check_untouched(FoldPad(), proto)
