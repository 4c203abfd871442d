"""Make room in the vocabulary for tokens that were added to the tokenizer."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from allranks.config import RunConfig
from allranks.errors import ConfigError


def grow_vocabulary(config: PreTrainedConfig, cfg: RunConfig, tokenizer: Any) -> Callable[[PreTrainedModel], set[str]]:
    """Raise `config.vocab_size` where `tokenizer` has more tokens than that, to a multiple of 32 if asked.

    Models often have more rows than tokens; those are used first. Returns a function that names the tensors of a model
    made from `config` that got more rows than its checkpoint has.

    Raises:
        ConfigError: an adapter is trained and the new rows would stay at their first values.
    """
    text = config.get_text_config()
    tokens = 0 if tokenizer is None else len(tokenizer)
    if tokens <= text.vocab_size:
        return lambda model: set()
    rows = text.vocab_size
    multiple = 32 if cfg.model.resize_token_embeddings_to_32x else 1
    text.vocab_size = -(-tokens // multiple) * multiple

    def grown(model: PreTrainedModel) -> set[str]:
        called = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        names = [called[id(end)] for end in ends if end is not None]
        # All of them, also where they are tied: rows that stay as they began are in no file that is exported.
        if cfg.adapter.adapter and not set(names) <= {*(cfg.adapter.lora_modules_to_save or ())}:
            raise ConfigError(
                f"the tokenizer has {tokens} tokens and the model {rows} embeddings: the new ones must be trained; set "
                f"lora_modules_to_save: [{', '.join(names)}], or add no tokens"
            )
        return vocabulary_tensors(model)

    return grown


def vocabulary_tensors(model: PreTrainedModel) -> set[str]:
    """The names of the tensors that have a row for each token."""
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    return {
        f"{name}.{attribute}"
        for name, module in model.named_modules()
        if id(module) in ends
        for attribute, _ in module.named_parameters(recurse=False)
    }
