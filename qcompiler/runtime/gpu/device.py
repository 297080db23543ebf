"""Runs on a GPU: ONNX Runtime's CUDA provider with its outputs bound, so that they stay where they were computed.

The CPU is what everything is measured on unless somebody asks: results are then the same bytes on every machine. On a
GPU sums are made in another order. What is done for the numbers to stay alike: no TF32, whose mantissa has 10 bits, no
convolution that is chosen by a clock, nothing that adds in an order of its own.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.errors import UsageError
from qcompiler.ir import graph as graphs
from qcompiler.ir import model as models

if TYPE_CHECKING:
    from numpy.typing import NDArray

CPU: Final = "cpu"
CUDA: Final = "cuda"
AUTO: Final = "auto"
CPU_PROVIDER: Final = "CPUExecutionProvider"
_PROVIDERS: Final = {CPU: CPU_PROVIDER, CUDA: "CUDAExecutionProvider"}
_EXACT: Final = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
_SILENT, _WARNINGS = 4, 2  # severities of ONNX Runtime's messages; warnings are its default
_GPUS: Final = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Device:
    """Where a session runs and leaves its outputs.

    Attributes:
        kind: as ONNX Runtime calls it: `cuda`; `cpu` binds outputs in the host's memory.
        index: which of them.
        gpu: what it is called: results of another one may differ in their last bits. Empty where nobody knows.
    """

    kind: str = CUDA
    index: int = 0
    gpu: str = ""

    @property
    def provider(self) -> str:
        """ONNX Runtime's name for what runs the nodes."""
        return _PROVIDERS[self.kind]

    @property
    def providers(self) -> list[str | tuple[str, dict[str, str]]]:
        """What a session is asked for, with its options; what the device has no kernel for runs on the CPU.

        CUDA's own libraries are loaded first, where pip has put them beside ONNX Runtime or torch.
        """
        if self.kind == CPU:
            return [CPU_PROVIDER]
        _load_cuda()
        return [(self.provider, {"device_id": str(self.index), **_EXACT}), CPU_PROVIDER]

    def run(self, session: Any, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        """The outputs in their order: `OnDevice`, or arrays of the host for what is a single number or no float.

        Args:
            session: an ONNX Runtime session on this device.
            outputs: names.
            feeds: by input; arrays, or what an earlier run has left on the device.
        """
        import onnxruntime as ort

        binding = session.io_binding()
        for name, value in feeds.items():
            on = isinstance(value, OnDevice)
            given = value.value if on else ort.OrtValue.ortvalue_from_numpy(np.asarray(value, order="C"))
            binding.bind_ortvalue_input(name, given)
        large = {one.name for one in session.get_outputs() if one.shape and one.type in _FLOATS}
        for name in outputs:
            binding.bind_output(name, *((self.kind, self.index) if name in large else (CPU, 0)))
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        found = zip(outputs, binding.get_outputs(), strict=True)
        return [OnDevice(value, session) if name in large else value.numpy() for name, value in found]


_FLOATS: Final = ("tensor(float)", "tensor(float16)", "tensor(double)")


class OnDevice:
    """A float tensor that lies where it was computed; as an array of numpy it is a copy in the host's memory.

    Attributes:
        value: ONNX Runtime's, which shares its memory with others by DLPack.
    """

    def __init__(self, value: Any, owner: object) -> None:
        """`owner` is the session, which must outlive what it has computed."""
        self.value, self._owner = value, owner

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return tuple(self.value.shape())

    @property
    def ndim(self) -> int:
        """As of an array."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """As of an array."""
        found = graphs.np_dtype(self.value.element_type())
        assert found is not None  # it is a float
        return found

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return int(self.value.tensor_size_in_bytes())

    def __len__(self) -> int:
        """As of an array."""
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """A copy in the host's memory; `copy` is False only for who wants none.

        Raises:
            ValueError: no copy is wanted.
        """
        if copy is False:
            raise ValueError("what lies on a device is an array of the host only by a copy")
        return np.asarray(self.value.numpy(), dtype)


def found(asked: str) -> Device | None:
    """The device that was asked for; None for the CPU as it is always run.

    Args:
        asked: `cpu`, `cuda`, or `auto`: a GPU that works, else the CPU.

    Raises:
        UsageError: `cuda`, and ONNX Runtime cannot use a GPU here.
    """
    if asked == CPU:
        return None
    device = Device(CUDA, gpu=_gpu(0))
    why = _lacking(device)
    if not why:
        return device
    if asked == AUTO:
        return None
    raise UsageError(f"--device {asked}: {why}; or leave --device out, which measures on the CPU")


def _lacking(device: Device) -> str:
    """Why ONNX Runtime cannot run a node there; empty where it can."""
    import onnxruntime as ort

    has = ort.get_available_providers()
    if device.provider not in has:
        return (
            f"ONNX Runtime {ort.__version__} has no {device.provider} here (it has {', '.join(has)}): install "
            "onnxruntime-gpu in place of onnxruntime"
        )
    ort.set_default_logger_severity(_SILENT)  # it would print what is told here
    try:
        session = ort.InferenceSession(_nothing(), providers=device.providers)
    except Exception as error:  # a class of its own for each kind of failure
        return f"ONNX Runtime cannot start its {device.provider} ({' '.join(str(error).split())[:300]})"
    finally:
        ort.set_default_logger_severity(_WARNINGS)
    if device.provider in session.get_providers():
        return ""
    return (
        f"ONNX Runtime {ort.__version__} cannot start its {device.provider}: it finds no NVIDIA GPU, or not the CUDA "
        f"{getattr(ort, 'cuda_version', '') or 'and the cuDNN'} that it was built for (nvidia-smi lists GPUs; pip "
        "install 'onnxruntime-gpu[cuda,cudnn]' brings the libraries)"
    )


@lru_cache(maxsize=1)
def _load_cuda() -> None:
    """Once in a process; whether that was enough shows when a session is opened."""
    import onnxruntime as ort

    with contextlib.redirect_stdout(io.StringIO()):  # where it prints what it does not find
        ort.preload_dlls()


def _nothing() -> bytes:
    """The smallest model there is."""
    x, y = (gs.Variable(name, np.float32, [1]) for name in "xy")
    proto, _ = models.to_proto(gs.Graph([gs.Node("Relu", "nothing", {}, [x], [y])], [x], [y], opset=13))
    content: bytes = proto.SerializeToString()
    return content


def _gpu(index: int) -> str:
    """The name of a GPU, as its driver says; empty where it says none."""
    told = sorted(_GPUS.glob("*/information")) if _GPUS.is_dir() else []
    lines = told[index].read_text("utf8").splitlines() if index < len(told) else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "")
