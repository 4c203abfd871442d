"""The small model of a rehearsal on disk: its config, random weights, and the user's own tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.observe import libraries_aside

# What is read of a model beside its weights: its config, its tokenizer, its code.
_SMALL = ("*.json", "*.model", "*.txt", "*.jinja", "*.py", "*.tiktoken", "additional_chat_templates/*")
_LARGE = ("*.index.json", "*.safetensors", "*.bin", "*.pth", "*.gguf", "original/*", "onnx/*")


def write_model(cfg: RunConfig, folder: Path, *, seed: int = 0) -> Sequence[str]:
    """Write a small random copy of the base model into `folder`; returns the sizes that are not the large one's.

    No weights are read, and of a model on the Hub none are downloaded. Raises ConfigError.
    """
    with libraries_aside():
        from allranks.model.shrink import random_model, shrink
        from allranks.model.source import read_config

        source = _without_weights(cfg.model.base_model, cfg.model.revision_of_model, "base_model")
        if cfg.model.base_model_config:
            where = _without_weights(cfg.model.base_model_config, None, "base_model_config")
            cfg = replace(cfg, model=cfg.model.model_copy(update={"base_model_config": str(where)}))
        trust = cfg.model.trust_remote_code
        small = shrink(read_config(cfg, source), trust_remote_code=trust)
        folder.mkdir(parents=True)
        tokenizer = source
        if cfg.model.tokenizer_config:
            tokenizer = _without_weights(cfg.model.tokenizer_config, None, "tokenizer_config")
        for pattern in _SMALL:
            for file in tokenizer.glob(pattern):
                if file.is_file() and not any(file.match(large) for large in _LARGE):
                    target = folder / file.relative_to(tokenizer)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
        for file in source.glob("*.py"):
            shutil.copyfile(file, folder / file.name)
        random_model(small.config, seed=seed, trust_remote_code=trust).save_pretrained(folder)
        return small.told


def _without_weights(name: str, revision: str | None, key: str) -> Path:
    """The folder of a model, or what a snapshot from the Hub has of it beside its weights. Raises ConfigError."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ConfigError(f"{key}: {name} is not a folder; give a folder with config.json or an id on the Hub")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, revision=revision, allow_patterns=list(_SMALL), ignore_patterns=list(_LARGE))
    except (OSError, ValueError) as error:  # the Hub's errors derive from these
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{key}: {name} is neither a folder here nor to be had from the Hub: {said}") from error
    return Path(found)
