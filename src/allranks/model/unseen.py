"""Tokens that a base model has never seen, and whose rows an adapter leaves as they are."""

import torch
from transformers import PreTrainedModel

from allranks.config import RunConfig
from allranks.model.source import model_folder
from allranks.model.weights import StoredTensor, find_weights, read_rows

# A row that was never trained has shrunk to nothing, or never was more: below this part of the usual length.
_NOTHING = 0.01
_SAMPLED_ROWS = 64


def unseen_tokens(cfg: RunConfig, model: PreTrainedModel, used: dict[str, int], new: list[str]) -> str | None:
    """What to tell the user of an adapter's run whose data has tokens that the base model has never seen; else None.

    used: text -> id of the added tokens that the data has; new: those of them that only the config adds. Others count
    as unseen where their rows of the stored embedding are close to zero, or equal to each other's.
    """
    names = {id(module): name for name, module in model.named_modules()}
    ends = [names.get(id(end), "") for end in (model.get_input_embeddings(), model.get_output_embeddings())]
    last = [name.rpartition(".")[2] for name in ends if name]
    wanted = cfg.adapter.lora_target_modules or []
    trained = {*(cfg.adapter.lora_modules_to_save or []), *([wanted] if isinstance(wanted, str) else wanted)}
    if not used or not ends[0] or last[0] in trained or cfg.adapter.lora_model_dir:
        return None
    stored = find_weights(model_folder(cfg)).get(f"{ends[0]}.weight")
    unseen = {*new, *(_untrained(stored, used) if stored else ())}
    if not unseen:
        return None
    shown = ", ".join(token for token in used if token in unseen)
    return (
        f"the data has tokens that the base model has never seen: {shown}. The adapter leaves {' and '.join(last)} as "
        f"they are, so that the model cannot learn them: set lora_modules_to_save: [{', '.join(last)}], or "
        "start from a model that was trained on this chat template"
    )


def _untrained(embedding: StoredTensor, used: dict[str, int]) -> list[str]:
    """The tokens whose rows carry nothing: shorter than a hundredth of the usual, or the same as another's."""
    rows = embedding.shape[0]
    usual = torch.stack([_row(embedding, index) for index in range(0, rows, max(1, rows // _SAMPLED_ROWS))])
    least = usual.norm(dim=1).median() * _NOTHING
    own = {text: _row(embedding, index) for text, index in used.items() if index < rows}
    return [
        text
        for text, row in own.items()
        if row.norm() <= least or any(text != other and torch.equal(row, same) for other, same in own.items())
    ]


def _row(stored: StoredTensor, index: int) -> torch.Tensor:
    out = torch.empty(stored.shape[1:], dtype=torch.float32)
    read_rows(stored, index, out)
    return out
