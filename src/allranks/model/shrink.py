"""A small random model of the same architecture as a large one, from its config.json alone."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from allranks.errors import ConfigError

HEAD_DIM = 16  # rotary embeddings take a part of it, down to a quarter, and need an even number
NUM_HEADS = 4  # so that a third and a quarter of them can be shared as keys and values
NUM_EXPERTS = 4
MOST_PARAMETERS = 200_000_000
"""A gigabyte a rank, with its optimizer three; most copies have a tenth, nearly all of it the vocabulary's."""
_FEW_LAYERS = 2  # a first and a last one, of which models treat either apart

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "depth")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_EXPERTS_EACH = ("num_experts_per_tok", "moe_top_k", "moe_topk", "num_experts_per_token", "top_k_experts", "moe_k")
_MODEL_WIDTHS = (
    *("hidden_size", "hidden_size_global", "n_embd", "d_model", "embed_dim", "word_embed_proj_dim"),
    *("input_embedding_size", "output_embedding_size"),
)
_INNER_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size", "d_inner")
_EXPERT_WIDTHS = (
    *("moe_intermediate_size", "shared_expert_intermediate_size", "expert_dim", "intermediate_size_mlp"),
    "shared_intermediate_size",
)
_HEAD_WIDTHS = (
    *("head_dim", "global_head_dim", "d_kv", "kv_channels", "v_head_dim", "qk_head_dim", "rotary_dim"),
    *("linear_key_head_dim", "linear_value_head_dim", "mamba_d_head", "index_head_dim", "q_lora_rank", "kv_lora_rank"),
    "hidden_size_per_layer_input",
)
_OTHERS: dict[str, int] = {
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), HEAD_DIM // 2),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_n_heads": 2 * NUM_HEADS,  # twice the model's width, by mamba_expand
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group"), 1),
    "num_nextn_predict_layers": 0,
    "n_shared_experts": 1,
    "encoder_hash_byte_group_vocab": 1000,  # numbers of hashes, and none of the tokenizer's
}
_NEVER = ("vocab_size", "max_position_embeddings", "n_positions")


@dataclass(frozen=True)
class Shrunken:
    """`config` of the small model; `told`: its sizes and those of the large one, a text each."""

    config: PreTrainedConfig
    told: Sequence[str]


def shrink(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> Shrunken:
    """The smallest of some shrunken copies that the model's own code takes: sizes first, then layers alone.

    The vocabulary and the positions stay, so that the tokenizer and the data fit. Raises ConfigError where the code
    takes none.
    """
    problem: Exception | None = None
    for small in _candidates(config.to_dict()):
        try:
            made = type(config).from_dict(small)
            _try(made, trust_remote_code=trust_remote_code)
        except Exception as error:  # whatever a model's code makes of sizes that it was not written for
            problem = problem or error
            continue
        return Shrunken(made, list(_told(config.to_dict(), made.to_dict())))
    assert problem is not None
    if own := _own_problem(config, trust_remote_code=trust_remote_code):
        raise ConfigError(
            f"base_model: the code of {config.model_type} takes its config.json as little as a small copy of it: "
            f"{_said(own)}; compare it with the one that was published with the model"
        )
    raise ConfigError(
        f"base_model: no small copy of {config.model_type} could be made: {_said(problem)}; a trial with the model "
        "itself is `allranks train CONFIG … --smoke`"
    )


def random_model(config: PreTrainedConfig, *, seed: int = 0, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of `config` with random weights, in float32."""
    config = copy.deepcopy(config)
    config.dtype = torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, dtype=torch.float32)


def _own_problem(config: PreTrainedConfig, *, trust_remote_code: bool) -> Exception | None:
    """Why the model itself cannot be built: a size that a rehearsal made up for it would prove nothing."""
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    except Exception as error:  # as above
        return error
    return None


def _said(problem: Exception) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"


def _try(config: PreTrainedConfig, *, trust_remote_code: bool) -> None:
    """Raises what the model's code raises in a forward and a backward pass, and ValueError for one that is large."""
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    num_parameters = sum(one.numel() for one in built.parameters())
    if num_parameters > MOST_PARAMETERS:
        raise ValueError(f"with {num_parameters / 1e6:,.0f} M parameters it is too large for a rehearsal")
    model = random_model(config, trust_remote_code=trust_remote_code).train()
    tokens = torch.arange(8).view(1, 8) % max(2, getattr(config.get_text_config(), "vocab_size", 8))
    model(input_ids=tokens, use_cache=False).logits.float().logsumexp(-1).sum().backward()


def _candidates(original: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """From the smallest on: small heads, heads as wide as they were, and only fewer layers."""
    yield _small(original, HEAD_DIM)
    width, heads = _first(original, _MODEL_WIDTHS), _first(original, _HEADS)
    kept = original.get("head_dim") or (width // heads if width and heads else None)
    if isinstance(kept, int) and kept > HEAD_DIM:
        yield _small(original, kept)
    yield _small(original, None)


def _small(original: dict[str, Any], head_dim: int | None) -> dict[str, Any]:
    """A copy with fewer layers, and with heads of so many numbers; None leaves the widths. Of a model with parts (text,
    vision) in each of them."""
    small = copy.deepcopy(original)
    small.pop("quantization_config", None)  # random numbers are stored as they are
    for key, value in original.items():
        if isinstance(value, dict) and key.endswith("_config") and key in small:
            small[key] = _small(value, head_dim)
    if head_dim is not None:
        _shrink_widths(original, small, head_dim)
    _shrink_layers(original, small)
    if head_dim is not None:
        _shrink_single_layers(original, small, head_dim)
    return small


def _shrink_widths(original: dict[str, Any], small: dict[str, Any], head_dim: int) -> None:
    hidden = head_dim * NUM_HEADS
    widths = {**dict.fromkeys(_MODEL_WIDTHS, hidden), **dict.fromkeys(_INNER_WIDTHS, 2 * hidden)}
    widths |= {**dict.fromkeys(_EXPERT_WIDTHS, hidden), **dict.fromkeys(_HEAD_WIDTHS, head_dim)}
    widths |= _OTHERS if head_dim == HEAD_DIM else dict.fromkeys(("n_group", "num_expert_group", "topk_group"), 1)
    heads = _first(original, _HEADS)
    for key, value in original.items():
        if key in _NEVER or isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            continue
        if key in _HEADS:
            small[key] = min(value, NUM_HEADS)
        elif key in _KEY_VALUE_HEADS:
            # As many groups as there were, as far as so few heads have them: all, some, or one.
            small[key] = min(value, NUM_HEADS) if heads and value >= heads else 1 if value == 1 else 2
        elif key in _EXPERTS:
            small[key] = min(value, NUM_EXPERTS)
        elif key in _EXPERTS_EACH:
            small[key] = min(value, 2)
        elif key in widths:
            small[key] = min(value, widths[key])
    if isinstance(expand := original.get("expand"), int) and "head_dim" in original and "num_heads" in original:
        small["num_heads"] = expand * small["hidden_size"] // small["head_dim"]  # of a state space, which is wider
    if "qk_rope_head_dim" in original and "head_dim" in original:
        small["head_dim"] = small["qk_rope_head_dim"]  # which heads are rotated by
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(small.get(key), dict):
            _shrink_rotation(small[key], original, head_dim)


def _shrink_single_layers(original: dict[str, Any], small: dict[str, Any], head_dim: int) -> None:
    """Sizes that single layers have of their own."""
    for name, value in small.items():
        if not _is_of_layers(value, sys.maxsize):
            continue
        for number, own in value.items():
            if isinstance(own, dict):
                whole = {**original, **own}
                shrunken = copy.deepcopy(whole)
                _shrink_widths(whole, shrunken, head_dim)
                small[name][number] = {key: shrunken[key] for key in own}


def _shrink_rotation(rope: dict[str, Any], original: dict[str, Any], head_dim: int) -> None:
    """Lists that have an entry for each frequency: half of a head's size each."""
    for key, value in rope.items():
        if isinstance(value, dict):
            _shrink_rotation(value, original, head_dim)
        elif key == "mrope_section" and isinstance(value, list):
            # Of three kinds of position, which have all frequencies together.
            first = head_dim // 2 - (len(value) - 1) * 2
            rope[key] = [first, *([2] * (len(value) - 1))]
        elif key in ("long_factor", "short_factor") and isinstance(value, list):
            factor = rope.get("partial_rotary_factor") or original.get("partial_rotary_factor") or 1.0
            rope[key] = value[: int(head_dim * factor) // 2]


def _shrink_layers(original: dict[str, Any], small: dict[str, Any]) -> None:
    """Two layers, or one of each kind that the model has, with the lists that have an entry for each."""
    key = next((name for name in _LAYERS if isinstance(original.get(name), int)), None)
    if key is None:
        return
    total: int = original[key]
    kept = _kept_layers(original, total)
    for name in _LAYERS:
        if original.get(name) == total:
            small[name] = len(kept)
    for name, value in original.items():
        if isinstance(value, list) and len(value) == total > 0 and name in small:
            small[name] = [value[index] for index in kept]
    for name, value in original.items():
        if name in small and _is_of_layers(value, total):
            # By their numbers, of which json makes strings.
            numbers = {one: kept.index(int(one)) for one in value if int(one) in kept}
            small[name] = {type(one)(number): value[one] for one, number in numbers.items()}
    if isinstance(dense := original.get("first_k_dense_replace"), int) and dense > 0:
        small["first_k_dense_replace"] = 1
    for name in ("mlp_only_layers", "no_rope_layers", "cross_attention_layers", "full_attention_idxs"):
        if isinstance(value := small.get(name), list) and len(original[name]) != total:
            small[name] = [index for index in value if index < len(kept)]
    if isinstance(shared := original.get("num_kv_shared_layers"), int) and shared > 0:
        small["num_kv_shared_layers"] = 0
    if isinstance(window := original.get("max_window_layers"), int) and window >= total:
        small["max_window_layers"] = len(kept)


def _is_of_layers(value: object, total: int) -> bool:
    """Whether it is what single layers have of their own."""
    return isinstance(value, dict) and bool(value) and all(str(k).isdecimal() and int(k) < total for k in value)


def _kept_layers(original: dict[str, Any], total: int) -> list[int]:
    kept = list(range(min(total, _FEW_LAYERS)))
    for name in ("layer_types", "layers_block_type", "mlp_layer_types", "block_types", "attention_types"):
        kinds = original.get(name)
        if isinstance(kinds, list) and len(kinds) == total:
            seen = {str(kinds[index]) for index in kept}
            for index, kind in enumerate(kinds):
                if str(kind) not in seen:
                    seen.add(str(kind))
                    kept.append(index)
    # A stretch of experts after dense layers, or every second layer: the first that differs has to be there.
    for name in ("decoder_sparse_step", "moe_layer_frequency", "interleave_moe_layer_step"):
        if isinstance(step := original.get(name), int) and 1 < step <= total:
            kept.append(step - 1)
    return sorted(set(kept)) if total else []


def _told(large: dict[str, Any], small: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in large:
        before, after = large[key], small.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _told(before, after, f"{prefix}{key}.")
        elif isinstance(before, int) and isinstance(after, int) and before != after:
            yield f"{prefix}{key} {before} -> {after}"


def _first(table: dict[str, Any], names: Sequence[str]) -> int | None:
    return next((table[name] for name in names if isinstance(table.get(name), int)), None)
