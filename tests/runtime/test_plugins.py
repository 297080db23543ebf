"""Libraries of custom operators."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.errors import UsageError
from qcompiler.runtime import plugins


class Options:
    """Keeps what is registered."""

    def __init__(self) -> None:
        self.libraries: list[str] = []

    def register_custom_ops_library(self, path: str) -> None:
        self.libraries.append(path)


def registered() -> list[str]:
    options = Options()
    plugins.load_into(options)
    return options.libraries


def test_no_library_is_the_default() -> None:
    plugins.use(())
    assert registered() == []


def test_every_session_gets_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "mine.so"
    library.write_bytes(b"")
    monkeypatch.setattr("onnxruntime.SessionOptions", Options)
    plugins.use([str(library)])
    assert registered() == [str(library)]
    plugins.use(())
    assert registered() == []


def test_a_library_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no plugin"):
        plugins.use([str(tmp_path / "none.so")])
    assert registered() == []


def test_a_library_that_onnxruntime_does_not_take_is_refused(tmp_path: Path) -> None:
    library = tmp_path / "mine.so"
    library.write_bytes(b"no library")
    with pytest.raises(UsageError, match="does not take plugin .*RegisterCustomOps"):
        plugins.use([str(library)])
    assert registered() == []
