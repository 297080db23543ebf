"""Text as data on the command line: which options need each other, and which tokenizer is taken."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from qcompiler.cli import main
from tests.kit import decoder, reading


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reading.two_parts(tmp_path_factory.mktemp("text"))


def run(line: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main.main(line)
    return code, capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ("--text a.txt --data random", 2, "argument --data: not allowed with argument --text"),
        ("--tokenizer dir", 2, "--tokenizer is for text: name the text files with --text"),
        ("--length 16", 2, "--length is for text"),
        ("--text a.txt", 2, "--text needs a tokenizer: give --tokenizer DIR"),
        ("--text a.txt --tokenizer . --length 1", 2, "'length' = 1: allowed is an integer of at least 2"),
        ("--text a.txt --tokenizer . --stride 3", 2, "unknown option or argument '--stride'"),
        ("--data random --metric perplexity", 2, "metric 'perplexity' needs text"),
        ("--text none.txt --tokenizer TOKENIZER", 4, "there is no text file 'none.txt'"),
        ("--text TEXT --tokenizer none", 4, "there is no tokenizer 'none'"),
        ("--text TEXT --tokenizer TOKENIZER --verify-data random --verify-text x.txt", 2, "exclude each other"),
    ],
)
def test_wrong_options_are_answered(
    room: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: str, code: int, says: str
) -> None:
    onnx.save(decoder.decoder(), tmp_path / "m.onnx")
    given = options.replace("TEXT", str(room / "a.txt")).replace("TOKENIZER", str(room))
    line = ["quantize", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.qdq.onnx"), "--quiet", *given.split()]
    found, err = run(line, capfd)
    assert (found, says in err, err.count("\n")) == (code, True, 1), err


def test_the_tokenizer_beside_the_model_is_found(room: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(decoder.decoder(), tmp_path / "m.onnx")
    reading.tokenizer(tmp_path)
    line = ["inspect", str(tmp_path / "m.onnx"), "--text", str(room / "a.txt"), "--length", "16", "--samples", "3"]
    code, err = run([*line, "--quiet"], capfd)
    assert (code, err) == (0, "")
