"""The loss that keeps a mixture's experts evenly used, and the proof that a model's own loss holds nothing else."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.model.head import replaced

_FLAG = "output_router_logits"
_KEY = "overrides_of_model_config"
# Names by which configs give the number of experts of a layer; a model that makes a router loss mostly says it itself.
_NUM_EXPERTS = ("num_experts", "num_local_experts", "moe_num_experts", "n_routed_experts")


@dataclass(frozen=True)
class RouterLoss:
    """The load-balancing loss of Switch Transformer (arXiv 2101.03961, equations 4 to 6), as transformers makes it.

    Of one block with T tokens and E experts: E * sum over experts of f * P, where f is the share of the block's tokens
    that chose the expert among their `top_k` and P its mean probability, both over all layers together. It is `top_k`
    when the experts are evenly used.

    Each block counts by itself and a step's loss is the mean over its blocks, as DeepSeek's and Megatron's
    sequence-wise balance: so it is the same for any micro-batch size, accumulation and number of ranks. (transformers
    takes a whole micro-batch for one sample, so its loss depends on how large that is; for one block they are equal.)
    """

    coefficient: float
    top_k: int

    def of_blocks(self, router_logits: tuple[Tensor, ...], block_lengths: tuple[int, ...]) -> Tensor:
        """The float32 sum of the loss over the blocks of a row, without `coefficient`; 0 with a graph for no block.

        `router_logits`: of each layer, [T or more, E]. Tokens after the last block are padding.
        """
        num_tokens, num_experts = sum(block_lengths), router_logits[0].shape[-1]
        chosen = torch.zeros(num_tokens, num_experts, device=router_logits[0].device)
        probabilities = torch.zeros_like(chosen)
        # Summed layer by layer: all layers' probabilities at once would be as large as the logits of a vocabulary.
        for logits in router_logits:
            of_layer = F.softmax(logits.to(chosen.device)[:num_tokens], dim=-1)
            best = of_layer.detach().topk(self.top_k, dim=-1).indices
            chosen.scatter_add_(1, best, torch.ones_like(best, dtype=chosen.dtype))
            probabilities = probabilities + of_layer.float()
        total = probabilities.sum() * 0.0
        for ours, theirs in zip(chosen.split(block_lengths), probabilities.split(block_lengths), strict=True):
            rows = len(ours) * len(router_logits)
            total = total + num_experts * (ours.sum(0) / rows * (theirs.sum(0) / rows)).sum()
        return total


def router_loss(model: PreTrainedModel, cfg: RunConfig) -> RouterLoss | None:
    """The router loss that `model` adds to its cross entropy in training; None without.

    Found by asking the model's own code, with body and output layer replaced by chosen numbers, as `logits_spec` does:
    no weight is read. A model whose code does not run on so little is taken to train cross entropy alone.

    Raises:
        ConfigError: the model's own loss is more than that; or a key asks for a loss that the model's code has not.
    """
    wants = bool(getattr(model.config.get_text_config(), _FLAG, False))
    asked = _asked_for(cfg)
    try:
        loss, cross_entropy, balance = _own_loss(model, sharp=False)
    except Exception as error:  # whatever a model's code does not find in so little
        if wants or asked:
            raise ConfigError(
                f"{asked or _FLAG}: the loss of {type(model).__name__} cannot be known from its code "
                f"({' '.join(str(error).split())[:200]}); switch it off in {_KEY}"
            ) from error
        return None
    found = _router_loss(model, balance) if balance is not None else None
    added = found.coefficient * balance if found and balance is not None else 0.0
    if abs(loss - cross_entropy - added) > 1e-4 * max(1.0, abs(loss)):
        raise ConfigError(
            f"{type(model).__name__} trains another loss than the mean cross entropy of its labels "
            f"({loss:.4g} for {cross_entropy + added:.4g} on a try){_suspects(model)}, and this is not supported; "
            f"switch it off in {_KEY}"
        )
    if found is None and asked:
        way_out = f"add `{_FLAG}: true`" if hasattr(model.config, _FLAG) and not wants else "remove it"
        raise ConfigError(f"{_KEY}: {asked} changes nothing in the loss of {type(model).__name__}: {way_out}")
    return found if found and found.coefficient else None


def _asked_for(cfg: RunConfig) -> str:
    """The key of the config that asks for more than cross entropy: a loss's weight, or the router's; "" if none."""
    overrides = dict(cfg.model.overrides_of_model_config or {})
    weights = (key for key, value in overrides.items() if "loss" in key and isinstance(value, int | float) and value)
    return _FLAG if overrides.get(_FLAG) else next(weights, "")


class _BodyOutput(MoeModelOutputWithPast):
    def __getattr__(self, name: str) -> None:
        """Whatever else a model hands on from its body (a cache, an image's states): there is none."""


def _own_loss(model: PreTrainedModel, *, sharp: bool) -> tuple[float, float, float | None]:
    """The loss that `model` makes of chosen numbers, the cross entropy of the same, and its router loss, if any.

    `sharp`: the logits name the right tokens, so that the cross entropy is near 0 and hides nothing.
    """
    head: Any = model.get_output_embeddings()
    # Some name their body otherwise than their checkpoints do (Llama 4).
    body = model.base_model if model.base_model is not model else getattr(model, "model", model)
    if head is None or body is model:
        raise ValueError("it has no output layer of its own")
    vocabulary = getattr(head, "out_features", None) or head.weight.shape[0]
    ids = torch.arange(1, 6)[None] % vocabulary
    following = torch.arange(2, 7)[None] % vocabulary
    numbers = torch.stack([torch.linspace(-2, 2, vocabulary).roll(3 * row) for row in range(5)])[None]
    if sharp:
        numbers = torch.zeros_like(numbers).scatter_(2, following[..., None], 1e4)
    seen = _BodyOutput(last_hidden_state=torch.zeros(1, 5, 3), router_logits=_chosen_routing(_num_experts(model)))
    with replaced(body, lambda *_, **__: seen), replaced(head, lambda *_, **__: numbers.clone()), torch.no_grad():
        made = model(input_ids=ids, labels=ids, use_cache=False)
    logits, loss = made.logits[0].float(), float(made.loss)
    # A few older models leave it to their caller to shift the labels.
    found = [float(F.cross_entropy(logits[: len(labels)], labels)) for labels in (ids[0, 1:], ids[0])]
    cross_entropy = found[1] if math.isclose(loss, found[1], rel_tol=1e-5) else found[0]
    balance = getattr(made, "aux_loss", None)
    return loss, cross_entropy, None if balance is None else float(balance)


def _router_loss(model: PreTrainedModel, balance: float) -> RouterLoss:
    """The way to make `balance`, which the model made of `_chosen_routing`, and its weight in the model's loss."""
    num_experts = _num_experts(model)
    routing = _chosen_routing(num_experts)
    for top_k in range(1, num_experts + 1):
        ours = RouterLoss(1.0, top_k).of_blocks(routing, (5,)).item()
        if abs(ours - balance) <= 1e-5 * abs(balance):
            loss, cross_entropy, _ = _own_loss(model, sharp=True)
            return RouterLoss(_as_written(model, (loss - cross_entropy) / balance), top_k)
    raise ConfigError(
        f"{_FLAG}: {type(model).__name__} balances its experts in a way that is not known here; set it to false in "
        f"{_KEY}"
    )


def _as_written(model: PreTrainedModel, measured: float) -> float:
    """The number of the model's config that was measured to some digits; where there is none, what was measured."""
    numbers = [value for value in model.config.get_text_config().to_dict().values() if isinstance(value, float)]
    return next((number for number in numbers if math.isclose(number, measured, rel_tol=1e-5)), measured)


def _chosen_routing(num_experts: int) -> Any:
    """Router logits of two layers for five tokens, uneven enough to tell one way of counting from another."""
    numbers = torch.linspace(-1, 1, 10 * num_experts)
    return tuple((numbers * 7 * layer).sin().view(2, 5, num_experts)[layer - 1] for layer in (1, 2))


def _num_experts(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    found = (getattr(where, name, None) for where in (model, config) for name in _NUM_EXPERTS)
    return next((number for number in found if isinstance(number, int) and number > 0), 1)


def _suspects(model: PreTrainedModel) -> str:
    """What in the model's config is called a loss and is not 0, in words."""
    config = model.config.get_text_config().to_dict()
    named = [f"{key} {value}" for key, value in config.items() if "loss" in key and value not in (None, 0, False)]
    return f" ({', '.join(named)} in its config)" if named else ""
