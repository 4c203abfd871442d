"""An adapter added to its base model."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.quantization_config import Mxfp4Config

from allranks.errors import UsageError
from allranks.export.adapter import write_adapter
from allranks.export.checkpoint import Checkpoint
from allranks.export.compare_merged import base_tensors, compare_merged
from allranks.export.consent import runs_its_own_code
from allranks.export.full import empty_model, stored_dtype, write_configs
from allranks.export.quantized import quantization_method
from allranks.model.generation import generation_config


def write_merged_model(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    base_model: str | None,
    max_shard_bytes: int,
    report: Callable[[str], None],
) -> None:
    """Load the base model onto the CPU, let PEFT merge the adapter into it, and write it as `save_pretrained` does.

    The product is computed in the dtype that is written.

    Raises:
        UsageError: the base model is not where it was.
    """
    meta = empty_model(checkpoint)
    dtype = dtype or stored_dtype(meta)
    base = base_model or checkpoint.config["base_model"]
    source = source_of(checkpoint, moved=base_model is not None)
    # The base model's own may be one that transformers does not read or write.
    generation, _ = generation_config(checkpoint.hf, meta.config)
    if Path(base).is_dir():
        runs_its_own_code(
            Path(base),
            trained_with_it=bool(checkpoint.config.get("trust_remote_code")),
            consent=checkpoint.trust_remote_code,
        )
    report(f"loading the base model {base}")
    loading = {**source, "generation_config": generation}
    model = load_base(meta, base, dtype, loading)
    with tempfile.TemporaryDirectory(dir=folder.parent) as adapter:
        write_adapter(checkpoint, Path(adapter), base_model=base)
        merged = merge(PeftModel.from_pretrained(model, adapter), model)
    merged = merged.to(dtype)  # type: ignore[arg-type]
    _untie(merged)
    merged.generation_config = generation
    report("writing the merged model")
    merged.save_pretrained(folder, max_shard_size=max_shard_bytes)
    write_configs(checkpoint, merged, folder, dtype)
    del model, merged  # what is compared next needs the memory
    if stored_plain := _plain_folder(base, source):
        before = base_tensors(checkpoint, stored_plain)
    else:  # read and made plain once more, without an adapter near it
        before = load_base(empty_model(checkpoint), base, dtype, loading).state_dict().get
    compare_merged(checkpoint, before, folder, dtype, report)


def source_of(checkpoint: Checkpoint, *, moved: bool) -> dict[str, Any]:
    """What `from_pretrained` needs besides the name of a run's base model. `moved`: it is not where it was."""
    return {
        "revision": None if moved else checkpoint.config.get("revision_of_model"),
        "trust_remote_code": checkpoint.trust_remote_code and bool(checkpoint.config.get("trust_remote_code")),
    }


def load_base(meta: PreTrainedModel, base: str, dtype: torch.dtype, source: dict[str, Any]) -> PreTrainedModel:
    """The base model that a run's adapter fits. `meta`: the run's own model, without weights, which `empty_model` made.

    Raises:
        UsageError: the base model is not where it was.
    """
    config = meta.config
    rows = config.get_text_config().vocab_size
    named = {key: source[key] for key in ("revision", "trust_remote_code")}
    try:
        # The config of the training (base_model_config, overrides_of_model_config), at the size of the base's weights.
        config.get_text_config().vocab_size = min(rows, _stored_rows(base, named, rows))
        model = _base(base, config, dtype, source)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the base model {base} cannot be loaded ({' '.join(str(error).split())[:200]}); "
            "give the place where it is now with --base-model"
        ) from error
    if model.config.get_text_config().vocab_size < rows:
        # Tokens were added for training; the adapter brings the grown embeddings whole.
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def merge(with_adapter: PeftModel, base: PreTrainedModel) -> PreTrainedModel:
    """Add the adapter to the weights of `base`, the model in it, and take it off."""
    _part_tied(base)
    return with_adapter.merge_and_unload(safe_merge=True)


def _base(base: str, config: PreTrainedConfig, dtype: torch.dtype, source: dict[str, Any]) -> PreTrainedModel:
    """The base model in `dtype`. One that is stored quantized comes with its own config, and is made plain."""
    own = (
        AutoConfig.from_pretrained(base, trust_remote_code=source["trust_remote_code"])
        if (Path(base) / "config.json").is_file()
        else None
    )
    quantized = getattr(own, "quantization_config", None)
    if not quantized:
        return AutoModelForCausalLM.from_pretrained(base, config=config, dtype=dtype, **source)
    if quantization_method(quantized) == "mxfp4":
        source = {**source, "quantization_config": Mxfp4Config(dequantize=True)}
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **source)
        model.__dict__.pop("_weight_conversions", None)
        return model
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **source)
    plain = model.dequantize(dtype=dtype)
    # How the packed weights were read, which `save_pretrained` would try to do backwards.
    plain.__dict__.pop("_weight_conversions", None)
    return plain


def _stored_rows(base: str, source: dict[str, Any], rows: int) -> int:
    """The vocabulary size of the base model's weights; `rows`, the training's, where it has no config of its own."""
    try:
        return AutoConfig.from_pretrained(base, **source).get_text_config().vocab_size
    except (OSError, ValueError):
        return rows


def _part_tied(model: PreTrainedModel) -> None:
    """Give the output layer a weight of its own where an adapter changes one of it and the embedding, which are tied:
    in training the other computed on with the base's, and merging changes what both share."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    if ends[1] is None or not any(isinstance(end, BaseTunerLayer) for end in ends):
        return
    first, last = (getattr(end, "base_layer", end) for end in ends)
    if first.weight is last.weight:
        last.weight = torch.nn.Parameter(last.weight.detach().clone(), requires_grad=False)


def _plain_folder(base: str, source: dict[str, Any]) -> Path | None:
    """The folder of the base model's files, which was read just now; None where they are quantized by bitsandbytes."""
    folder = Path(base)
    if not folder.is_dir():
        folder = Path(snapshot_download(base, revision=source["revision"], local_files_only=True))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    quantized = config.get("quantization_config")
    return folder if not quantized or quantization_method(quantized) == "mxfp4" else None


def _untie(model: PreTrainedModel) -> None:
    """Say so in the config where training parted an embedding and an output layer that were one."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    text = model.config.get_text_config()
    if last is None or not text.tie_word_embeddings or torch.equal(first.weight, last.weight):  # type: ignore[arg-type]
        return
    text.tie_word_embeddings = False
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
