"""What was measured: one JSON file a cell, raw figures only; every ratio is computed here from them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.subjects import Cell


@dataclass(frozen=True)
class Run:
    """One process: a plain pass or a quantizer.

    Attributes:
        wall_s: The whole process, start of the interpreter and imports included.
        cpu_s: CPU seconds of the same.
        peak_mb: Peak memory of the process or the sum over its process tree, whichever is larger.
        work_s: The same without start and imports; None where the process is an ordinary command.
        error: Why it failed, or "".
        remark: What a reader of the table should know, or "".
        versions: Of the packages that did it.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    work_s: float | None = None
    error: str = ""
    remark: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """A measured cell; `limits` has one plain pass more than `runs`, so that each run has one before and one after."""

    cell: Cell
    machine: dict[str, Any]
    when: str
    load: float
    limits: list[Run] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    float_bytes: int = 0
    bytes: int = 0
    evaluation: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether no run has failed so far."""
        return not any(run.error for run in self.runs)

    @property
    def remarks(self) -> list[str]:
        """Errors and remarks, each once."""
        found = [text for run in self.runs for text in (run.error, run.remark) if text]
        if self.evaluation and "error" in self.evaluation:
            found.append(f"the result does not run: {self.evaluation['error']}")
        return list(dict.fromkeys(found))

    def spent_s(self) -> float:
        """Seconds of quantizing so far."""
        return sum(run.wall_s for run in self.runs)

    def wall_s(self) -> float:
        """Median of the whole process."""
        return median(run.wall_s for run in self.runs)

    def peak_mb(self) -> float:
        """Median of the peaks."""
        return median(run.peak_mb for run in self.runs)

    def like_for_like(self) -> float:
        """Whole process over whole process of the plain pass."""
        return self._ratio(lambda run: run.wall_s, lambda run: run.wall_s)

    def to_pass(self) -> float:
        """Whole process, imports included, over the plain pass without its imports: the hardest comparison."""
        return self._ratio(lambda run: run.wall_s, _work)

    def work_to_pass(self) -> float | None:
        """Both without imports; None for a command, whose imports cannot be told apart."""
        if any(run.work_s is None for run in self.runs):
            return None
        return self._ratio(_work, _work)

    def cpu_ratio(self) -> float:
        """CPU seconds over those of the plain process: less moved by what else the machine does."""
        return self._ratio(lambda run: run.cpu_s, lambda run: run.cpu_s)

    def spread(self) -> tuple[float, float]:
        """Smallest and largest `to_pass` of the repeats."""
        ratios = self._ratios(lambda run: run.wall_s, _work)
        return min(ratios), max(ratios)

    def peak_ratio(self) -> float:
        """Peak over the plain pass's peak."""
        return self.peak_mb() / median(run.peak_mb for run in self.limits)

    def _ratio(self, run: Callable[[Run], float], limit: Callable[[Run], float]) -> float:
        return median(self._ratios(run, limit))

    def _ratios(self, run: Callable[[Run], float], limit: Callable[[Run], float]) -> list[float]:
        around = zip(self.runs, self.limits, self.limits[1:], strict=False)
        return [run(one) / mean((limit(before), limit(after))) for one, before, after in around]

    def write(self, path: Path) -> None:
        """Stores it; the file appears only when it is complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self), indent=1), encoding="utf8")
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """Reads what `write` has stored."""
        data = json.loads(path.read_text(encoding="utf8"))
        data["cell"] = Cell(**data["cell"])
        for name in ("limits", "runs"):
            data[name] = [Run(**one) for one in data[name]]
        return cls(**data)


def _work(run: Run) -> float:
    if run.work_s is None:
        raise ValueError("a command has no time without its imports")
    return run.work_s


def machine() -> dict[str, Any]:
    """What kind of machine this is; no names."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "int8": "avx512_vnni" if "avx512_vnni" in info else "avx_vnni" if "avx_vnni" in info else "none",
    }
