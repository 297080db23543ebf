"""The stage that lets the back-end build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.data import profiles
from qcompiler.engines import EngineFile, Profile, for_target
from qcompiler.ir import decoder_io
from qcompiler.ir.model import Model
from qcompiler.ir.signature import Inputs
from qcompiler.recipe.checks import Shapes
from qcompiler.recipe.tables import GenerationTable
from qcompiler.runtime.fitting import Fitting
from qcompiler.statistics.observe import Observations
from qcompiler.support.file import File
from qcompiler.target import Target


@dataclass(frozen=True)
class BuildOptions:
    """What the engine must serve.

    Attributes:
        target: engine and GPUs.
        shapes: smallest, usual and largest shape of each input; None: as the data showed.
        generation: lengths and batch of decoders with a cache.
        needs_rows: a profile must allow for more than one row: see `weight_only.methods.needs_rows`.
    """

    target: Target
    shapes: Shapes | None
    generation: GenerationTable
    needs_rows: bool


@stage(kept=False)
def build_engine(
    run: Compilation,
    model: Path,
    output: Path,
    lowered: Model,
    seen: Observations,
    inputs: Inputs,
    options: BuildOptions,
) -> Done[EngineFile]:
    """The engine file.

    Args:
        model: the quantized ONNX file.
        output: the engine file that is made.
        lowered: the model in that file.
        seen: shapes of the data, for the optimization profile.
        inputs: of the float model, as the data was read.
        options: what the engine must serve.

    Raises:
        DataError: the shapes of the data have no smallest or largest ones that fit together.
        EngineError: the back-end refuses the model.
        UsageError: a dynamic input has no profile.
    """
    engine, served = for_target(options.target), profiles_of(run, lowered, seen, inputs, options)
    done = 0.0
    with run.working(1.0) as advance:

        def show(_: str, share: float) -> None:
            nonlocal done
            advance(max(share - done, 0.0))
            done = max(share, done)

        built = engine.build(model, output, served, progress=show)
    for text in built.warnings:
        run.warn(f"{engine.name}: {text}")
    return Done(built, {"engine": _record(built, served)})


def profiles_of(
    run: Compilation, lowered: Model, seen: Observations, inputs: Inputs, options: BuildOptions
) -> list[Profile]:
    """One profile: the user's shapes, else what the data showed; two for a decoder with a cache, prefill and decode."""
    if options.shapes is not None:
        return [Profile(options.shapes)]
    decoder = decoder_io.of_model(lowered)
    if decoder is None or not decoder.pairs or decoder.unknown:
        return _shown(lowered, seen, inputs)
    shown = profiles.by_itself(seen.shapes, inputs, seen.axes)
    asked, tokens = options.generation, shown.get(decoder_io.TOKENS)
    batch, prompt, longest = decoder_io.lengths(tokens, asked.batch, asked.prompt, asked.max_length)
    if asked.max_length is None:
        run.warn(f"the engine takes texts of up to {longest} tokens, as in the data: --max-length asks for more")
    phases = decoder.profiles(batch, prompt, longest)
    if batch[2] == 1 and options.needs_rows:
        phases[1] = decoder.profiles((1, 1, 2), prompt, longest)[1]
    return [Profile(one) for one in (phases[:1] if asked.phases == "one" else phases)]


def _shown(lowered: Model, seen: Observations, inputs: Inputs) -> list[Profile]:
    """The profile of the data; none where there is no data, or no free axis."""
    if not seen.kept:
        return []
    fitting = Fitting(lowered.graph, seen.kept[0])
    found = profiles.consistent(seen.shapes, inputs, seen.axes, fitting.misfit)
    return [Profile({name: (three.min, three.opt, three.max) for name, three in found.items()})] if found else []


def _record(built: EngineFile, served: list[Profile]) -> dict[str, Any]:
    found = built.to_json()
    file = Path(found.pop("path")).name
    digest = File.of(built.path).sha256 if built.path.is_file() else None
    return {"file": file, **found, "sha256": digest, "profiles": [profile.to_json() for profile in served]}
