"""What models take on the target: each is built for the usual shape, and its own listing is read.

A listing has the sizes of all tensors only where the engine serves one shape. So an engine with free sizes is built
once more, for the usual shape alone; that takes as long as the build.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qcompiler.compiler.serving import BuildOptions, profiles_of
from qcompiler.compiler.subject import Lowered, Planned, Subject
from qcompiler.engines import Profile, for_target
from qcompiler.engines.roofline import Roofline, roofline
from qcompiler.ir import model as models
from qcompiler.ir.model import Model
from qcompiler.outliers import llm_int8
from qcompiler.passes.known_part import whole
from qcompiler.passes.pipelines import lowering
from qcompiler.plan import Plan
from qcompiler.planning.chosen import Chosen
from qcompiler.runtime.work import count_macs_without_data
from qcompiler.target import Target
from qcompiler.weight_only import methods


@dataclass(frozen=True, eq=False)
class Pricing:
    """Builds variants of one lowered model, and reads what they take.

    Attributes:
        subject: observed.
        decided: its plan.
        lowered: the graph of that plan, with the ranges that typing went by.
        options: what the engine must serve.
        io_types: as of `LowerOptions`.
        folder: where files are made, which are removed again.
    """

    subject: Subject
    decided: Planned
    lowered: Lowered
    options: BuildOptions
    io_types: str
    folder: Path

    @cached_property
    def profiles(self) -> list[Profile]:
        """The optimization profiles that the engine is built for.

        Raises:
            DataError: as of `profiles_of`.
        """
        return profiles_of(self.lowered.model, self.subject.seen, self.subject.inputs, self.options, _untold)

    @property
    def usual(self) -> dict[str, tuple[int, ...]]:
        """The usual shape of each input that has a free size, in the first profile."""
        return self.usual_in(0)

    def usual_in(self, profile: int) -> dict[str, tuple[int, ...]]:
        """The same in a profile; none where the engine has no profiles."""
        return {name: opt for name, (_, opt, _) in self.profiles[profile].shapes.items()} if self.profiles else {}

    def of_engine(self, engine: Path) -> Roofline:
        """What the engine of `lowered` takes."""
        found = roofline(engine, self._work(self.lowered.model))
        return found if found.launches and not found.unsized else self.of(self.lowered.model)

    def of(self, model: Model, profile: int = 0) -> Roofline:
        """What a variant takes in the usual shape of a profile.

        Raises:
            BuildError: the engine cannot be built for that shape.
        """
        usual = self.usual_in(profile)
        behind = whole(model, self.subject.behind)
        return taken(behind, self.options.target, usual, self._work(model, profile), self.folder)

    @cached_property
    def high(self) -> Roofline:
        """What the model takes with everything in high precision.

        Raises:
            BuildError: as of `of`.
        """
        return self.high_in(0)

    def high_in(self, profile: int) -> Roofline:
        """The same in another profile.

        Raises:
            BuildError: as of `of`.
        """
        if not self.lowered.plan.quantized():
            return self.of(self.lowered.model, profile)
        model, _, _ = llm_int8.settle(self.decided.model, Plan(), self.decided.splits)
        return self.of(self._lowered(model, Chosen(Plan(), self.decided.chosen.net), storing=False), profile)

    def lowered_by(self, chosen: Chosen) -> Model:
        """The graph of another plan for the same layers, typed by the ranges that are known."""
        return self._lowered(self.decided.model, chosen, storing=True)

    def _lowered(self, model: Model, chosen: Chosen, *, storing: bool) -> Model:
        made, half = models.copy(model), self.lowered.half
        lowering(
            chosen.plan,
            self.options.target,
            self.lowered.ranges,
            chosen.corrections,
            chosen.scales,
            self.io_types,
            methods.passes(self.subject.stored) if storing else (),
            {} if half is None else half.noisy,
            model.ends,
            chosen.fitted,
        )(made.graph)
        return made

    def _work(self, model: Model, profile: int = 0) -> Mapping[str, int]:
        """Multiply-accumulates by node at the usual shape; of what cannot be counted there, those of a sample.

        A sample is of the first profile.
        """
        sample = {one.node: one.macs for one in self.lowered.plan if one.macs and not profile}
        return {**sample, **count_macs_without_data(model.graph, self.usual_in(profile))}


def taken(
    model: Model, target: Target, usual: Mapping[str, tuple[int, ...]], work: Mapping[str, int], folder: Path
) -> Roofline:
    """What a model takes: it is built for one shape, and its listing is read.

    Args:
        model: as the target reads it.
        target: the engine.
        usual: the shape of each input that has a free size.
        work: multiply-accumulates by node at these shapes.
        folder: where files are made, which are removed again.

    Raises:
        BuildError: the engine cannot be built for that shape.
    """
    source, engine = folder / "priced.onnx", folder / "priced.engine"
    fixed = [Profile({name: (shape,) * 3 for name, shape in usual.items()})] if usual else []
    try:
        (first, *_) = models.save(model, source)
        for_target(target).quick().build(first, engine, fixed)
        return roofline(engine, work)
    finally:
        for path in (source, source.with_suffix(".data"), engine):
            path.unlink(missing_ok=True)


def _untold(_: str) -> None:
    """The build of the engine warns of the same."""
