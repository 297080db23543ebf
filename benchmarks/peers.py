"""The other quantizers: where each one's virtual environment is and how it is made.

Each has an environment of its own, because their pins contradict each other (onnxruntime 1.24 against 1.32) and
because an environment shared with qcompiler would show neither's import time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Peer:
    """One quantizer.

    Attributes:
        name: Short name, also of its environment and of `benchmarks/children/NAME.py`.
        title: Name in the tables.
        steps: Requirements, installed step by step: torch goes first, so that no later requirement chooses another.
    """

    name: str
    title: str
    steps: tuple[tuple[str, ...], ...]


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "ort",
            "onnxruntime.quantization",
            (("onnxruntime==1.31.1", "onnx==1.23.2", "numpy==2.4.6", "sympy"),),
        ),
        Peer("modelopt", "NVIDIA Model Optimizer", ((TORCH,), ("nvidia-modelopt[onnx]==0.47.0",))),
        Peer("nncf", "NNCF", ((TORCH,), ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0"))),
    )
}


def home() -> Path:
    """Where the environments are: $QCOMPILER_PEERS, or .cache/peers of the repository."""
    return Path(os.environ.get("QCOMPILER_PEERS") or CACHE / "peers").resolve()


def python(name: str) -> Path:
    """The Python of a peer's environment; it need not exist."""
    return home() / name / "bin" / "python"


def ready(name: str) -> bool:
    """Whether a peer's environment was made to its end with today's requirements."""
    stamp = home() / name / ".installed"
    return stamp.is_file() and stamp.read_text(encoding="utf8") == repr(PEERS[name].steps)


def install(names: Iterable[str] = PEERS) -> None:
    """Makes the environments that are missing or were interrupted.

    Raises:
        subprocess.CalledProcessError: pip failed; its own message is on stderr.
    """
    for name in names:
        if not ready(name):
            _install(PEERS[name])


def _install(peer: Peer) -> None:
    place = home() / peer.name
    place.parent.mkdir(parents=True, exist_ok=True)
    print(f"{peer.title}: installing into {place}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
    pip = [str(python(peer.name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for requirements in peer.steps:
        subprocess.run([*pip, *requirements], check=True)
    (place / ".installed").write_text(repr(peer.steps), encoding="utf8")
