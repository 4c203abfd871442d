"""The file that `accelerate config` writes and every `accelerate launch` reads where no other is named."""

import os
from collections.abc import Mapping
from pathlib import Path

from allranks.config.yaml_lines import read_yaml
from allranks.errors import ConfigError


def default_file(env: Mapping[str, str] = os.environ) -> Path:
    """Where it is, or would be (accelerate 1.15, commands/config/config_args.py)."""
    cache = Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    return Path(env.get("HF_HOME") or cache).expanduser() / "accelerate" / "default_config.yaml"


def default_machines(env: Mapping[str, str] = os.environ) -> int:
    """How many machines it says that there are; 1 where it says nothing, or nobody could read it."""
    path = default_file(env)
    try:
        machines = str(read_yaml(path)[0].get("num_machines")) if path.is_file() else "1"
    except (ConfigError, OSError):
        return 1
    return int(machines) if machines.isdecimal() else 1
