"""A file whose function builds a module with two inputs and two outputs."""

from __future__ import annotations

from pathlib import Path

BUILD = """
import torch

class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv1d(3, 8, 3, padding=1)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, signal, gain):
        hidden = self.drop(self.first(signal)).relu()
        return {"energy": hidden.mean(dim=1), "peak": hidden.amax(dim=(1, 2)) * gain}

def build():
    return Layers(), {"signal": torch.ones(1, 3, 20), "gain": torch.ones(1)}, AXES
"""


def written(folder: Path, text: str) -> str:
    (folder / "net.py").write_text(text)
    return f"{folder / 'net.py'}:build"
