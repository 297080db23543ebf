"""What a pass must know of the machine that the graph is compiled for, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from qcompiler.errors import UsageError


class DType(StrEnum):
    """Element types that a plan can give to a node.

    The last three are of products that compute in high precision with a weight that is stored in that type.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"
    INT4 = "int4"
    INT8_WEIGHT = "int8-weight"
    INT4_WEIGHT = "int4-weight"
    FP4_WEIGHT = "fp4-weight"

    @property
    def quantized(self) -> bool:
        """Whether values of this type need a scale."""
        return self in (DType.INT8, DType.FP8, DType.INT4) or self.weight_only

    @property
    def weight_only(self) -> bool:
        """Whether only the weight is stored in it and the activation stays as it is."""
        return self in (DType.INT8_WEIGHT, DType.INT4_WEIGHT, DType.FP4_WEIGHT)


@dataclass(frozen=True)
class Target:
    """An engine family, the GPU generations asked for, and what its compiler does with Q/DQ.

    Attributes:
        engine: `tensorrt-rtx`, `tensorrt` or `onnxruntime`.
        sms: compute capabilities such as ("sm89", "sm120"); empty means the engine's own portable default.
        high_precision: type of everything that is not quantized.
        opset: opset that the lowered graph is raised to at least.
        typed_dequantize: DequantizeLinear may carry `output_dtype` (opset 23), which saves a Cast after it.
        conv_transpose: ConvTranspose is fused with Q/DQ (TensorRT-RTX runs it in float without a word).
        quantize_outputs: also quantize what a linear node writes (ONNX Runtime CPU fuses only then).
        quantize_residual: quantize the shortcut of a residual Add (TensorRT fuses it into the convolution).
        share_scales: tensors that Concat and its like join get one scale, so that pairs move through and merge.
        unsigned_activations: activations may be uint8 with a zero point (ONNX Runtime only).
        fp8_per_channel: FP8 weights get a scale per output channel. TensorRT-RTX takes that, but then writes what every
            product and convolution computes in FP32 and scales it in the next kernel: half as many bytes again, for a
            few tenths of a dB, since E4M3 keeps its precision over 15 octaves.
        plugins: shared libraries with operators of the user's, which the engine loads.
    """

    engine: str
    sms: tuple[str, ...] = ()
    high_precision: DType = DType.FP16
    opset: int = 23
    typed_dequantize: bool = True
    conv_transpose: bool = False
    quantize_outputs: bool = False
    quantize_residual: bool = False
    share_scales: bool = True
    unsigned_activations: bool = False
    fp8_per_channel: bool = False
    plugins: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The form that `--target` takes."""
        return f"{self.engine}:{','.join(self.sms)}" if self.sms else self.engine

    @property
    def anywhere(self) -> Target:
        """The same engine, whatever the GPU: what float passes and the rules of placement go by."""
        return replace(self, sms=())

    @property
    def of_its_kind(self) -> Target:
        """The same for all GPUs that have the same formats, which is all that a search knows that compares no times.

        The oldest GPU stands for all that lack FP8.
        """
        return replace(self, sms=RTX_SMS[:1] if lacking_fp8(self) else ())


RTX_SMS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
FIRST_FP8_SM = 89  # Ada; Hopper and Blackwell have it too
FIRST_FP4_SM = 120  # Blackwell
ENGINES = ("tensorrt-rtx", "tensorrt", "onnxruntime")


def parse_target(text: str, high_precision: DType | None = None) -> Target:
    """Reads `tensorrt-rtx:sm89,sm120`, `tensorrt` or `onnxruntime`.

    `high_precision` None means the engine's default: FP16 for both TensorRTs, FP32 for ONNX Runtime.

    Raises:
        UsageError: an unknown engine, or SMs where they mean nothing or cannot be spelled so.
        EngineError: an SM that the engine does not have (SM90 and TensorRT-RTX).
    """
    from qcompiler.errors import EngineError

    engine, _, listed = text.partition(":")
    sms = tuple(dict.fromkeys(sm.strip().lower() for sm in listed.split(",") if sm.strip()))
    if engine not in ENGINES:
        raise UsageError(f"unknown target '{engine}': choose one of {', '.join(ENGINES)}")
    for sm in sms:
        if not (sm.startswith("sm") and sm[2:].isdigit()):
            raise UsageError(f"'{sm}' is not a compute capability: write it like sm89, as in tensorrt-rtx:sm89,sm120")
    if engine == "onnxruntime":
        if sms:
            raise UsageError(f"target 'onnxruntime' takes no compute capability, but '{listed}' was given")
        return Target(
            engine,
            high_precision=high_precision or DType.FP32,
            opset=21,
            typed_dequantize=False,
            conv_transpose=False,
            quantize_outputs=True,
            share_scales=False,  # its kernel for Concat takes a scale for each input
            unsigned_activations=True,
            fp8_per_channel=True,
        )
    if engine == "tensorrt":
        return Target(
            engine,
            sms,
            high_precision or DType.FP16,
            opset=19,
            typed_dequantize=False,
            conv_transpose=True,
            quantize_residual=True,
        )
    for sm in sms:
        if sm not in RTX_SMS:
            raise EngineError(
                f"TensorRT-RTX has no {sm}: it compiles for {', '.join(RTX_SMS)}. "
                "Choose one of these, or '--target tensorrt' on a machine with that GPU."
            )
    return Target(engine, sms, high_precision or DType.FP16)


def lacking_fp8(target: Target) -> tuple[str, ...]:
    """Those of the target's SMs that cannot multiply FP8; a target without SMs is built for those that can."""
    return tuple(sm for sm in target.sms if int(sm[2:]) < FIRST_FP8_SM)


def lacking_fp4(target: Target) -> tuple[str, ...]:
    """Those of the target's SMs that cannot read FP4; a plan for all GPUs is one for some that cannot.

    TensorRT on the GPU of this machine and ONNX Runtime have no SMs here, and are left to say so themselves.
    """
    if target.engine == "tensorrt-rtx" and not target.sms:
        return ("a plan for all GPUs",)
    return tuple(sm for sm in target.sms if int(sm[2:]) < FIRST_FP4_SM)


def require_fp8(target: Target) -> None:
    """Whether FP8 may be asked for.

    ONNX Runtime takes it anywhere; on the CPU it runs such graphs without its optimisations, which break them.

    Raises:
        EngineError: an SM of the target lacks it.
    """
    from qcompiler.errors import EngineError

    without = lacking_fp8(target)
    if not without:
        return
    able = [sm for sm in target.sms if sm not in without] or [f"sm{FIRST_FP8_SM}"]
    raise EngineError(
        f"{' and '.join(without)} cannot compute in FP8, which begins with sm{FIRST_FP8_SM} (Ada): use "
        f"--target {target.engine}:{','.join(able)}, or --precision int8 for GPUs of both kinds."
    )
