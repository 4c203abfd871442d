"""Floating-point operations of training, and what a device could do at best."""

from __future__ import annotations

# Dense peak of the matrix units in operations a second, (bfloat16/float16, float32 through TF32), from the vendors'
# data sheets (figures "with sparsity" halved). The first name that is part of the device's name counts.
_PEAK: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250e12, 1125e12),
    ("GH200", 989e12, 494e12),
    ("H200", 989e12, 494e12),
    ("H100 PCIe", 756e12, 378e12),
    ("H100 NVL", 835e12, 417e12),
    ("H100", 989e12, 494e12),
    ("A100", 312e12, 156e12),
    ("A800", 312e12, 156e12),
    ("L40S", 362e12, 183e12),
    ("L4", 121e12, 60e12),
    ("A10", 125e12, 62.5e12),
    ("RTX 4090", 165e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
    ("V100", 125e12, 15.7e12),
)


def peak_flops(device_name: str, *, half: bool) -> float | None:
    """Operations a second that the named device reaches at best, or None where it is not known."""
    for name, half_peak, float_peak in _PEAK:
        if name in device_name:
            return half_peak if half else float_peak
    return None


def training_flops_per_token(num_parameters: int, num_trainable: int) -> float:
    """Operations for one token, forward and backward, by parameters only.

    Two for each parameter forward, two for the gradient of its input, two for the gradient of each trainable one
    (Kaplan et al. 2020, arXiv 2001.08361, C = 6 N). Attention over the context is left out, so that the utilisation
    computed from this is a lower bound; so is recomputation, which is no useful work.
    """
    return 4.0 * num_parameters + 2.0 * num_trainable
