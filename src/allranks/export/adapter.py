"""An adapter in PEFT's format."""

import json
from pathlib import Path

from safetensors.torch import save_file

from allranks.export.checkpoint import Checkpoint
from allranks.model.adapter import is_trained, saved_name


def write_adapter(checkpoint: Checkpoint, folder: Path, *, base_model: str | None = None) -> None:
    """Write adapter_model.safetensors and adapter_config.json, for `PeftModel.from_pretrained`."""
    # A frozen tensor can be among the saved ones: the second name of a tied weight, or a stored buffer.
    names = [name for name in checkpoint.tensors if is_trained(name)]
    tensors = {saved_name(name): tensor.contiguous() for name, tensor in checkpoint.read(names).items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint.hf / "adapter_config.json").read_text(encoding="utf-8"))
    config["inference_mode"] = True
    base = base_model or config.get("base_model_name_or_path") or checkpoint.config["base_model"]
    # A relative path would be looked for wherever the adapter is used.
    config["base_model_name_or_path"] = str(Path(base).resolve()) if Path(base).is_dir() else base
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
