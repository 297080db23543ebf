"""A gate that is missed where it is judged: the ladder is climbed on before layers go back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import qcompiler
from qcompiler.compiler import climbing
from qcompiler.compiler.climbing import MISSED, changed, climbed_on
from qcompiler.recipe.recipe import Recipe
from qcompiler.verification.compare import Verification
from qcompiler.verification.gates import Gates
from qcompiler.verification.metric import Score
from tests.kit.subjects import of_net
from tests.kit.vision import planted

GATE = 15.5


def compiled(folder: Path, factor: float, quieter: float = 0.3, **recipe: Any) -> Any:
    """A manifest; what judges is quieter than what chose, so that the same steps are further from float."""
    onnx.save(planted.net(factor=factor), folder / "m.onnx")
    judging = np.concatenate([feed["x"] for feed in planted.feeds(8)])
    np.savez(folder / "judge.npz", x=judging * np.float32(quieter))
    wanted = Recipe(min_sqnr=GATE, verify_data=str(folder / "judge.npz"), **recipe)
    return qcompiler.quantize(
        folder / "m.onnx", data=planted.feeds(24), recipe=wanted, output=folder / "q.onnx"
    ).manifest


def rungs(manifest: Any) -> dict[str, Any]:
    return {one["name"]: one for one in manifest["rungs"]}


def test_the_next_rung_that_helps_takes_the_place_of_giving_layers_back(tmp_path: Path) -> None:
    found = compiled(tmp_path, 8.0)
    first, last = found["tries"]
    assert "15.5 dB was asked for" in first["missed"]
    assert (last["missed"], last["share"], last["looks"]) == ("", first["share"], 2)
    told = rungs(found)
    assert told["other_ranges"]["sqnr_db"] > GATE  # the goal was met without it where the plan was chosen
    assert told["equalize"]["kept"]
    assert told["equalize"]["why"].startswith(f"climbed on, as {MISSED}: channels between convolutions")
    assert not told["smooth_quant"]["tried"]
    assert "climbed on" not in told["smooth_quant"]["why"]
    assert "goes on to methods that were not needed before" in (tmp_path / "q.report.html").read_text(encoding="utf8")


def test_where_no_rung_can_help_layers_go_back(tmp_path: Path) -> None:
    found = compiled(tmp_path, 1.0, quieter=0.02)  # what varies is as loud as the noise: broken
    first, last = found["tries"][0], found["tries"][-1]
    assert last["share"] < first["share"] == 1.0
    told = rungs(found)["equalize"]
    assert not told["kept"]
    assert told["why"].startswith(f"climbed on, as {MISSED}: ")


def test_nothing_is_climbed_again_that_was_tried_or_that_the_user_fixed(tmp_path: Path) -> None:
    standing = of_net("equalize", planted.net(factor=8.0), planted.feeds(24), tmp_path, min_sqnr=GATE)
    subject, asked = standing.subject, replace(standing.asked, gates=Gates(max_drop=0.1))
    missed = Verification(8, (), score=Score("m", 1.0, 0.5, higher_is_better=True))
    assert subject.standing is not None
    assert subject.standing.met

    def after(given: Any = subject, verification: Any = missed, **planning: Any) -> Any:
        return climbed_on(standing.run, given, replace(asked.planning, **planning), asked, verification)

    assert after(verification=None) is subject
    assert after(pick="knee") is subject
    assert after(at=1) is subject
    for standing_now in (
        replace(subject.standing, sqnr_db=0.0),
        replace(subject.standing, behind=("smooth_quant", "fit_weights", "shift")),
        replace(subject.standing, vain=("equalize", "smooth_quant", "fit_weights", "shift")),
    ):
        other = subject.with_(standing=standing_now)
        assert after(other) is other
    climbed = after()
    assert climbed.model is not subject.model
    assert changed(subject, climbed)
    assert not changed(subject, subject)
    assert not changed(subject, subject.with_(standing=subject.standing.raised(3.0, "why")))
    assert climbed.standing.behind == ("equalize",)
    assert climbed.standing.sqnr_db > subject.standing.sqnr_db


def test_what_was_marked_above_the_goal_leaves_no_rung_out_and_is_tried_again_behind_another_model(
    tmp_path: Path,
) -> None:
    standing = of_net("equalize", planted.net(factor=8.0), planted.feeds(24), tmp_path, min_sqnr=GATE)
    was = standing.subject.standing
    assert was is not None
    marked = standing.subject.with_(standing=was.kept("fit_weights", was, anew=False))  # as above the goal
    missed = Verification(8, (), score=Score("m", 1.0, 0.5, higher_is_better=True))
    asked = replace(standing.asked, gates=Gates(max_drop=0.1))
    climbed = climbed_on(standing.run, marked, asked.planning, asked, missed)
    assert climbed.standing is not None
    assert climbed.standing.behind[:2] == ("fit_weights", "equalize")
    assert "climbed on" in standing.run.records["rungs"]["equalize"]["why"]
    assert "fit_weights" in standing.run.records["rungs"]  # asked again: the layers of the other model bear no marks
    assert changed(marked, climbed)


def test_a_rung_behind_the_last_one_that_was_kept_is_not_the_only_one_that_is_left(tmp_path: Path) -> None:
    standing = of_net("equalize", planted.net(factor=8.0), planted.feeds(24), tmp_path, min_sqnr=GATE)
    was = standing.subject.standing
    assert was is not None
    left = {
        ("fit_weights",): ("equalize", "smooth_quant", "shift"),
        ("equalize",): ("smooth_quant", "fit_weights", "shift"),
        ("fit_weights", "shift", "equalize", "fit_weights"): ("smooth_quant", "shift"),
        ("smooth_quant", "shift"): ("fit_weights",),
    }
    assert {behind: climbing.left(replace(was, behind=behind)) for behind in left} == left
    assert climbing.left(replace(was, vain=("smooth_quant",))) == ("equalize", "fit_weights", "shift")
    assert climbing.left(None) == ()
