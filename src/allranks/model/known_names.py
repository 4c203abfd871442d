"""Names in the config that the model has to know: its class of decoder layers, entries of its config.json. Asked of
transformers' source, which need not be imported for it: before the nodes meet, in place of after they have loaded the
model."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.model.files import stored_config

_NO_SPLIT = re.compile(r"_no_split_modules\s*=\s*\[([^\]]*)\]")
_OF_ALL_CONFIGS = (
    "configuration_utils.py",
    "modeling_rope_utils.py",
    "backbone_utils.py",
    "utils/hub.py",
    "integrations/heterogeneity/configuration_utils.py",
)
"""What the config of every architecture inherits."""


def refuse_wrong_layer_class(cfg: RunConfig) -> None:
    """Raises ConfigError for a `transformer_layer_cls_to_wrap` that the code of the model does not mention.

    Says nothing where that cannot be known here: of a model that is still to be downloaded, or brings its own code.
    """
    wanted = cfg.parallel.fsdp_settings.transformer_layer_cls_to_wrap
    config = stored_config(cfg) if wanted else {}
    source = _source(config.get("model_type"), "modeling")
    if not wanted or not source or "auto_map" in config:
        return
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if wrong := _not_in(source, names):
        architecture = next(iter(config.get("architectures") or []), config["model_type"])
        found = dict.fromkeys(name for listed in _NO_SPLIT.findall(source) for name in re.findall(r"\w+", listed))
        right = f"; the right value is {', '.join(found)}" if found else ""
        raise ConfigError(
            f"fsdp_config.transformer_layer_cls_to_wrap: {architecture} has no {', '.join(wrong)}{right} (or leave the "
            "key out: it is found)"
        )


def refuse_unknown_overrides(cfg: RunConfig, config: Mapping[str, Any]) -> None:
    """Raises ConfigError for an entry of `overrides_of_model_config` that neither the model's config.json, `config`,
    nor the code of its config mentions; likewise."""
    overrides = cfg.model.overrides_of_model_config or {}
    source = _source(config.get("model_type"), "configuration", *_OF_ALL_CONFIGS) if overrides else ""
    if not source or "auto_map" in config:
        return
    if wrong := _not_in(source, [key for key in overrides if key not in config]):
        raise ConfigError(
            f"overrides_of_model_config: the config of {config['model_type']} has no {', '.join(wrong)}; "
            "write the entry as its config.json does, or leave it out"
        )


def _not_in(source: str, names: list[str]) -> list[str]:
    return [name for name in names if not re.search(rf"\b{re.escape(name)}\b", source)]


def _source(model_type: object, kind: str, *of_all: str) -> str:
    """The code of the architecture in the transformers that is installed, with files `of_all`; "" if there is none."""
    known = isinstance(model_type, str) and re.fullmatch(r"[\w-]+", model_type)
    spec = importlib.util.find_spec("transformers") if known else None
    if spec is None or not spec.submodule_search_locations:
        return ""
    root = Path(spec.submodule_search_locations[0])
    name = str(model_type).replace("-", "_")
    while "_" in name and not (root / "models" / name).is_dir():
        name = name.rpartition("_")[0]  # gemma3_text lies beside gemma3
    own = sorted((root / "models" / name).glob(f"{kind}_*.py"))
    shared = [root / name for name in of_all if own and (root / name).is_file()]
    return "".join(path.read_text(errors="replace") for path in [*own, *shared])
