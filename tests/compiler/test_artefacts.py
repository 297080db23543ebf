"""Where artefacts go, complete or not at all."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from qcompiler.compiler.artefacts import Paths, finish, workshop
from qcompiler.errors import UsageError
from qcompiler.recipe.recipe import Recipe
from tests.kit import manifests


@pytest.mark.parametrize(
    ("output", "build", "names"),
    [
        ("d/m.engine", True, ("d/m.engine", "d/m.qdq.onnx", "d/m.manifest.json", "d/m.report.html")),
        ("d/m.qdq.onnx", False, (None, "d/m.qdq.onnx", "d/m.manifest.json", "d/m.report.html")),
        ("m.onnx", False, (None, "m.onnx", "m.manifest.json", "m.report.html")),
    ],
)
def test_one_folder_one_stem(output: str, build: bool, names: tuple[str | None, ...]) -> None:
    paths = Paths.of(Path(output), build=build)
    found = (paths.engine, paths.qdq, paths.manifest, paths.report)
    assert tuple(one and one.as_posix() for one in found) == names
    assert paths.output == Path(output)


def test_the_workshop_is_gone_whatever_fails_and_errors_name_the_artefact(tmp_path: Path) -> None:
    paths = Paths.of(tmp_path / "new" / "m.qdq.onnx", build=False)

    def fail() -> None:
        with workshop(paths) as shop:
            (shop / "m.qdq.onnx").write_bytes(b"half")
            raise UsageError(f"{shop / 'm.qdq.onnx'} is broken")

    with pytest.raises(UsageError) as caught:
        fail()
    assert str(caught.value) == f"{tmp_path / 'new' / 'm.qdq.onnx'} is broken"
    assert list(tmp_path.iterdir()) == []  # the folder that was made for it, too


def test_an_interruption_does_not_come_between_the_names_and_the_manifest_gets_its_own_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths.of(tmp_path / "m.engine", build=True)
    paths.failed_manifest.touch()
    flushed: list[str] = []
    named: list[str] = []
    replace = os.replace

    def naming(made: Path, final: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        named.append(final.name)
        replace(made, final)

    monkeypatch.setattr("qcompiler.compiler.artefacts.flush", lambda made: flushed.append(made.name))
    monkeypatch.setattr(os, "replace", naming)

    def make() -> None:
        with workshop(paths) as shop:
            for name in ("m.qdq.onnx", "m.engine"):
                (shop / name).write_bytes(b"made")
            finish(shop, paths, manifests.build(source=None, recipe=Recipe()))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="^by then everything was written$"):
            make()
    finally:
        signal.signal(signal.SIGINT, before)
    assert named == ["m.engine", "m.qdq.onnx", "m.report.html", "m.manifest.json"]
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(named)
    assert flushed == named
