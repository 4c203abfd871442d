"""Floating-point operations of training, and what a device could do at best."""

from __future__ import annotations

from allranks.plan.hardware import find_reported


def peak_flops(device_name: str, *, half: bool) -> float | None:
    """Operations a second that the named device reaches at best, or None where it is not known."""
    device = find_reported(device_name)
    return device.peak(half=half) if device is not None else None


def training_flops_per_token(num_parameters: int, num_trainable: int) -> float:
    """Operations for one token, forward and backward, by parameters only.

    Two for each parameter forward, two for the gradient of its input, two for the gradient of each trainable one
    (Kaplan et al. 2020, arXiv 2001.08361, C = 6 N). Attention over the context is left out, so that the utilisation
    computed from this is a lower bound; so is recomputation, which is no useful work.
    """
    return 4.0 * num_parameters + 2.0 * num_trainable
