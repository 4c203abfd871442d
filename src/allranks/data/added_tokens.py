"""The added tokens (`<|im_start|>` and the like) of prepared data: a base model may never have seen them."""

from typing import Any

import numpy as np

from allranks.config import RunConfig
from allranks.data.blocks import BlockSet, afresh
from allranks.data.tokenizer import new_tokens

# Tokens that are looked at together: large enough that the cost of a call vanishes.
_CHUNK = 1 << 22


def added_tokens(cfg: RunConfig, blocks: BlockSet, tokenizer: Any) -> dict[str, Any]:
    """`added_tokens`: text -> id of those that occur in `blocks`; `new_tokens`: the texts that only the config adds."""
    ids = dict(tokenizer.get_added_vocab())
    seen = np.zeros(max([*ids.values(), -1]) + 1, bool)
    for first in range(0, len(blocks.tokens), _CHUNK):
        chunk = afresh(blocks.tokens)[first : first + _CHUNK]
        seen[chunk[chunk < len(seen)]] = True
    there = {text: index for text, index in ids.items() if seen[index]}
    return {"added_tokens": there, "new_tokens": [text for text in new_tokens(cfg) if text in there]}
