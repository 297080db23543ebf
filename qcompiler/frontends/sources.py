"""What `export` reads: a Hugging Face folder or a GGUF file, `file.py:function`, or a module that exists already."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qcompiler.errors import ModelError, UsageError
from qcompiler.frontends.pipeline import Listed, files, listed, transformer
from qcompiler.frontends.torch_onnx import need, quiet
from qcompiler.frontends.weights import adapter, checkpoint, dequantize, left_over
from qcompiler.frontends.weights import reserve as reserves
from qcompiler.frontends.weights.checkpoint import Checkpoint
from qcompiler.frontends.weights.reserve import Reserve
from qcompiler.support.user_code import UserCode

Axes = Mapping[str, Mapping[int, str]]
CONVERT = "AutoModel.from_pretrained('DIR').save_pretrained('NEW') in Python with transformers converts them"
_CODE = UserCode("model", forms="file.py:function", missing=UsageError, broken=ModelError, purpose="returns the module")


@dataclass(frozen=True)
class LoadedModule:
    """A module and what is known of it.

    Attributes:
        module: in float32.
        name: of the source, for messages: the folder, the file or the class.
        tokenizer: transformers' tokenizer; None where the source has none.
        inputs: example inputs by the names of the parameters of its forward; None for: transformers' class says them.
        axes: free dimensions of those inputs; None for: the first axis of each is the batch.
        files: the files that it was read from.
        notes: what the user should know.
        pipeline: what follows the model, of a sentence-transformers folder.
        preprocessor: what the folder says of pictures and sound (preprocessor_config.json).
        checkpoint: what became of the tensors of the folder, for the manifest: "dequantized" and "unused".
        reserve: the weights of the module that are not in memory; those of a module that was given are.
    """

    module: Any
    name: str
    tokenizer: Any = None
    inputs: Any = None
    axes: Axes | None = None
    files: tuple[Path, ...] = ()
    notes: list[str] = field(default_factory=list)
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    pipeline: tuple[Listed, ...] = ()
    reserve: Reserve = field(default_factory=lambda: Reserve(None))


def is_module(source: object) -> bool:
    """Whether it is a torch.nn.Module; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)


def is_exportable(source: object) -> bool:
    """Whether `export` is to make an ONNX file of it first: anything but a file that could be ONNX.

    A folder that has neither a configuration nor weights is none: what reads ONNX files says better what it lacks.
    """
    if is_module(source):
        return True
    if not isinstance(source, str | Path):
        return False
    text, path = str(source), Path(source)
    if path.is_dir():
        known = ("config.json", "modules.json", "adapter_config.json", "*.gguf", "*.safetensors")
        return any(True for pattern in known for _ in path.glob(pattern))
    return path.suffix == ".gguf" or _is_function(text)


def load(source: Any, *, inputs: Any, axes: Axes | None, trust_remote_code: bool) -> LoadedModule:
    """The module of a source.

    Args:
        source: folder, .gguf file, `file.py:function` or module.
        inputs: example inputs of a module that is not transformers'.
        axes: their free dimensions.
        trust_remote_code: Python code that lies in a folder may be run.

    Raises:
        ModelError: it cannot be loaded, or its weights are incomplete, not float or pickled.
        UsageError: torch or transformers is missing, or what is given does not fit together.
    """
    need("torch")
    if is_module(source):
        return _checked(LoadedModule(source, type(source).__name__, getattr(source, "tokenizer", None), inputs, axes))
    if not isinstance(source, str | Path):
        raise UsageError(
            f"a {type(source).__name__} cannot be exported: give a folder of a Hugging Face model, file.py:function, "
            "or a torch.nn.Module."
        )
    path = Path(source)
    if _is_function(str(source)):
        return _checked(_from_function(str(source), inputs, axes))
    if path.is_dir() or path.suffix == ".gguf":
        return _from_folder(path, trust_remote_code)
    raise ModelError(
        f"there is no model folder '{path}': give a folder of a Hugging Face model (config.json and safetensors, or a "
        ".gguf file), or file.py:function where the function returns a torch.nn.Module."
    )


def _is_function(text: str) -> bool:
    where, _, name = text.rpartition(":")
    return where.endswith(".py") and name.isidentifier()


def _checked(loaded: LoadedModule) -> LoadedModule:
    """The module in float32: half precision is widened in a copy, which is exact.

    Raises:
        ModelError: parameters are integers, or of a type that cannot be widened.
    """
    import torch

    half = {torch.float16, torch.bfloat16}
    for name, weight in loaded.module.named_parameters():
        kind = str(weight.dtype).removeprefix("torch.")
        if not weight.is_floating_point() and not weight.is_complex() and weight.dim() > 1:
            raise ModelError(
                f"parameter '{name}' of {loaded.name} is {kind}: it is quantized already, and what its numbers mean is "
                "not certain. Export the float model that it was made from."
            )
        if weight.is_floating_point() and weight.dtype not in {torch.float32, *half}:
            raise ModelError(
                f"parameter '{name}' of {loaded.name} is {kind}, and only modules in float32 and half precision are "
                "exported, because the precision is chosen when the model is compiled: call module.float() before."
            )
    found = {one.dtype for one in (*loaded.module.parameters(), *loaded.module.buffers())} & half
    if not found:
        return loaded
    names = " and ".join(sorted(str(one).removeprefix("torch.") for one in found))
    note = f"{loaded.name} is {names}: widened to float32, which is exact; the precision is chosen when it is compiled"
    wide = copy.deepcopy(loaded.module).float()
    return replace(loaded, module=wide, inputs=_widened(loaded.inputs, half), notes=[*loaded.notes, note])


def _widened(value: Any, half: Collection[Any]) -> Any:
    """Example inputs in float32, where they lie in dicts and lists too."""
    if isinstance(value, Mapping):
        return {key: _widened(one, half) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_widened(one, half) for one in value]
    return value.float() if getattr(value, "dtype", None) in half else value


def _from_function(text: str, inputs: Any, axes: Axes | None) -> LoadedModule:
    function, _ = _CODE.load(text)
    try:
        made = function if is_module(function) else function()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ModelError(f"{text} fails with {type(error).__name__}: {error}.") from error
    parts = tuple(made) if isinstance(made, tuple | list) else (made,)
    if not 1 <= len(parts) <= 3 or not is_module(parts[0]):
        raise ModelError(
            f"{text} returned a {type(made).__name__}; it must return a torch.nn.Module, or a tuple of the module, its "
            "example inputs (a dict of tensors by the names of forward's parameters), and, optionally, the names of "
            "free dimensions by input and axis."
        )
    given = parts[1] if len(parts) > 1 else inputs
    free = parts[2] if len(parts) > 2 else axes
    return LoadedModule(
        parts[0], text, getattr(parts[0], "tokenizer", None), given, free, (Path(text.rpartition(":")[0]),)
    )


def _from_folder(path: Path, trust_remote_code: bool) -> LoadedModule:
    """The model of a folder, whose large weights are read when they are written.

    Raises:
        ModelError: see `load`.
    """
    loaded = _read_folder(path, trust_remote_code, Reserve(reserves.LARGE))
    if not loaded.reserve.touched():
        return loaded
    return _read_folder(path, trust_remote_code, Reserve(None))  # a loader that looks at values gets them


def _read_folder(path: Path, trust_remote_code: bool, reserve: Reserve) -> LoadedModule:
    need("transformers")
    folder, gguf = _gguf(path)
    modules = () if gguf else listed(folder)
    folder = transformer(folder) if modules else folder
    found = None if gguf else adapter.find(folder)
    added, folder = folder, folder if found is None else found.base
    config = {} if gguf else _config(folder)
    if not gguf:
        _check_weights(folder)
    if config.get("auto_map") and not trust_remote_code and not _known(config):
        raise ModelError(
            f"the model in '{folder}' brings its own Python code ({', '.join(_code(config))}), which is never run "
            "unasked: read it, and give --trust-remote-code if you trust it."
        )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    if gguf:
        need("gguf")
        options["gguf_file"] = gguf
    stored = Checkpoint(folder, (), {}, ()) if gguf else checkpoint.read(folder, config)
    read = None if gguf else dequantize.weights(stored)
    with quiet():
        if modules:
            config = _headless(config)
        origins = stored.origins() if read is None else read.tensors
        tensors = None if gguf else {name: reserve.weight(one) for name, one in origins.items()}
        module, told = _model(folder, config, gguf, options, tensors)
        tokenizer, lack = _tokenizer(added if (added / "tokenizer_config.json").is_file() else folder, options)
    beside = (*files(modules), *(() if found is None else found.files))
    rest = left_over.judge(module, told, stored, read)
    notes = [] if read is None else [read.note()]
    notes += [*rest.notes(type(module).__name__), *([] if gguf else left_over.beside(stored, beside))]
    merged = () if found is None else adapter.merge(found, module, reserve)
    reserve.settled(module)
    notes += [] if found is None else adapter.note(found, merged)
    if gguf:
        notes.append(f"the weights of '{gguf}' are rounded to its format once and float32 from here on")
    if lack and getattr(module, "main_input_name", "") == "input_ids":
        notes.append(lack)
    read_files = (*sorted(one for one in folder.iterdir() if one.is_file()), *beside)
    became = {
        "dequantized": {} if read is None else dict(read.layers),
        "unused": [*rest.harmless, *rest.parts],
        **({"merged": list(merged)} if merged else {}),
    }
    return LoadedModule(
        module,
        str(path),
        tokenizer,
        files=read_files,
        notes=notes,
        checkpoint=became,
        preprocessor=_preprocessor(folder),
        pipeline=modules,
        reserve=reserve,
    )


def _headless(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration for the class that sentence-transformers takes: without a head, and of T5 the encoder."""
    encoders = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel"}
    known = encoders.get(str(config.get("model_type")))
    return {**config, "architectures": [known] if known else None}


def _preprocessor(folder: Path) -> dict[str, Any]:
    """What a folder says of the sizes of its pictures and sounds; nothing where it has no such file."""
    found: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"'{path}' cannot be read as JSON ({error}): fetch it again.") from error
        for part in (content, *(content.get(one) for one in ("image_processor", "feature_extractor"))):
            found |= part if isinstance(part, dict) else {}
    return found


def _gguf(path: Path) -> tuple[Path, str]:
    """The folder, and the name of the one GGUF file in it that is meant; empty where there is none."""
    if path.suffix == ".gguf" and path.is_file():
        return path.parent, path.name
    if not path.is_dir():
        raise ModelError(f"there is no file '{path}'; check the spelling of the path.")
    found = sorted(one.name for one in path.glob("*.gguf"))
    if not found or list(path.glob("*.safetensors")):
        return path, ""
    if len(found) > 1:
        raise ModelError(
            f"'{path}' holds {len(found)} GGUF files ({', '.join(found[:3])}): name the one that is meant instead of "
            "the folder."
        )
    return path, found[0]


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError as error:
        onnx = sorted(one.name for one in folder.glob("*.onnx"))
        more = f" It holds '{onnx[0]}', which can be compiled as it is." if onnx else ""
        raise ModelError(
            f"'{folder}' is a folder without config.json: fetch the whole model folder (config.json, the tokenizer's "
            f"files and model.safetensors), or name a .gguf file.{more}"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"'{path}' cannot be read as JSON ({error}): fetch it again.") from error
    if not isinstance(content, dict) or not content.get("model_type"):
        raise ModelError(f"'{path}' names no model_type: it is not the configuration of a transformers model.")
    return content


def _check_weights(folder: Path) -> None:
    if list(folder.glob("*.safetensors")):
        return
    pickled = sorted(one.name for one in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
    if pickled:
        raise ModelError(
            f"the weights in '{folder}' are pickled ({pickled[0]}), and nothing pickled is ever loaded, because it can "
            f"run code: {CONVERT}, where you trust them."
        )
    raise ModelError(
        f"'{folder}' holds no weights: there is neither a .safetensors nor a .gguf file. If it was cloned with git, "
        "run 'git lfs pull'; else fetch the whole folder again."
    )


def _known(config: Mapping[str, Any]) -> bool:
    """Whether transformers itself has the classes, so that the folder's code is not needed."""
    from transformers import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


def _code(config: Mapping[str, Any]) -> list[str]:
    """Names of the Python files that a configuration points to."""
    named = (one for value in config["auto_map"].values() for one in (value if isinstance(value, list) else [value]))
    return sorted({f"{str(one).split('--')[-1].split('.')[0]}.py" for one in named if one})


def _model(
    folder: Path, config: Mapping[str, Any], gguf: str, options: Mapping[str, Any], tensors: Mapping[str, Any] | None
) -> tuple[Any, Mapping[str, Any]]:
    """The model in evaluation mode, and what transformers tells of its weights.

    Args:
        folder: of the model.
        config: its configuration.
        gguf: name of its GGUF file, from which transformers takes the weights; else empty.
        options: of transformers.
        tensors: the weights by name; None where there is a GGUF file.
    """
    import torch

    cls = _class(folder, config, gguf, bool(options["trust_remote_code"]))
    given: dict[str, Any] = dict(options)
    try:
        if tensors is not None:
            plain = _float_config(cls, folder, options)
            cls = _concrete(cls, plain, options)
            given |= {"config": plain, "state_dict": {**tensors, **_extra(folder, plain)}}
        model, told = cls.from_pretrained(
            folder if tensors is None else None,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # what misfits is named, and refused, by left_over
            **given,
        )
    except Exception as error:  # whatever transformers and its readers raise
        text = " ".join(str(error).split())
        lacks = isinstance(error, ImportError)  # of a library that only some models need: it is named there
        remedy = "Install what it lacks" if lacks else "Try a newer transformers, or fetch the folder again"
        raise ModelError(
            f"transformers cannot load '{folder / gguf if gguf else folder}' as {cls.__name__}: "
            f"{type(error).__name__}: {text[:300].rstrip('.')}. {remedy}."
        ) from error
    return model.eval(), told


def _extra(folder: Path, config: Any) -> dict[str, Any]:
    """Tensors of files that the class of a configuration names beside those that hold the weights."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for name in getattr(type(config), "extra_files", ()):
        if (folder / name).is_file():
            found |= load_file(folder / name)
    return found


def _float_config(cls: Any, folder: Path, options: Mapping[str, Any]) -> Any:
    """The configuration without its quantization: what it describes has been undone."""
    from transformers import AutoConfig

    config = (getattr(cls, "config_class", None) or AutoConfig).from_pretrained(folder, **options)
    parts = [config, *(one for one in vars(config).values() if hasattr(one, "to_dict"))]
    for part in parts:
        for key in ("quantization_config", "compression_config"):
            if key in vars(part):
                delattr(part, key)
    return config


def _concrete(cls: Any, config: Any, options: Mapping[str, Any]) -> Any:
    """The class behind one of transformers' automatic ones, which take no weights from memory."""
    import torch

    if not hasattr(cls, "from_config"):
        return cls
    with torch.device("meta"), _safe_creation():
        return type(cls.from_config(config, trust_remote_code=options["trust_remote_code"]))


def _safe_creation() -> contextlib.AbstractContextManager[None]:
    """What transformers itself does where it makes models without memory: some compute with numbers while they do."""
    from transformers import initialization

    safe = getattr(initialization, "meta_device_safe_creation_ops", None)
    return contextlib.nullcontext() if safe is None else safe()


def _class(folder: Path, config: Mapping[str, Any], gguf: str, trust: bool) -> Any:
    import transformers

    if gguf:
        return transformers.AutoModelForCausalLM
    names = config.get("architectures") or []
    if trust and config.get("auto_map"):
        autos = [name for name in config["auto_map"] if name.startswith("AutoModel")]
        return getattr(transformers, "AutoModelForCausalLM" if "AutoModelForCausalLM" in autos else "AutoModel")
    if not names:
        return transformers.AutoModel
    found = getattr(transformers, names[0], None)
    if found is None:
        raise ModelError(
            f"transformers {transformers.__version__} has no class '{names[0]}', which '{folder / 'config.json'}' "
            "names: try a newer transformers. If the folder brings its own code, read it and give --trust-remote-code; "
            "a class of your own can be exported with file.py:function."
        )
    return found


def _tokenizer(folder: Path, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The tokenizer of a folder, or why there is none."""
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(folder, **options)
        made("a")  # the class that transformers takes for a model may need tokens that the file lacks
        return made, ""
    except Exception as error:  # a tokenizer is a help and no need: whatever is wrong with it
        text = " ".join(str(error).split())
        rest = "" if (folder / "tokenizer.json").is_file() else ", and compiling with --text will need --tokenizer"
        return None, (
            f"no tokenizer could be read from '{folder}' ({type(error).__name__}: {text[:150].rstrip('.')}): the "
            f"export is checked with random token ids{rest}"
        )
