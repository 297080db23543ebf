"""The stages that let the back-end build: one engine for all GPUs, and one for each where that is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompiler.compiler.base import Compilation, Done, stage
from qcompiler.compiler.serving import BuildOptions, profiles_of
from qcompiler.engines import EngineFile, Profile, for_target
from qcompiler.engines.apart import BuildingApart, Needed
from qcompiler.ir import model as models
from qcompiler.ir.model import Model
from qcompiler.ir.signature import Inputs
from qcompiler.statistics.observe import Observations
from qcompiler.support.file import File
from qcompiler.support.foreseen import Foreseen


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
    engine, served = for_target(options.target), profiles_of(lowered, seen, inputs, options, run.warn)
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


@stage(kept=False)
def build_apart(
    run: Compilation,
    model: Path,
    names: Mapping[str, Path],
    lowered: Model,
    seen: Observations,
    inputs: Inputs,
    options: BuildOptions,
) -> Done[None]:
    """An engine file for each GPU by itself; whoever works beside builds some of them.

    Args:
        model: the quantized ONNX file.
        names: the engine file that is made, by GPU.
        lowered: as of `build_engine`, like the others.
        seen: shapes of the data.
        inputs: of the float model.
        options: what the engines must serve.

    Raises:
        EngineError: the back-end refuses the model for one of them.
    """
    served = profiles_of(lowered, seen, inputs, options, lambda _: None)  # *build_engine* has told it
    needed = Needed.of(options.target, [model, *models.load(model).files[1:]], served)
    record = list[dict[str, Any]]()
    with run.working(len(names)) as advance:
        built = run.each("engine", BuildingApart, (needed,), names)
        for (sm, path), made in zip(names.items(), built, strict=True):
            made.content.tofile(path)
            for text in made.warnings:
                run.warn(f"{sm}: {text}")
            record.append({"sm": sm, **dataclasses.asdict(File.of(path)), "seconds": made.seconds})
            advance(1)
    return Done(None, {"engines": record})


def _record(built: EngineFile, served: list[Profile]) -> dict[str, Any]:
    found = built.to_json()
    file = Path(found.pop("path")).name
    digest = File.of(built.path).sha256 if built.path.is_file() else None
    return {"file": file, **found, "sha256": digest, "profiles": [profile.to_json() for profile in served]}


def foreseen(preflight: float) -> Foreseen:
    """As long as the build of the float graph took, in seconds; 0 where there is none."""
    return Foreseen(seconds=preflight)
