"""How many positions a model knows, and whether a config trains longer documents than that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from allranks.config import RunConfig
from allranks.errors import ConfigError

# Names for one number, of different architectures.
_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
# One row of a table for each position: beyond it there is none.
_LEARNED = frozenset({"gpt2", "gpt_neo", "gpt_bigcode", "openai-gpt", "opt", "biogpt"})


def known_positions(config: Mapping[str, Any]) -> int | None:
    """The length up to which a model, by its config.json, was made to tell positions apart; None if it is not said.

    Scaled rotary positions count as they are stretched.
    """
    text = config.get("text_config") or config
    found = next((text[key] for key in _KEYS if isinstance(text.get(key), int) and text[key] > 0), None)
    if found is None or text.get("alibi") or (text.get("attn_config") or {}).get("alibi"):
        return None
    stretched = [_stretched(rope, found) for rope in _scalings(text)]
    return max([found, *stretched])


def position_warning(config: Mapping[str, Any], cfg: RunConfig) -> str | None:
    """What to tell of a `sequence_len` above the model's positions, if it is.

    Raises ConfigError where the model has no such position at all.
    """
    known = known_positions(config)
    asked = {"sequence_len": cfg.data.sequence_len, "eval_sequence_len": cfg.data.eval_sequence_len or 0}
    key = next((key for key, length in asked.items() if known and length > known), None)
    if known is None or key is None:
        return None
    more = f"{key}: {asked[key]} is more than the {known} positions of {cfg.model.base_model} (its config.json)"
    kind = str((config.get("text_config") or config).get("model_type", ""))
    if kind in _LEARNED:
        raise ConfigError(f"{more}, and a {kind} has nothing for those beyond; set {key}: {known}")
    return (
        f"{more}: what a longer document says beyond them is trained at positions that the model has never seen; set "
        f"{key}: {known}, or stretch them by overrides_of_model_config: {{rope_parameters: …}}"
    )


def _scalings(text: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings of rotary positions, by either name; some models have several, by the kind of layer."""
    found = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(found, dict):
        return []
    return [part for part in found.values() if isinstance(part, dict)] or [found]


def _stretched(rope: Mapping[str, Any], positions: int) -> int:
    if rope.get("rope_type", rope.get("type")) in (None, "default"):
        return positions
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    return int((original or positions) * factor) if isinstance(factor, int | float) else positions
