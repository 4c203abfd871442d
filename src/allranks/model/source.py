"""Where the base model comes from: a local folder or the Hugging Face Hub, and its config."""

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.observe.libraries import shown

# Some repositories hold the same weights twice, in the author's own format beside safetensors.
_NEVER = ["original/*", "consolidated*", "*.pth", "*.bin", "*.gguf", "*.onnx"]
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


def model_folder(cfg: RunConfig) -> Path:
    """Return the folder that holds the base model's files, downloading them from the Hub where it is an id.

    Raises:
        ConfigError: neither a folder nor an id on the Hub.
    """
    name = cfg.model.base_model
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ConfigError(f"base_model: {name} is not a folder; give a folder with config.json or an id on the Hub")
    from huggingface_hub import snapshot_download

    try:
        with shown():
            found = snapshot_download(
                name, revision=cfg.model.revision_of_model, allow_patterns=_WANTED, ignore_patterns=_NEVER
            )
    except (OSError, ValueError) as error:  # the Hub's errors derive from these, network failures too
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"base_model: {name} is neither a folder here nor to be had from the Hub: {first_line}"
        ) from error
    return Path(found)


def read_config(cfg: RunConfig, folder: Path) -> PreTrainedConfig:
    """Read the model's config and apply `overrides_of_model_config`.

    Raises:
        ConfigError: no config.json, an architecture that transformers does not know, or an unknown override.
    """
    where = Path(cfg.model.base_model_config).expanduser() if cfg.model.base_model_config else folder
    overrides = dict(cfg.model.overrides_of_model_config or {})
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=cfg.model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{where}/config.json cannot be used: {' '.join(str(error).split())[:400]}") from error
    for key, value in overrides.items():
        if not hasattr(config, key):
            raise ConfigError(f"overrides_of_model_config: {type(config).__name__} has no {key}")
        setattr(config, key, value)
    return config
