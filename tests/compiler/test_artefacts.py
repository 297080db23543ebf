"""Where artefacts go, complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.compiler.artefacts import Paths, workshop
from qcompiler.errors import UsageError


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
