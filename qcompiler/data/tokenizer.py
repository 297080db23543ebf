"""Tokenizers: text to token ids, with the special tokens that the tokenizer's own post-processor puts around a text.

`tokenizer.json` is read by the package tokenizers. Folders with other files (`tokenizer.model`, `vocab.txt`) and GGUF
files are left to transformers, if it is installed; code that comes with a model is never run.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qcompiler.errors import DataError, UsageError

_INSTALL: Final = "pip install 'onnx-qcompiler[text]'"
_PROBE: Final = "a"
_OTHERS: Final = ("tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "tokenizer_config.json")


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer that is ready.

    Attributes:
        name: file or folder name, without the folders above it.
        digest: SHA-256 of the file that it was read from, in hex.
        before: ids that the post-processor puts in front of every text, such as a begin-of-text token.
        after: ids that it puts behind.
    """

    name: str
    digest: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    _inner: Any

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens around it."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads a `tokenizer.json`, the folder that has one, or (with transformers) another tokenizer or a GGUF file.

    Raises:
        DataError: there is none, or it cannot be read.
        UsageError: the package that reads it is not installed.
    """
    file = _file(Path(path))
    return _loaded(file.resolve(), file.stat().st_mtime_ns, Path(path).resolve().name)


@functools.lru_cache(maxsize=4)
def _loaded(file: Path, _: int, name: str) -> Tokenizer:
    """Large ones take a second, and calibration and evaluation both want them."""
    inner = _of_json(file) if file.suffix == ".json" and file.name != "vocab.json" else _of_transformers(file)
    inner.no_truncation()  # many files come with the limits of the training
    inner.no_padding()
    probe = inner.encode(_PROBE, add_special_tokens=True)
    special = [bool(one) for one in probe.special_tokens_mask]
    text = [index for index, one in enumerate(special) if not one]
    first, last = (text[0], text[-1] + 1) if text else (0, len(special))
    return Tokenizer(
        name=name,
        digest=hashlib.sha256(file.read_bytes()).hexdigest() if file.suffix != ".gguf" else "",
        before=tuple(probe.ids[:first]),
        after=tuple(probe.ids[last:]),
        _inner=inner,
    )


def _file(path: Path) -> Path:
    """The file that a path means."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(
            f"there is no tokenizer '{path}'; give a tokenizer.json, or the folder of the model that has one."
        )
    known = [path / "tokenizer.json", *(path / name for name in _OTHERS), *sorted(path.glob("*.gguf"))]
    found = next((one for one in known if one.is_file()), None)
    if found is None:
        raise DataError(
            f"folder '{path}' has no tokenizer: neither tokenizer.json nor {', '.join(_OTHERS[:2])} or a GGUF file. "
            "Give the folder that the model came in."
        )
    return found


def _of_json(file: Path) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UsageError(
            f"reading '{file}' needs the package tokenizers, which is not installed: {_INSTALL}"
        ) from error
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # its only class of error is Exception itself
        raise DataError(
            f"'{file}' cannot be read as a tokenizer: {error}. It must be a tokenizer.json as the package tokenizers "
            "writes it; a tokenizer_config.json is none."
        ) from error


def _of_transformers(file: Path) -> Any:
    """Converted by transformers; only files on this disk are looked at."""
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            f"'{file}' is no tokenizer.json, and converting it needs the package transformers, which is not installed: "
            "pip install transformers, or give a tokenizer.json."
        ) from error
    options = {"gguf_file": file.name} if file.suffix == ".gguf" else {}
    try:
        made = transformers.AutoTokenizer.from_pretrained(
            str(file.parent), local_files_only=True, trust_remote_code=False, **options
        )
        return made.backend_tokenizer
    except Exception as error:  # whatever its converters raise
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"transformers cannot make a tokenizer of '{file}': {type(error).__name__}: {reason}. Give the "
            "tokenizer.json of this model."
        ) from error
