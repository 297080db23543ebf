"""The noise of single groups, and of blocks where there is no time for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from qcompiler.planning.search.blocks import Block, each_alone
from qcompiler.planning.simulation.noise import Measure
from qcompiler.planning.simulation.simulator import Use
from qcompiler.target import DType

NOISE = {f"g{k}": 10.0 if k == 5 else 1.0 for k in range(16)}
PLAN = {name: Use(DType.INT8, 1.0) for name in NOISE}


class Summing:
    """Noises of groups add up; counts how often it is asked."""

    runs = 0

    def noise(self, plan: Mapping[str, Use], *, few: bool) -> float:
        assert few
        self.runs += 1
        return sum(NOISE[name] for name in plan)


def found(runs: int, macs: Mapping[str, int]) -> tuple[dict[str, float], dict[str, Block], int]:
    measure = Summing()
    noise, blocks = each_alone(cast(Measure, measure), PLAN, macs, runs)
    return noise, blocks, measure.runs


def test_with_a_run_for_each_group_there_are_no_blocks() -> None:
    assert found(16, dict.fromkeys(NOISE, 1)) == (NOISE, {}, 16)


def test_the_loudest_block_is_halved_down_to_the_group_that_is_loud() -> None:
    noise, blocks, runs = found(12, dict.fromkeys(NOISE, 1))
    assert runs <= 12
    assert noise["g5"] == 10.0
    assert "g5" not in blocks
    assert all(block.groups > 1 for block in blocks.values())


def test_groups_share_the_noise_of_their_block_by_their_work_and_know_all_of_it() -> None:
    macs: dict[str, Any] = {**dict.fromkeys(NOISE, 1), "g0": 4}
    noise, blocks, _ = found(3, macs)
    block = blocks["g0"]
    inside = [name for name, one in blocks.items() if one is block]
    assert block.groups == len(inside)
    assert block.noise == pytest.approx(sum(noise[name] for name in inside))
    assert noise["g0"] == pytest.approx(4 * noise["g1"])
