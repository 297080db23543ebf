"""What is measured: a compile with a model, samples and flags, beside the plain pass over the same samples."""

from __future__ import annotations

from dataclasses import dataclass, replace

SAMPLES, TOKENS = 16, 64
TIMES = (1, 4, 16, 64)
DEPTHS = (2, 8, 32)


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        study: What it belongs to.
        name: In its study.
        model: A name of `SHAPES`, or the path of an ONNX file.
        layers: Of a made model, instead of its own number; None for that.
        samples: How many.
        tokens: Of a sample that is made.
        flags: Of `qcompiler quantize`.
        cache: Where results of stages are kept, by a name that rows share; "" for nowhere.
        data: The folder of samples, for the path of an ONNX file.
    """

    study: str
    name: str
    model: str
    samples: int = SAMPLES
    tokens: int = TOKENS
    layers: int | None = None
    flags: tuple[str, ...] = ()
    cache: str = ""
    data: str = ""

    @property
    def key(self) -> str:
        """Of its file."""
        return f"{self.study}.{self.name}"

    def flagged(self, flags: tuple[str, ...], label: str) -> Row:
        """With flags behind its own, under a name that says so."""
        return replace(self, flags=(*self.flags, *flags), name=f"{self.name} {label}".strip())


TINY, ENTROPY = "llama-tiny", ("--calibrator", "entropy")


def _studies() -> dict[str, tuple[Row, ...]]:
    data = [Row("data", f"x{times}", TINY, SAMPLES * times) for times in TIMES]
    depth = [Row("depth", f"x{layers // DEPTHS[0]}", TINY, layers=layers) for layers in DEPTHS]
    memory = [Row("memory", f"{count}", TINY, count, flags=ENTROPY) for count in (64, 4096)]
    second = [
        Row("second", name, TINY, 64, flags=flags, cache="second")
        for name, flags in (
            ("first", ()),
            ("same", ()),
            ("calibrator", ENTROPY),
            ("alpha", ("--smooth-quant", "0.5")),
            ("target", ("--target", "tensorrt-rtx:sm89")),
            ("precision", ("--precision", "int4-weight")),
        )
    ]
    gptq = ("--precision", "int4-weight", "--weight-only-method", "gptq")
    workers = [
        Row("workers", f"{name}-{count}", TINY, 256, flags=(*flags, "--workers", str(count)))
        for name, flags in (("int8", ()), ("gptq", gptq))
        for count in (1, 2)
    ]
    stacks = [Row("stacks", size, f"stack-{size}", 8) for size in ("512x4", "1024x8")]
    large = [Row("large", size, f"stack-{size}", 8) for size in ("2048x8", "2048x16")]
    seven = [
        Row("llama-7b", name, "llama-7b", 8, 128, flags=flags)
        for name, flags in (
            ("w8a8", ("--smooth-quant", "auto", "--qfem", "auto")),
            ("awq", ("--precision", "int4-weight", "--weight-only-method", "awq")),
            ("gptq", gptq),
        )
    ]
    rows = (*data, *depth, *memory, *second, *workers, *stacks, *large, *seven)
    return {study: tuple(row for row in rows if row.study == study) for study in dict.fromkeys(r.study for r in rows)}


STUDIES = _studies()
