"""An adapter in PEFT's format."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftConfig, inject_adapter_in_model
from safetensors.torch import save_file

from allranks.errors import CheckpointError
from allranks.export.checkpoint import Checkpoint
from allranks.export.compare import compare_adapter
from allranks.export.full import empty_model
from allranks.model.adapter import is_trained, refuse_named_module, saved_name
from allranks.model.complete import adapter_problems, shape_problems


def write_adapter(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    base_model: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Write adapter_model.safetensors and adapter_config.json, for `PeftModel.from_pretrained`.

    Raises:
        CheckpointError: the adapter is not whole: tensors, or rows of one, are missing.
    """
    # A frozen tensor can be among the saved ones: the second name of a tied weight, or a stored buffer.
    names = [name for name in checkpoint.tensors if is_trained(name)]
    _check_names(checkpoint, names)
    trained = checkpoint.read(names)
    random_start = not checkpoint.config.get("lora_model_dir")
    _refuse(checkpoint, adapter_problems(trained, checkpoint.read_squares(), random_start=random_start))
    tensors = {saved_name(name): tensor.contiguous() for name, tensor in trained.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint.hf / "adapter_config.json").read_text(encoding="utf-8"))
    config["inference_mode"] = True
    base = base_model or config.get("base_model_name_or_path") or checkpoint.config["base_model"]
    # A relative path would be looked for wherever the adapter is used.
    config["base_model_name_or_path"] = str(Path(base).resolve()) if Path(base).is_dir() else base
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    compare_adapter(checkpoint, folder / "adapter_model.safetensors", tensors, report)


def _check_names(checkpoint: Checkpoint, names: list[str]) -> None:
    """Compare the tensors in the checkpoint with those that PEFT makes for this adapter, without making any."""
    config = PeftConfig.from_pretrained(str(checkpoint.hf))
    refuse_named_module(config, checkpoint.hf)
    model = empty_model(checkpoint)
    with torch.device("meta"):
        inject_adapter_in_model(config, model)
    want = {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if is_trained(name)}
    have = {name: tuple(checkpoint.tensors[name][0]) for name in names}
    _refuse(checkpoint, shape_problems(have, want))


def _refuse(checkpoint: Checkpoint, problems: list[str]) -> None:
    if problems:
        raise CheckpointError(
            f"the adapter in {checkpoint.path} is not whole: {'; '.join(problems[:4])}; export an earlier checkpoint "
            "with --step, or train on from one"
        )
