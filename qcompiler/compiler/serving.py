"""What the engine must serve: options, and the optimization profiles that follow from them and the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qcompiler.data import profiles
from qcompiler.engines import Profile
from qcompiler.ir import decoder_io
from qcompiler.ir.model import Model
from qcompiler.ir.signature import Inputs, InputShapes
from qcompiler.recipe.checks import Shapes
from qcompiler.recipe.tables import GenerationTable
from qcompiler.runtime.fitting import Fitting
from qcompiler.statistics.observe import Observations
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


def profiles_of(
    model: Model, seen: Observations, inputs: Inputs, options: BuildOptions, warn: Callable[[str], None]
) -> list[Profile]:
    """One profile: the user's shapes, else what the data showed; two for a decoder with a cache, prefill and decode."""
    if options.shapes is not None:
        return [Profile(options.shapes)]
    decoder = decoder_io.of_model(model)
    if decoder is None or not decoder.pairs or decoder.unknown:
        return _shown(model, seen, inputs)
    shown = profiles.by_itself(seen.shapes, inputs, seen.axes)
    asked, tokens = options.generation, shown.get(decoder_io.TOKENS)
    batch, prompt, longest = decoder_io.lengths(tokens, asked.batch, asked.prompt, asked.max_length)
    if asked.max_length is None:
        warn(f"the engine takes texts of up to {longest} tokens, as in the data: --max-length asks for more")
    phases = decoder.profiles(batch, prompt, longest)
    if batch[2] == 1 and options.needs_rows:
        phases[1] = decoder.profiles((1, 1, 2), prompt, longest)[1]
    return [Profile(one) for one in (phases[:1] if asked.phases == "one" else phases)]


def shown(model: Model, seen: Observations, inputs: Inputs) -> dict[str, InputShapes]:
    """Smallest, usual and largest shapes of the data, each of which fits together; none without data or free axes.

    Raises:
        DataError: as of `profiles.consistent`.
    """
    if not seen.kept:
        return {}
    return profiles.consistent(seen.shapes, inputs, seen.axes, Fitting(model.graph, seen.kept[0]).misfit)


def _shown(model: Model, seen: Observations, inputs: Inputs) -> list[Profile]:
    """The profile of the data; none where there is no data, or no free axis."""
    found = shown(model, seen, inputs)
    return [Profile({name: (three.min, three.opt, three.max) for name, three in found.items()})] if found else []
