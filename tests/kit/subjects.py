"""A compilation as it stands before a stage: `before("smooth_quant", case, precision="fp8")`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from qcompiler.compiler.ask import Asked, ask
from qcompiler.compiler.base import Compilation
from qcompiler.compiler.stages.clean_up import clean_up
from qcompiler.compiler.stages.decide import decide
from qcompiler.compiler.stages.equalize import calibrate, equalize
from qcompiler.compiler.stages.llm_int8 import llm_int8
from qcompiler.compiler.stages.load import load
from qcompiler.compiler.stages.lower import lower
from qcompiler.compiler.stages.observe import observe
from qcompiler.compiler.stages.qfep import qfep
from qcompiler.compiler.stages.smooth_quant import smooth_quant
from qcompiler.compiler.stages.weight_only import fit_weights, shift, weight_only
from qcompiler.compiler.subject import Lowered, Planned, Subject
from qcompiler.recipe.recipe import Recipe
from tests.kit.cases import Case


@dataclass(frozen=True, eq=False)
class Standing:
    """What there is before a stage; what comes later in the life of a model is missing."""

    run: Compilation
    asked: Asked
    subject: Subject
    decided: Planned | None = None
    lowered: Lowered | None = None


def before(stage: str, case: Case, *, data: bool = True, **recipe: Any) -> Standing:
    """Runs all stages in front of the named one."""
    return _before(stage, case.source, str(case.data) if data else None, case.out / "m.qdq.onnx", recipe)


def of_net(stage: str, proto: onnx.ModelProto, feeds: Sequence[Any], folder: Path, **recipe: Any) -> Standing:
    """The same for a model and its data."""
    onnx.save(proto, folder / "float.onnx")
    return _before(stage, folder / "float.onnx", feeds, folder / "m.qdq.onnx", recipe)


def _before(stage: str, source: Path, samples: Any, output: Path, recipe: Mapping[str, Any]) -> Standing:
    asked = ask(Recipe(**recipe), samples, output, build=False)
    run = Compilation()
    subject = run(load, source, samples, asked.load)
    steps: dict[str, Callable[[Subject], Subject]] = {
        "clean_up": lambda now: run(clean_up, now, asked.target, asked.recipe.equalize),
        "qfep": lambda now: run(qfep, now, asked.qfep),
        "observe": lambda now: run(observe, now, asked.watch, asked.observe),
        "calibrate": lambda now: run(calibrate, now, asked.target, asked.planning),
        "equalize": lambda now: run(equalize, now, asked.watch, asked.target, asked.planning, asked.recipe.equalize),
        "smooth_quant": lambda now: run(
            smooth_quant, now, asked.watch, asked.target, asked.planning, asked.smooth_quant
        ),
        "llm_int8": lambda now: run(llm_int8, now, asked.watch, asked.llm_int8),
        "fit_weights": lambda now: run(fit_weights, now, asked.target, asked.planning),
        "shift": lambda now: run(shift, now, asked.target, asked.planning),
        "weight_only": lambda now: run(weight_only, now, asked.weight_only),
    }
    for name, step in steps.items():
        if name == stage:
            return Standing(run, asked, subject)
        subject = step(subject)
    if stage == "decide":
        return Standing(run, asked, subject)
    decided = run(decide, subject, asked.target, asked.planning)
    if stage == "lower":
        return Standing(run, asked, subject, decided)
    return Standing(run, asked, subject, decided, run(lower, subject, decided, asked.target, asked.lower))
