"""Where a key means something else than in Axolotl, or has another default: said at the start.

Everything here is in docs/axolotl.md, too, with the reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allranks.config.run import RunConfig

if TYPE_CHECKING:
    from allranks.config.rules import Given


def differences(config: RunConfig, given: Given) -> list[str]:
    """One line for each difference that this config meets. A resolved config, which says everything, meets none."""
    notes = []
    if given.values.get("sequence_len") is None:
        notes.append(
            f"sequence_len is not given: {config.data.sequence_len} tokens, where Axolotl takes 512, for which most "
            "conversations are too long"
        )
    if given.values.get("batch_size") is not None and given.values.get("gradient_accumulation_steps") is None:
        at = given.label(("batch_size",))
        notes.append(f"{at}: {config.optimizer.batch_size} blocks on all ranks together; in Axolotl on each")
    precision = config.precision
    asks_for_bf16 = precision.bf16 is True or given.values.get("bf16") == "auto"
    is_sharded = config.parallel.uses_fsdp or config.deepspeed.settings
    if config.adapter.adapter is None and asks_for_bf16 and not precision.low_precision_weights and not is_sharded:
        at = given.label(("bf16",))
        notes.append(
            f"{at}: computes in bfloat16 and keeps weights and optimizer state in float32, so that small updates are "
            "not lost; Axolotl keeps both in bfloat16 here, 8 bytes a parameter less: `bf16: full`"
        )
    return notes
