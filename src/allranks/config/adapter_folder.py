"""Where the adapter lies that a run goes on from."""

from __future__ import annotations

from pathlib import Path

from allranks.config.sections.adapter import AdapterConfig
from allranks.errors import ConfigError


def adapter_folder(options: AdapterConfig) -> Path | None:
    """`lora_model_dir`, if it is given. Raises ConfigError where no adapter of PEFT's is there."""
    if not options.lora_model_dir:
        return None
    folder = Path(options.lora_model_dir).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(f"lora_model_dir: {folder} holds no adapter_config.json; give a folder that PEFT saved")
    return folder
