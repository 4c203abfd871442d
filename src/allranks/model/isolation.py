"""Packed documents must not see each other: choose the attention that keeps them apart, refuse models that cannot."""

import importlib.util
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.model import attention, varlen
from allranks.model.batch import TorchBatch
from allranks.model.loss import PackedKwargs
from allranks.model.train_model import TrainModel

# Layer types (`config.layer_types`) whose mixing over time is attention that our function computes in full.
_PLAIN = {"full_attention", "sliding_attention", "attention"}

# The share of the largest output by which a document may differ when its neighbour changes. Leaks are of order 1;
# without one only the order of sums can differ.
_TOLERANCE = 0.02


def choose_attention(
    make: Callable[[str], PreTrainedModel], config: PreTrainedConfig, cfg: RunConfig, device: torch.device
) -> tuple[PreTrainedModel, PackedKwargs, bool]:
    """Make the model with the attention that was asked for, or the fastest that isolates documents.

    Returns the model, how its attention is told about documents (`loss.packed_outputs`), and whether isolation is not
    known from the model's facts and has to be tried on the model (`probe_isolation`).

    Raises:
        ConfigError: the model carries state along the row, so that packed documents would leak into each other; or
            the attention that was asked for cannot run on `device`.
    """
    packs = bool(cfg.data.sample_packing) or cfg.optimizer.micro_batch_size > 1
    asked = cfg.model.attn_implementation
    names = _names(asked, config, device)
    model, name = _make_first(make, names, asked)
    if name == attention.NAME and not model._supports_attention_backend:
        # Not written against the attention interface: it would pass the function by.
        model, name = _make_first(make, names[1:], asked)
    stateful = carries_state(model)
    if packs and stateful:
        raise ConfigError(
            f"{type(model).__name__} carries state along the row ({stateful}), so packed documents would leak into "
            "each other; set sample_packing: false and micro_batch_size: 1"
        )
    if name == attention.NAME:
        return model, "documents", False
    if _is_flash(name):
        return model, "varlen", packs
    if model._supports_attention_backend:
        return model, "", packs
    # Older code builds its own masks and does not look for restarts in position_ids (Falcon): hand it the whole mask.
    return model, "mask" if packs else "", packs


def _names(asked: str | None, config: PreTrainedConfig, device: torch.device) -> list[str]:
    """The attentions to try, the best first. Raises ConfigError for one that cannot run on `device`."""
    plain = _uses_plain_attention(config)
    if asked is None:
        return [attention.NAME] * plain + ["sdpa", "eager"]
    way_out = "remove it: documents are kept apart without a mask anyway"
    if asked == "flex_attention" and device.type == "cpu":
        raise ConfigError(f"attn_implementation: flex_attention has no backward pass on the CPU; {way_out}")
    if _is_flash(asked) and device.type != "cuda":
        raise ConfigError(
            f"attn_implementation: {asked} (flash_attention) runs on CUDA only, and this rank computes on the "
            f"{device.type}; {way_out}"
        )
    if asked == "flash_attention_2" and plain and importlib.util.find_spec("flash_attn") is None:
        # The package is hard to install, and torch brings the same kernel.
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
        return [attention.NAME] * (varlen.is_there() and not capped) + [asked]
    return [asked]


def _is_flash(name: str) -> bool:
    """Whether a name is FlashAttention's, from its package or from the Hub: told of documents by their boundaries."""
    return name.startswith(("flash_attention", "kernels-community/"))


def _make_first(
    make: Callable[[str], PreTrainedModel], names: list[str], asked: str | None
) -> tuple[PreTrainedModel, str]:
    """Make the model with the first attention of `names` that it takes."""
    for name in names:
        try:
            return make(name), name
        except (ValueError, ImportError, KeyError) as error:
            reason = error
    said = " ".join(str(reason).split())[:300]
    raise ConfigError(f"attn_implementation: {asked or names[-1]} does not work: {said}") from reason


def carries_state(model: nn.Module) -> str:
    """Name what in `model` mixes tokens over time beside attention: a recurrence or a convolution; "" if nothing."""
    if getattr(model, "_is_stateful", False):
        return "a recurrent state"
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d):
            return f"the convolution {name}"
    return ""


def probe_isolation(model: TrainModel) -> None:
    """Try on the real weights whether a document's output changes with its neighbour; every rank takes part.

    Raises:
        ConfigError: it does.
    """
    device = model.placement.device
    vocabulary = model.config.get_text_config().vocab_size
    lengths = (5, 4)
    positions = torch.tensor([[*range(lengths[0]), *range(lengths[1])]], device=device)
    outputs = []
    training = model.hf_model.training
    model.module.eval()
    try:
        for first in (1, 7):
            ids = torch.tensor([[*range(first, first + lengths[0]), *range(20, 20 + lengths[1])]], device=device)
            none = positions[0, :0]
            batch = TorchBatch(ids % vocabulary, positions, lengths, none, none, sum(lengths), (sum(lengths),))
            outputs.append(model.logits(batch)[0, lengths[0] :].float())
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{type(model.hf_model).__name__} cannot run packed documents ({' '.join(str(error).split())[:200]}); "
            "set sample_packing: false and micro_batch_size: 1"
        ) from error
    finally:
        model.module.train(training)
    difference = (outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max().clamp(min=1e-6)
    if not difference.item() <= _TOLERANCE:
        raise ConfigError(
            f"{type(model.hf_model).__name__} with attn_implementation {model.config._attn_implementation} lets packed "
            "documents see each other; set sample_packing: false and micro_batch_size: 1"
        )


def _uses_plain_attention(config: PreTrainedConfig) -> bool:
    text = config.get_text_config()
    return set(getattr(text, "layer_types", None) or ()) <= _PLAIN
