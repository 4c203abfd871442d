"""What the machine has: the device, its driver, and the versions of what a run uses."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.parts.part import Place, Row, is_installed

_PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "datasets", "triton", "bitsandbytes", "torchao", "deepspeed"),
    *("liger-kernel", "flash-attn", "kernels", "trl"),
)


def run(place: Place) -> Iterator[Row]:
    """Its first row has `device` (cpu or cuda) and `device_name` among its values."""
    if place.device != "cpu" and torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        told = f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB, compute capability {facts.major}.{facts.minor}"
        yield Row("device", told, values={"device": "cuda", "device_name": facts.name})
        yield Row("CUDA", f"{torch.version.cuda}, driver {_driver()}")
        yield Row("NCCL", ".".join(map(str, torch.cuda.nccl.version())))
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Row("bfloat16", "yes" if has_bfloat16 else "no", "yes", has_bfloat16)
        yield _product_is_right()
    else:
        yield Row("device", "no CUDA device is used", values={"device": "cpu", "device_name": "cpu"})
    yield Row("Python", platform.python_version())
    for package in _PACKAGES:
        try:
            yield Row(package, version(package))
        except PackageNotFoundError:
            yield Row(package, "not installed")
    for module, what in (("torch.nn.attention.varlen", "torch's attention for rows of documents"),):
        yield Row(what, "there" if is_installed(module) else "not in this torch")
    chunks = hasattr(torch.nn, "LinearCrossEntropyOptions")
    yield Row("torch's loss in chunks", "there" if chunks else "not in this torch")


def _driver() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception as error:  # a figure for the reader; the parts that follow need CUDA, not this library
        return f"not known ({type(error).__name__})"


def _product_is_right() -> Row:
    """One product of matrices: a device that cannot do that fails here, not in all parts."""
    left = torch.arange(64.0).view(8, 8)
    found = (left.cuda() @ left.cuda().T).cpu()
    is_right = torch.equal(found, left @ left.T)
    return Row("a product of matrices of small whole numbers", "exact" if is_right else "wrong", "exact", is_right)
