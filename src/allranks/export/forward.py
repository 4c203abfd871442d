"""Does what was exported compute what was trained? Its logits, loaded by transformers and PEFT, beside the training's.

That every written tensor is the trained one (`compare`) does not show what the files around them make of it: a config
that lost a setting, an adapter whose scale is another, a tie that a library makes anew.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from allranks.errors import CheckpointError
from allranks.export.as_user import base_is_here, is_stored_quantized, load_as_user, logits_of, move_weights
from allranks.export.checkpoint import Checkpoint
from allranks.export.engine import trained_logits
from allranks.export.full import empty_model
from allranks.export.quantized import quantized_as_trained
from allranks.listing import si_bytes

SMALL_PARAMETERS = 500_000_000
"""Up to so many parameters the logits are compared without being asked: 2 GB of weights in float32, one model in memory
after the other, and some seconds."""

_NUM_TOKENS = 64
# Of the logits' standard deviation. Both sides compute in float32 with the same weights, so only the order of sums
# differs: of order 1e-6 in two layers and 1e-5 in fifty. A wrong norm, scale, tie or tensor is of order 0.01 to 1.
_TOLERANCE = 1e-3
# A merged model in 16 bits was rounded once more than the trained one. How much that may do shows how far the logits
# move when each weight moves by half a unit in its last place, the most that one rounding does: twice that, for the
# adapter's product was rounded too.
_ROUNDINGS = 2.0


def compare_logits(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    kind: str,
    dtype: torch.dtype,
    base_model: str | None,
    asked: bool | None,
    report: Callable[[str], None],
) -> None:
    """Compare the logits of some tokens. Reports one line.

    `kind`: as in `Exported`; `dtype`: that of the written tensors. `base_model`: where that of an adapter is now.
    `asked`: whatever the size (True), never (False), or by size; then a reason not to compare is a line, else an error.

    Raises:
        CheckpointError: they differ, or the folder cannot be loaded.
    """
    if asked is False:
        return
    meta = empty_model(checkpoint)
    num_parameters = sum(parameter.numel() for parameter in meta.parameters())
    if asked is None and num_parameters > SMALL_PARAMETERS:
        report(
            f"logits not compared with the trained model's: it has {num_parameters / 1e9:.2f} billion parameters, "
            f"more than {SMALL_PARAMETERS / 1e9:g}; --compare-logits does it, with "
            f"{si_bytes(4 * num_parameters)} of memory"
        )
        return
    base = base_model or str(checkpoint.config.get("base_model"))
    if checkpoint.is_adapter and asked is None and not base_is_here(checkpoint, base):
        report(f"logits not compared with the trained model's: its base model {base} is not on this machine")
        return

    config = meta.config.get_text_config()
    ids = _tokens(config.vocab_size, getattr(config, "max_position_embeddings", None))
    is_merged = kind == "merged model"
    # Merging adds the adapter to the base model's own weights, also where the run quantized those.
    unquantized = is_merged and quantized_as_trained(checkpoint, dtype) is not None
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as other:
            adapter = folder
            if is_merged and checkpoint.config.get("lora_model_dir"):
                adapter = Path(other)
                from allranks.export.adapter import write_adapter  # PEFT: seconds that a full model need not wait

                write_adapter(checkpoint, adapter, base_model=base)
            trained = trained_logits(
                checkpoint,
                ids,
                num_rows=config.vocab_size,
                weights=folder,
                adapter=adapter,
                base_model=base_model,
                quantized=not unquantized,
                rounded_to=None if checkpoint.is_adapter else dtype,
            )
        unquantized = unquantized and not is_stored_quantized(checkpoint, base)
    except CheckpointError:
        raise
    except Exception as error:  # of whatever library lacks on this machine what the run's had
        if asked:
            raise
        if not checkpoint.is_adapter:
            load_as_user(checkpoint, folder)
        report(f"logits not compared with the trained model's, which cannot be computed here: {_reason(error)}")
        return
    gc.collect()  # the trained model, before the other one comes
    model = load_as_user(checkpoint, folder)
    there = logits_of(model, ids)
    rounding = None
    if is_merged and dtype != torch.float32:
        move_weights(model, dtype)
        rounding = _rms(logits_of(model, ids) - there)
    told = _compared(checkpoint, ids, trained, there, rounding)
    name = str(dtype).removeprefix("torch.")
    told += f"; rounding each weight to {name} moves them by {rounding:.1e}" if rounding is not None else ""
    told += "; both without the run's quantization" if unquantized else ""
    told += "; both with whole experts" if not unquantized and checkpoint.config.get("quantize_moe_experts") else ""
    report(told)


def _tokens(num_rows: int, longest: int | None) -> Tensor:
    """Token ids from all over the vocabulary, and its last ones, where added tokens are."""
    num = min(_NUM_TOKENS, num_rows, longest or _NUM_TOKENS)
    last = num // 4
    spread = torch.linspace(0, num_rows - 1 - last, num - last).long()
    ids = torch.cat([spread, torch.arange(num_rows - last, num_rows)])
    return ids[torch.randperm(num, generator=torch.Generator().manual_seed(0))]


def _compared(checkpoint: Checkpoint, ids: Tensor, trained: Tensor, there: Tensor, rounding: float | None) -> str:
    """Say how far the logits are apart. Raises CheckpointError where it is too far."""
    if not torch.isfinite(trained).all():
        return "logits not compared with the trained model's: those are not all finite"
    spread = float(trained.std())
    allowed = _TOLERANCE * spread + _ROUNDINGS * (rounding or 0.0)
    off = torch.full(trained.shape, torch.inf)
    if there.shape == trained.shape:
        off = (there - trained).abs().nan_to_num(torch.inf)
    distance = float(off.max()) if rounding is None else _rms(off)
    if distance > allowed:
        raise CheckpointError(
            f"what was exported of {checkpoint.path} does not compute what was trained: loaded by transformers, its "
            f"{_where(ids, trained, there, off, allowed)}. Nothing was left in the folder, and the checkpoint is "
            "untouched: please report this"
        )
    kind = "at most" if rounding is None else "in the root mean square"
    return (
        f"logits compared with the trained model's, in float32: those of {len(ids)} tokens are off by {distance:.1e} "
        f"{kind}, and their standard deviation is {spread:.2g}"
    )


def _where(ids: Tensor, trained: Tensor, there: Tensor, off: Tensor, allowed: float) -> str:
    if there.shape != trained.shape:
        return f"logits are {list(there.shape)}, the trained model's {list(trained.shape)}"
    wrong = (off.amax(dim=1) > allowed).nonzero()[:, 0].tolist()
    position, logit = divmod(int(off.argmax()), off.shape[1])
    return (
        f"logits are off by up to {float(off.max()):.3g}, where {allowed:.1g} is allowed and their standard deviation "
        f"is {float(trained.std()):.3g}, at {len(wrong)} of {len(ids)} positions, from position {wrong[0]} on; most at "
        f"position {position} (token {int(ids[position])}) for token {logit}: {float(there[position, logit]):.4g} in "
        f"place of {float(trained[position, logit]):.4g}"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _rms(of: Tensor) -> float:
    return float(of.square().mean().sqrt())
