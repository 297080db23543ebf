"""What an export needs is asked of the machine before the work: disk, and memory to run the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from qcompiler.errors import UsageError
from qcompiler.frontends import needs
from qcompiler.frontends.export import export
from qcompiler.frontends.sources import LoadedModule
from qcompiler.frontends.weights.reserve import Reserve, held
from qcompiler.support.memory import limited


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def loaded(*dtypes: torch.dtype, size: int = 1000) -> LoadedModule:
    reserve, module = Reserve(100), torch.nn.ParameterList()
    for dtype in dtypes:
        module.append(torch.nn.Parameter(reserve.weight(held(torch.ones(size, size, dtype=dtype)))))
    reserve.settled(module)
    return LoadedModule(module, "it", reserve=reserve)


@pytest.mark.parametrize(
    ("dtypes", "need"), [((torch.float16,), 4_000_000), ((torch.float32, torch.bfloat16), 12_000_000)], ids=str
)
def test_disk_is_asked_for_before_the_work(
    dtypes: tuple[torch.dtype, ...], need: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(*dtypes)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, need))
    needs.check_disk(model, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, need - 1))
    with pytest.raises(UsageError, match=rf"has {needs.in_words(need - 1)} of room, and the weights of it take"):
        needs.check_disk(model, tmp_path)


def test_one_large_file_of_weights_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "EMBEDDED", 1_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, 2_000_000))
    needs.check_disk(loaded(torch.float16), tmp_path)


def test_nothing_is_left_where_the_disk_is_full(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.frontends.weights.reserve.LARGE", 1025)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, 1))
    with pytest.raises(UsageError, match="on a disk that has room"):
        export(folder, tmp_path / "out" / "m.onnx")
    assert not (tmp_path / "out").exists()


def test_memory_is_that_of_the_machine_or_of_the_compilation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(torch.float16)  # 4 MB in float32, three times
    words = "takes about 12 MB of memory, more than a quarter of the 48 MB that are free"
    for free, lacks in ((48_000_000, ""), (47_999_999, words), (None, "")):
        monkeypatch.setattr(needs, "available_memory", lambda free=free: free)
        assert needs.lacking(model).endswith(lacks)
        assert bool(needs.lacking(model)) == bool(lacks)
    with limited(5_000_000, tmp_path):
        assert "and 5 MB may be" in needs.lacking(model)
    with limited(12_000_000, tmp_path):
        assert needs.lacking(model) == ""


def test_a_module_that_is_in_memory_already_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "available_memory", lambda: 1)
    assert needs.lacking(LoadedModule(torch.nn.Linear(1000, 1000), "it")) == ""
