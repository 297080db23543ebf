"""Discrete results: element by element, or as sets where rows were picked."""

from __future__ import annotations

import numpy as np

from qcompiler.judge.agreement import NEAR, agreement

RNG = np.random.default_rng(0)


def test_classes_agree_where_they_are_equal() -> None:
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4]), selected=False) == (3, 4)
    assert agreement(np.array([True, False]), np.array([True]), selected=False) == (0, 2)
    assert agreement(np.array(["a", "b"], object), np.array(["a", "c"], object), selected=False) == (1, 2)


def test_picked_positions_agree_as_sets() -> None:
    assert agreement(np.array([5, 7, 9]), np.array([9, 5, 8, 1]), selected=True) == (2, 4)
    assert agreement(np.array([5, 5]), np.array([5]), selected=True) == (1, 2)


def test_rows_that_changed_places_agree() -> None:
    boxes = RNG.uniform(0, 100, (20, 4)).astype(np.float32)
    moved = boxes[RNG.permutation(20)] + np.float32(NEAR * 10)
    assert agreement(boxes, moved, selected=True) == (20, 20)
    assert agreement(boxes, moved[:15], selected=True) == (15, 20)


def test_a_row_is_found_once() -> None:
    boxes = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [100, 100, 100, 100]], np.float32)
    same = np.repeat(boxes[:1], 3, axis=0)
    assert agreement(boxes, same, selected=True) == (2, 3)  # the second lies within 5 % of what columns span


def test_scores_are_rows_of_one() -> None:
    scores = np.linspace(0, 1, 21, dtype=np.float32)
    assert agreement(scores, scores[::-1], selected=True) == (21, 21)
    assert agreement(scores, np.zeros(0, np.float32), selected=True) == (0, 21)
    assert agreement(np.zeros(0, np.float32), np.zeros(0, np.float32), selected=True) == (0, 0)


def test_amounts_agree_where_they_are_near_and_classes_where_they_are_equal() -> None:
    picture, other = np.array([0, 100, 255], np.uint8), np.array([3, 112, 230], np.uint8)
    assert agreement(picture, other, selected=False, amounts=True) == (2, 3)
    assert agreement(picture, other, selected=False) == (0, 3)
    few = np.array([0, 1, 2], np.uint8)  # of so few levels each one counts
    assert agreement(few, few + 1, selected=False, amounts=True) == (0, 3)
    assert agreement(few[:0], few[:0], selected=False, amounts=True) == (0, 0)
