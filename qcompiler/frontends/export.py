"""`export()`: a torch.nn.Module or a Hugging Face folder into ONNX, held against torch before it is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.errors import ModelError, QCompilerError, UsageError
from qcompiler.frontends import blocks, file_set, names, needs, writing
from qcompiler.frontends.check import TOLERANCE, Compared, check
from qcompiler.frontends.kinds import (
    decoder,
    dual_encoder,
    encoder,
    encoder_decoder,
    module,
    prompted,
    sentence,
    vision_language,
)
from qcompiler.frontends.kinds.parts import ModelKind, ModelPart
from qcompiler.frontends.sources import Axes, LoadedModule, is_exportable, load
from qcompiler.frontends.torch_onnx import FUNCTION, need, reason, trace
from qcompiler.frontends.tracing import evaluating, exportable
from qcompiler.ir import model as models
from qcompiler.ir.model import Model
from qcompiler.runtime.memory import return_freed_memory
from qcompiler.support import held
from qcompiler.support.atomic import check_writable, make_folder, remove_empty, unwritable
from qcompiler.support.progress import Progress, silent

SHOWS = (
    "the graph computes what the torch module computes, as it was loaded. That the module was loaded as it was meant "
    "cannot be seen by it: the tensors that were dequantized or not used stand under checkpoint"
)
"""What the check against torch can show, and what it cannot."""


@dataclass(frozen=True)
class ExportResult:
    """What an export made.

    Attributes:
        paths: the ONNX files; one, but for encoder-decoders, dual encoders and vision-language models.
        files: all files written, also external data, the tokenizer, and of a set of files what feeds what.
        kind: "decoder", "decoder with cache", "encoder-decoder", "encoder", "dual encoder", "vision-language",
            "prompted segmentation", "sentence encoder" or "module".
        inputs: shape of each input of each file: sizes, or names of free dimensions.
        outputs: the same of the outputs.
        checked: what was compared with torch.
        notes: what the user should know.
        checkpoint: what became of the tensors of a folder: "dequantized", how each was stored by name, and "unused".
        part_checked: which part of a model was compared that is too large to be run as a whole; empty for all of it.
    """

    paths: tuple[Path, ...]
    files: tuple[Path, ...]
    kind: str
    inputs: Mapping[str, Mapping[str, tuple[int | str | None, ...]]]
    outputs: Mapping[str, Mapping[str, tuple[int | str | None, ...]]]
    checked: tuple[Compared, ...]
    notes: tuple[str, ...]
    checkpoint: Mapping[str, Any]
    part_checked: str = ""

    @property
    def path(self) -> Path:
        """The ONNX file, or the first of several."""
        return self.paths[0]

    @property
    def error(self) -> float:
        """The largest error of all that was compared, relative to the largest value of its output."""
        return max(one.error for one in self.checked)

    def to_json(self) -> dict[str, Any]:
        """Plain data; files by their names."""
        worst: dict[str, float] = {}
        for one in self.checked:
            worst[one.step] = max(worst.get(one.step, 0.0), one.error)
        return {
            "kind": self.kind,
            "files": [path.name for path in self.files],
            "inputs": {file: {k: list(v) for k, v in shapes.items()} for file, shapes in self.inputs.items()},
            "outputs": {file: {k: list(v) for k, v in shapes.items()} for file, shapes in self.outputs.items()},
            "error": self.error,
            "steps": worst,
            "shows": SHOWS,
            **({"part_checked": self.part_checked} if self.part_checked else {}),
            "checkpoint": dict(self.checkpoint),
            "notes": list(self.notes),
        }


def export(
    source: Any,
    output: str | Path,
    *,
    past: bool | None = None,
    inputs: Any = None,
    axes: Axes | None = None,
    tolerance: float = TOLERANCE,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Exports a model to ONNX and checks the result against torch; needs the extra `onnx-qcompiler[torch]`.

    Args:
        source: a folder of a Hugging Face model (config.json with safetensors, or one .gguf file), a .gguf file,
            `file.py:function` where the function returns a torch.nn.Module or (module, inputs, axes), or a module.
        output: the ONNX file. Weights go to `<stem>.data` beside it if they exceed 1 GiB; the tokenizer, if there is
            one in the folder, to tokenizer.json. What becomes several files gets the name of each in front:
            encoder_, decoder_, text_, vision_, embed_; and `<stem>.set.json`, which says what feeds what.
        past: decoders read and return the keys and values of earlier tokens; None: yes.
        inputs: example inputs: tensors or arrays by the names of forward's parameters, or in their order. A
            transformers model needs none; where they are given, they are what is used.
        axes: their free dimensions: by input, a name for each axis; equal names are equal sizes. None: axis 0 of each
            is "batch".
        tolerance: largest error against torch, relative to the largest value of an output.
        trust_remote_code: run Python code that lies in the folder.
        progress: where stages are shown.

    Raises:
        UsageError: torch or transformers is missing, the output cannot be written, or options do not fit the source.
        ModelError: the source cannot be loaded, torch cannot export it, or the export is not what torch computes.
    """
    shown = progress or silent
    made = _made(source, Path(output), past, inputs, axes, tolerance, trust_remote_code, shown)
    for note in made.notes:
        shown.warn(note)
    return made


def _made(
    source: Any,
    output: Path,
    past: bool | None,
    inputs: Any,
    axes: Axes | None,
    tolerance: float,
    trust_remote_code: bool,
    shown: Progress,
    *,
    alone: bool = False,
) -> ExportResult:
    """The export; `alone`: what becomes several files is refused before the work."""
    if output.suffix != ".onnx":
        raise UsageError(f"output '{output}' must end in .onnx: an export writes an ONNX file.")
    check_writable(output)
    if not is_exportable(source) and str(source).endswith(".onnx") and Path(source).is_file():
        raise UsageError(f"'{source}' is an ONNX file already: give it to 'qcompiler compile' as it is.")
    with shown.stage("load"):
        need("torch", "onnxscript")
        loaded = load(source, inputs=inputs, axes=axes, trust_remote_code=trust_remote_code)
    with evaluating(loaded.module):
        kind = _kind(loaded, past)
        if alone and len(kind.parts) > 1:
            raise UsageError(_one_by_one(loaded.name, kind))
        return _export(loaded, kind, lambda: _kind(loaded, past), output, tolerance, shown)


def _one_by_one(source: str, kind: ModelKind) -> str:
    files = ", ".join(f"{part.name}_NAME.onnx" for part in kind.parts)
    return (
        f"{source} ({kind.name}) becomes {len(kind.parts)} ONNX files that feed each other ({files}): run 'qcompiler "
        f"export {source} -o NAME.onnx', and compile each of them with its own data. NAME.set.json says which output "
        "goes where."
    )


def _export(
    loaded: LoadedModule,
    kind: ModelKind,
    again: Callable[[], ModelKind],
    output: Path,
    tolerance: float,
    shown: Progress,
) -> ExportResult:
    """Makes all files of a kind; `again` finds out anew what kind it is, for a module that has become shorter."""
    several = len(kind.parts) > 1
    files = {part.name: f"{part.name}_{output.name}" if several else output.name for part in kind.parts}
    _refuse_overwriting(loaded, [output.with_name(file) for file in files.values()])
    with _workshop(output) as shop:
        needs.check_disk(loaded, shop)
        for part in kind.parts:
            stage = f"trace {files[part.name]}" if several else "trace"
            with shown.stage(stage), _blamed(loaded, "converted to ONNX"):
                made, fixed = _traced(part, loaded)
            if "batch" in fixed and kind.one_by_one is not None:
                return _export(loaded, kind.one_by_one(), lambda: _one_row(again()), output, tolerance, shown)
            with shown.stage(f"write {files[part.name]}" if several else "write the weights") as bar:
                writing.save(made, shop / files[part.name], loaded.reserve, bar)
            del made
        written = [shop / file for file in files.values()]
        with shown.stage("check against torch"), _blamed(loaded, "run in torch to compare with it"):
            checked, part_of_it = _held_against_torch(loaded, kind, again, written, tolerance, shown)
        described = {path.name: models.load(path).graph for path in written}
        inputs = {file: names.shapes(graph.inputs) for file, graph in described.items()}
        outputs = {file: names.shapes(graph.outputs) for file, graph in described.items()}
        if several:
            file_set.write(shop / f"{output.stem}.set.json", kind, files, inputs, outputs)
        _keep_tokenizer(loaded, shop, output.parent)
        kept = _finish(shop, output.parent)
    notes = (
        *loaded.notes,
        *kind.notes,
        *((part_of_it,) if part_of_it else ()),
        *(note for part in kind.parts for note in part.job.notes),
    )
    return ExportResult(
        tuple(output.with_name(file) for file in files.values()),
        kept,
        kind.name,
        inputs,
        outputs,
        tuple(checked),
        tuple(dict.fromkeys(notes)),
        loaded.checkpoint,
        part_of_it,
    )


def _one_row(kind: ModelKind) -> ModelKind:
    return kind if kind.one_by_one is None else kind.one_by_one()


def _held_against_torch(
    loaded: LoadedModule,
    kind: ModelKind,
    again: Callable[[], ModelKind],
    written: list[Path],
    tolerance: float,
    shown: Progress,
) -> tuple[list[Compared], str]:
    """What was compared, and which part of the model that is, in a sentence; empty where it is all of it."""
    lacks = needs.lacking(loaded)
    found = blocks.find(loaded.module) if lacks and len(written) == 1 else None
    if found is not None:
        first = models.load(written[0])
        with blocks.shortened(loaded.module, found):
            part = again().parts[0]
            if blocks.cut(first.graph, found, part.job.inputs):
                loaded.reserve.fill(loaded.module)
                let_go = loaded.reserve.drop if part.torch_first else None
                checked = check([first], [part.check], tolerance, loaded.name, let_go)
                loaded.reserve.drop()
                return checked, (
                    f"the first {found.kept} of {found.count} blocks were run beside torch, with what is in front of "
                    f"them and behind the last one, not the others: {lacks}"
                )
    if lacks:
        shown.warn(f"{loaded.name} is run beside torch as a whole, as it has no one row of blocks: {lacks}")
    loaded.reserve.fill(loaded.module)
    checked = check(written, [part.check for part in kind.parts], tolerance, loaded.name)
    loaded.reserve.drop()
    return checked, ""


@contextmanager
def exported(source: Any, output: Path, progress: Progress) -> Iterator[tuple[Any, ExportResult | None]]:
    """A source that `qcompiler.ir.model` reads: others are exported into a folder that lives as long as the block.

    Yields:
        The file or the model, and what the export and its check came to; None where nothing was exported. Its notes
        are for the caller to show.
    """
    if not is_exportable(source):
        yield source, None
        return
    with _workshop(output) as shop:
        name = Path(str(source).rpartition(":")[0] or str(source)).stem if isinstance(source, str | Path) else ""
        file = shop / f"{name or type(source).__name__}.onnx"
        made = _made(source, file, None, None, None, TOLERANCE, False, progress, alone=True)
        yield made.path, made


def _kind(loaded: LoadedModule, past: bool | None) -> ModelKind:
    """What kind of model it is, and the graphs that it becomes.

    Raises:
        ModelError: this kind is not known, or its code fails on the inputs that its configuration describes.
        UsageError: options or example inputs do not fit it.
    """
    with _blamed(loaded, "prepared for the export"):
        return _known(loaded, past)


@contextmanager
def _blamed(loaded: LoadedModule, what: str) -> Iterator[None]:
    """Whatever transformers', torch's or the user's code raises is about the model, not a defect of this program."""
    try:
        yield
    except QCompilerError:
        raise
    except OSError:  # a full disk, say, which the workshop tells of
        raise
    except Exception as error:
        raise ModelError(
            f"{loaded.name} ({type(loaded.module).__name__}) cannot be {what}: {reason(error)}. {FUNCTION}"
        ) from error


def _known(loaded: LoadedModule, past: bool | None) -> ModelKind:
    model, label = loaded.module, loaded.name
    config = getattr(model, "config", None)
    if loaded.inputs is not None or not (hasattr(config, "to_dict") and hasattr(model, "main_input_name")):
        _refuse_past(past, label)
        return module.kind_of(loaded)
    if loaded.pipeline:
        _refuse_past(past, label)
        return sentence.kind_of(loaded)
    if dual_encoder.is_dual(model):
        _refuse_past(past, label)
        return dual_encoder.kind_of(loaded)
    if prompted.is_prompted(model):
        _refuse_past(past, label)
        return prompted.kind_of(loaded)
    if getattr(config, "is_encoder_decoder", False) and model.can_generate():
        return encoder_decoder.kind_of(loaded, past)
    if not model.can_generate():
        _refuse_past(past, label)
        return encoder.kind_of(loaded)
    if vision_language.is_vision_language(model):
        return vision_language.kind_of(loaded, past)
    return decoder.kind_of(loaded, past)


def _refuse_past(past: bool | None, label: str) -> None:
    if past:
        raise UsageError(f"{label} is no decoder and has no cache: leave --past out.")


def _traced(part: ModelPart, loaded: LoadedModule) -> tuple[Model, set[str]]:
    """Traces one part and names what is in it; and which free dimensions the trace fixed."""
    loaded.reserve.drop()  # what was looked at until now was sizes
    with exportable(loaded.module):
        made = trace(part.job)
        if loaded.reserve.touched():  # a value went into the graph, and it must be the right one
            loaded.reserve.fill(loaded.module)
            made = trace(part.job)
    loaded.reserve.drop()
    return_freed_memory()  # torch's own program of the graph is larger than the graph
    names.tidy(made, part.job)
    shapes = names.shapes(made.graph.inputs)
    axes = [(called, shapes[name][axis]) for name, free in part.job.axes.items() for axis, called in free.items()]
    return made, {called for called, size in axes if isinstance(size, int)}


def _keep_tokenizer(loaded: LoadedModule, shop: Path, folder: Path) -> None:
    """The tokenizer as one file, which needs no transformers to be read.

    A `tokenizer.json` of the model is taken as it is: transformers may have made another one of it.
    """
    own = next((path for path in loaded.files if path.name == "tokenizer.json"), None)
    if own is not None and own.resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(own, shop / "tokenizer.json")
        return
    fast = getattr(loaded.tokenizer, "backend_tokenizer", None)
    if fast is None or (folder / "tokenizer.json").resolve() in {path.resolve() for path in loaded.files}:
        return
    fast.save(str(shop / "tokenizer.json"))


def _refuse_overwriting(loaded: LoadedModule, outputs: list[Path]) -> None:
    sources = {path.resolve() for path in loaded.files}
    for path in (one for output in outputs for one in (output, output.with_suffix(".data"))):
        if path.resolve() in sources:
            raise UsageError(
                f"output '{path}' is a file of the model itself, which is never written to: choose another."
            )


@contextmanager
def _workshop(output: Path) -> Iterator[Path]:
    """A folder beside the output in which everything is made; whatever happens, it is gone at the end."""
    with ExitStack() as open_:
        try:
            open_.callback(remove_empty, make_folder(output.parent))
            shop = open_.enter_context(held.workshop(output.parent))
        except OSError as error:
            raise unwritable(output, error) from error
        try:
            yield shop
        except QCompilerError as error:
            error.args = (str(error).replace(str(shop), str(output.parent)),)
            raise
        except OSError as error:
            raise unwritable(output, error) from error


def _finish(shop: Path, folder: Path) -> tuple[Path, ...]:
    """Gives every file its place, the models last: where one stands, what it needs is there."""
    made = sorted((path for path in shop.iterdir() if path.is_file()), key=lambda path: path.suffix == ".onnx")
    for path in made:
        os.replace(path, folder / path.name)
    return tuple(folder / path.name for path in made)
