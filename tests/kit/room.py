"""A folder with a model and data, the command line in it, and what must hold when the command line refuses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper

from qcompiler.cli.main import main
from qcompiler.report import manifest
from tests.kit.cases import state
from tests.kit.rewrite import model

if TYPE_CHECKING:
    from numpy.typing import NDArray


LONGEST = 800  # characters that a tired person still reads
WEIGHT = (np.random.default_rng(0).standard_normal((32, 32)) / 6).astype(np.float32)


def layers() -> onnx.ModelProto:
    """Two layers of 32 channels over 16 rows."""
    return model(
        ("MatMul", "x w1", "h"),
        ("Relu", "h", "r"),
        ("MatMul", "r w2", "y"),
        inputs={"x": ("n", 16, 32)},
        weights={"w1": WEIGHT, "w2": WEIGHT.T.copy()},
    )


def rows(count: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((count, 16, 32)).astype(np.float32)


@dataclass
class Room:
    """A folder with a model and data, and what the command line says there."""

    folder: Path
    capfd: pytest.CaptureFixture[str]

    @property
    def model(self) -> Path:
        return self.folder / "m.onnx"

    @property
    def data(self) -> Path:
        return self.folder / "data.npz"

    @property
    def output(self) -> Path:
        return self.folder / "out" / "deep" / "m.qdq.onnx"

    def everything(self) -> dict[str, Any]:
        """Each file with its hash and time, each folder; what Python itself caches does not count."""
        found = (path for path in sorted(self.folder.rglob("*")) if "__pycache__" not in path.parts)
        return {str(path): state(path) if path.is_file() else path.lstat().st_mode for path in found}

    def line(self, command: str, *options: object, data: object = None, output: object = None) -> list[str]:
        given = ["--data", str(data or self.data)] if data != "" else []
        return [command, str(self.model), *given, "-o", str(output or self.output), "--quiet", *map(str, options)]

    def refused(self, code: int, *says: str, command: str = "quantize", options: Any = (), **given: Any) -> str:
        """The message of a run that must fail with this exit code, say this, and leave everything as it was."""
        before = self.everything()
        line = self.line(command, *options, **given)
        assert main(line) == code, self.capfd.readouterr().err
        out, err = self.capfd.readouterr()
        assert out == ""
        assert self.everything() == before
        return paragraph(err, *says)

    def passes(self, proto: onnx.ModelProto, *options: object, command: str = "quantize", **given: Any) -> Any:
        """The manifest of a run that must succeed without touching the model."""
        onnx.save(proto, self.model)
        before = state(self.model)
        done = main(self.line(command, *options, **given))
        assert done == 0, self.capfd.readouterr().err
        assert state(self.model) == before
        return manifest.read(Path(given.get("output", self.output)).parent / "m.manifest.json")


def paragraph(err: str, *says: str) -> str:
    """The message, if it is one readable paragraph that says all this."""
    assert err.startswith("error: "), err
    assert err.endswith("\n")
    message = err.removesuffix("\n")
    assert "\n" not in message
    assert "Traceback" not in message
    assert "defect" not in message
    assert 40 < len(message) < LONGEST
    for one in says:
        assert one in message, message
    return message


def unknown_operator(room: Room) -> None:
    proto = layers()
    proto.graph.node[1].domain = "com.acme"
    proto.graph.node[1].op_type = "AcmeClip"
    proto.opset_import.append(helper.make_opsetid("com.acme", 1))
    onnx.save(proto, room.model)


def furnished(folder: Path, capfd: pytest.CaptureFixture[str]) -> Room:
    """A room in which nothing is wrong yet."""
    made = Room(folder, capfd)
    onnx.save(layers(), made.model)
    np.savez(made.data, x=rows())
    return made
