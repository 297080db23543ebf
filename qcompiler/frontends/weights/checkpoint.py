"""A Hugging Face folder as it lies on the disk: which tensors its safetensors files hold, and what it says of them.

Read before any class of transformers sees the folder, because a class takes whatever it finds for plain numbers and
drops what it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qcompiler.errors import ModelError
from qcompiler.frontends.weights.reserve import Origin

FLOAT = frozenset({"F64", "F32", "F16", "BF16"})
INTEGER = frozenset({"BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"})
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_BESIDE = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq"}
"""Files beside config.json that describe a quantization, and whose they are unless they say so."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it is stored.

    Attributes:
        file: where it lies.
        dtype: as safetensors names it: "BF16", "F8_E4M3", "I8".
        shape: sizes.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Declared:
    """A quantization that the folder says it has.

    Attributes:
        file: which file says so.
        method: whose quantization it is, such as "compressed-tensors", "modelopt" or "gptq".
        detail: what else the file says of it.
    """

    file: str
    method: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds.

    Attributes:
        folder: it.
        files: those that transformers reads weights from.
        tensors: by name.
        declared: quantizations that config.json or a file beside it describe.
    """

    folder: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor]
    declared: tuple[Declared, ...]

    def read(self, name: str) -> Any:
        """A tensor in torch as it is stored: pages of its file, which are let go of with it."""
        from safetensors import safe_open

        with safe_open(self.tensors[name].file, framework="pt") as opened:
            return opened.get_tensor(name)

    def origin(self, name: str) -> Origin:
        """Where the values of a tensor are."""
        kind = self.read(name).dtype
        return Origin(self.tensors[name].shape, kind, partial(self.read, name))

    def origins(self) -> dict[str, Origin]:
        """The same of all tensors, by name."""
        return {name: self.origin(name) for name in self.tensors}


def read(folder: Path, config: Mapping[str, Any]) -> Checkpoint:
    """Reads the headers of the files that transformers would read.

    Raises:
        ModelError: a file is damaged or missing, or lacks a tensor that the index names.
    """
    files, named = _files(folder, config)
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors |= _headers(file)
    lost = sorted(set(named) - set(tensors))
    if lost:
        raise ModelError(
            f"'{folder / named[lost[0]]}' lacks '{lost[0]}' and {len(lost) - 1} other tensors that the index of the "
            "folder says it has: fetch the folder again."
        )
    return Checkpoint(folder, files, tensors, tuple(_declared(folder, config)))


def _files(folder: Path, config: Mapping[str, Any]) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The files in the order in which they are read, and the file of each tensor where an index says so."""
    own = config.get("transformers_weights")
    names = (own,) if isinstance(own, str) else (_WEIGHTS, _INDEX)
    name = next((one for one in names if (folder / one).is_file()), None)
    if name is None:
        others = ", ".join(sorted(path.name for path in folder.glob("*.safetensors"))[:3])
        raise ModelError(
            f"'{folder}' holds {others or 'no weights'}, and neither {' nor '.join(names)}, which its weights are read "
            "from: fetch the whole folder again, or save the model with save_pretrained."
        )
    if not name.endswith(".index.json"):
        return (folder / name,), {}
    try:
        content = json.loads((folder / name).read_text(encoding="utf8"))
        named = {str(tensor): str(file) for tensor, file in content["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"'{folder / name}' is no index of weights ({error}): fetch it again.") from error
    shards = sorted(set(named.values()))
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ModelError(f"'{folder / name}' names '{shard}', which is not in the folder: fetch it again.")
    return tuple(folder / shard for shard in shards), named


def _headers(file: Path) -> dict[str, StoredTensor]:
    from safetensors import safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            names = list(opened.keys())
            slices = [opened.get_slice(name) for name in names]
            found = [StoredTensor(file, str(one.get_dtype()), tuple(one.get_shape())) for one in slices]
            return dict(zip(names, found, strict=True))
    except Exception as error:  # safetensors' own errors have no common base
        text = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelError(f"cannot load '{file}': {text}. Fetch the folder again.") from error


def _declared(folder: Path, config: Mapping[str, Any]) -> Iterator[Declared]:
    for key in ("quantization_config", "compression_config"):
        for detail in _everywhere(config, key):
            if isinstance(detail, Mapping):
                yield Declared("config.json", _method(key, detail), detail)
            elif detail:
                yield Declared("config.json", str(detail), {})
    for name, method in _BESIDE.items():
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"'{path}' cannot be read as JSON ({error}): fetch it again.") from error
        if not isinstance(content, dict):
            raise ModelError(f"'{path}' describes no quantization, as its name promises: fetch it again, or remove it.")
        inner, producer = content.get("quantization"), content.get("producer")
        said = producer.get("name") if isinstance(producer, dict) else None
        yield Declared(name, str(said or content.get("quant_method") or method), inner if inner else content)


def _method(key: str, detail: Mapping[str, Any]) -> str:
    """Whose quantization config.json describes, which older files do not name."""
    said = detail.get("quant_method")
    if said:
        return str(said)
    return "compressed-tensors" if key == "compression_config" or "config_groups" in detail else "an unknown method"


def _everywhere(config: Mapping[str, Any], key: str) -> Iterator[Any]:
    """The values of a key in a configuration and in those of its parts."""
    for name, value in config.items():
        if name == key:
            yield value
        elif isinstance(value, Mapping):
            yield from _everywhere(value, key)
