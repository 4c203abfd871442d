"""The logits of an exported folder, loaded as its user will: by transformers, and an adapter by PEFT."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.quantization_config import Mxfp4Config

from allranks.errors import CheckpointError
from allranks.export.checkpoint import Checkpoint
from allranks.export.quantized import plainly_computing, quantization_method, quantized_as_trained
from allranks.listing import few


def load_as_user(checkpoint: Checkpoint, folder: Path) -> Any:
    """The model or the adapter in `folder`, in float32 on the CPU.

    Raises:
        CheckpointError: transformers or PEFT cannot load the folder, or not all of it.
    """
    try:
        is_adapter = (folder / "adapter_config.json").is_file()
        model = _adapter(checkpoint, folder) if is_adapter else _model(checkpoint, folder)
    except CheckpointError:
        raise
    except Exception as error:  # whatever theirs raise, a user would meet it when he loads the folder
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"what was exported of {checkpoint.path} cannot be loaded: {type(error).__name__}: {reason}. Nothing was "
            "left in the folder, and the checkpoint is untouched: please report this"
        ) from error
    model.eval()
    plainly_computing(model)
    return model


@torch.no_grad()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    """The logits [T, vocabulary] of the token ids [T], one document."""
    return model(input_ids=ids[None], use_cache=False).logits[0].float()


@torch.no_grad()
def move_weights(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Move every weight, up or down, by as much as rounding to `dtype` can move it."""
    share = torch.finfo(dtype).eps / 2
    for number, (_, parameter) in enumerate(sorted(model.named_parameters())):
        if parameter.is_floating_point():
            generator = torch.Generator().manual_seed(number)
            for part in parameter.view(-1).split(2**24):  # no second copy of an embedding
                signs = torch.randint(0, 2, part.shape, generator=generator, dtype=torch.int8)
                part.mul_(1 - share + 2 * share * signs)


def is_stored_quantized(checkpoint: Checkpoint, base: str) -> bool:
    """Whether the files of the base model hold quantized weights."""
    config = AutoConfig.from_pretrained(base, **_source(checkpoint, base))
    return bool(getattr(config, "quantization_config", None))


def base_is_here(checkpoint: Checkpoint, base: str) -> bool:
    """Whether an adapter's base model is on this machine: a folder, or in the cache of the Hub's files."""
    if Path(base).expanduser().is_dir():
        return True
    try:
        snapshot_download(base, revision=checkpoint.config.get("revision_of_model"), local_files_only=True)
    except (LocalEntryNotFoundError, OSError, ValueError):
        return False
    return True


def _source(checkpoint: Checkpoint, base: str) -> dict[str, Any]:
    """What `from_pretrained` needs to find the base model: what the run said of it, if it is where it was then."""
    run = checkpoint.config
    folder = Path(str(run.get("base_model"))).expanduser()
    moved = base not in (run.get("base_model"), str(folder.resolve()))
    return {
        "revision": None if moved else run.get("revision_of_model"),
        "trust_remote_code": checkpoint.trust_remote_code and bool(run.get("trust_remote_code")),
    }


def _model(checkpoint: Checkpoint, folder: Path) -> PreTrainedModel:
    trusted = checkpoint.trust_remote_code and bool(checkpoint.config.get("trust_remote_code"))
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=trusted, output_loading_info=True
    )
    model, told = loaded
    _refuse(checkpoint, {kind: sorted(map(str, told[kind])) for kind in told if kind.endswith("_keys")})
    return model


def _adapter(checkpoint: Checkpoint, folder: Path) -> Any:
    from peft import PeftModel

    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    source = _source(checkpoint, base)
    trained = AutoConfig.from_pretrained(checkpoint.hf, trust_remote_code=source["trust_remote_code"])
    num_rows = trained.get_text_config().vocab_size
    loading: dict[str, Any] = {**source, "dtype": torch.float32}
    if checkpoint.config.get("base_model_config") or checkpoint.config.get("overrides_of_model_config"):
        # What an adapter cannot tell its base model, and `export` says so.
        trained.get_text_config().vocab_size = AutoConfig.from_pretrained(base, **source).get_text_config().vocab_size
        loading["config"] = trained
    quantized = quantized_as_trained(checkpoint, torch.float32)
    if quantized is not None and not is_stored_quantized(checkpoint, base):
        loading["quantization_config"] = quantized
    if quantization_method(getattr(AutoConfig.from_pretrained(base, **source), "quantization_config", None)) == "mxfp4":
        loading["quantization_config"] = Mxfp4Config(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(base, **loading)
    if num_rows > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(num_rows, mean_resizing=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with_adapter = PeftModel.from_pretrained(model, str(folder))
    missing = [str(one.message) for one in told if "missing adapter keys" in str(one.message)]
    _refuse(checkpoint, {"missing adapter keys": [text.split("checkpoint:")[-1].strip() for text in missing]})
    return with_adapter


def _refuse(checkpoint: Checkpoint, keys: dict[str, list[str]]) -> None:
    """Raise CheckpointError where a library loaded the folder and left something out, or made something up."""
    found = {kind: names for kind, names in keys.items() if names}
    if found:
        told = "; ".join(f"{kind.replace('_', ' ')}: {few(names, 4)}" for kind, names in found.items())
        raise CheckpointError(
            f"what was exported of {checkpoint.path} is loaded only in part, {told}. Nothing was left in the folder, "
            "and the checkpoint is untouched: please report this"
        )
