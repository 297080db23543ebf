"""A real Ray cluster of two nodes on this machine, one of which is killed in the middle."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.compiler.compile import quantize
from qcompiler.compiler.workers.cluster import Cluster
from qcompiler.errors import DataError, UsageError
from qcompiler.recipe.recipe import Recipe
from tests.kit.cases import prepared

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")


def waiting(weights: np.ndarray[tuple[int], np.dtype[np.float32]], folder: Path) -> Callable[[int], float]:
    """Says where it begins, waits a while, and adds."""

    def add(item: int) -> float:
        if item < 0:
            raise DataError(f"item {item} is below zero")
        node = ray.get_runtime_context().get_node_id()
        (folder / f"{item}-{node}-{time.time_ns()}").touch()
        time.sleep(0.5)
        return float(weights.sum()) + item

    return add


WEIGHTS = np.ones(100_000, np.float32)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head that does no work, and a node that does; a second one comes and goes in a test."""
    nodes: Any = pytest.importorskip("ray.cluster_utils").Cluster
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    found = nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    found.add_node(num_cpus=1)
    ray.init(address=found.address, logging_level="ERROR", log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


def test_a_node_that_is_killed_costs_its_items_only(nodes: Any, tmp_path: Path) -> None:
    lost = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    cluster = Cluster(nodes.address)
    assert cluster.processors == 2
    results = cluster.each(waiting, (WEIGHTS, tmp_path), range(8))
    found = [next(results)]
    deadline = time.monotonic() + 60
    while not any(lost.node_id in path.name for path in tmp_path.iterdir()):  # it has begun something
        assert time.monotonic() < deadline
        time.sleep(0.05)
    nodes.remove_node(lost, allow_graceful=False)
    found += results
    assert found == [100_000.0 + item for item in range(8)]
    used = {path.name.split("-")[1] for path in tmp_path.iterdir()}
    assert len(used) == 2


def test_an_error_arrives_as_it_was_raised(nodes: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="item -1 is below zero"):
        list(Cluster(nodes.address).each(waiting, (WEIGHTS, tmp_path), [-1]))


def test_a_compilation_there_ends_in_the_same_bytes(nodes: Any, tmp_path: Path) -> None:
    case = prepared(tmp_path, "transformer")
    for name, address in (("here", None), ("there", nodes.address)):
        quantize(
            case.source,
            data=str(case.data),
            recipe=Recipe(ray=address),
            output=case.out / f"{name}.qdq.onnx",
            cache=False,
        )
    assert (case.out / "there.qdq.onnx").read_bytes() == (case.out / "here.qdq.onnx").read_bytes()


def test_a_cluster_that_is_not_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: object) -> None:
        raise ConnectionError("nobody answers at 10.0.0.1:6379\nand more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(UsageError, match=r"no Ray cluster at '10.0.0.1:6379': nobody answers .* 'ray start --head'"):
        Cluster("10.0.0.1:6379")
