"""Smoothing with the alphas that `auto` chooses beside one alpha for all layers, on samples that nothing was fitted to.

    python -m benchmarks.outliers.alphas [--verify-data DATA] [--options "..."] MODEL.onnx=DATA ...

Every compile is a process of its own, with all layers in INT8: none goes back to high precision, so that figures are
of the same work. What else costs nothing where the model runs (fitted weights, shifts) is tried behind all of them.
Figures are dB of the worst view, of all power or of what varies, whichever is less; of a decoder also by how much its
perplexity rises.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.estimate import with_data

ALPHAS: Final = ("off", "0.3", "0.5", "0.7", "0.85", "auto")
ALLOWED_DB: Final = 0.5  # that `auto` may stay behind the best of the others
WHOLE: Final = ("--precision", "auto:int8", "--qfem", "off", "--allow-broken", "--quiet")


@dataclass(frozen=True)
class Reached:
    """What a compile reached where nothing was chosen.

    Attributes:
        sqnr_db: of the worst view.
        rises: by how much the perplexity of a decoder rises, 0.01 for 1 %; None of others.
    """

    sqnr_db: float
    rises: float | None = None

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Reached:
        """From a manifest.

        Raises:
            ValueError: nothing was compared.
        """
        views = [view for view in manifest["verification"]["views"] if view["judged"]]
        figures = [db for view in views for db in (view["sqnr_db"], view["varying_db"]) if db is not None]
        if not figures:
            raise ValueError("no view was compared")
        rises = [view["perplexity"] for view in views if view.get("perplexity") is not None]
        return cls(min(map(float, figures)), max(rises, default=None))

    def __str__(self) -> str:
        return f"{self.sqnr_db:.1f}" if self.rises is None else f"{self.sqnr_db:.1f} ({self.rises:+.2%})"


def behind(found: Mapping[str, Reached]) -> float:
    """By how many dB `auto` stays behind the best of the others; negative where it is ahead of all."""
    return max(one.sqnr_db for alpha, one in found.items() if alpha != "auto") - found["auto"].sqnr_db


def row(name: str, found: Mapping[str, Reached]) -> str:
    """A line of the table."""
    return f"| {' | '.join((name, *(str(found[alpha]) for alpha in ALPHAS), f'{-behind(found):+.1f}'))} |"


def compiled(model: str, data: str, alpha: str, options: Sequence[str]) -> Reached:
    """Quantizes a model in a process of its own.

    Raises:
        CalledProcessError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "m.onnx")
        command = [sys.executable, "-m", "qcompiler", "quantize", model, "--data", data, "-o", str(out)]
        command += ["--smooth-quant", alpha, *WHOLE, *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)
        return Reached.of(json.loads(out.with_suffix(".manifest.json").read_text(encoding="utf8")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 where `auto` stays more than `ALLOWED_DB` behind."""
    parser = argparse.ArgumentParser(description="Alphas that are chosen beside one for all layers.")
    parser.add_argument("models", nargs="+", metavar="MODEL=DATA")
    parser.add_argument("--verify-data", metavar="DATA", help="judge by this, and deal none of the other data for it")
    parser.add_argument("--options", default="", help="more options of quantize")
    asked = parser.parse_args(arguments)
    options = [*shlex.split(asked.options), *(["--verify-data", asked.verify_data] if asked.verify_data else [])]
    print(f"| model | {' | '.join(ALPHAS)} | auto beside the best |")
    print(f"|---|{'---:|' * (len(ALPHAS) + 1)}")
    worst = -float("inf")
    for name, model, data in with_data(asked.models):
        found = {alpha: compiled(model, data, alpha, options) for alpha in ALPHAS}
        print(row(name, found), flush=True)
        worst = max(worst, behind(found))
    return int(worst > ALLOWED_DB)


if __name__ == "__main__":
    sys.exit(main())
