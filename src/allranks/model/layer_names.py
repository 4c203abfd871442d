"""Is the class of decoder layers in the config one of the model's? Asked of transformers' source, which need not be
imported for it: before the nodes meet, in place of after they have loaded the model."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from allranks.config import RunConfig
from allranks.errors import ConfigError

_NO_SPLIT = re.compile(r"_no_split_modules\s*=\s*\[([^\]]*)\]")


def refuse_wrong_layer_class(cfg: RunConfig) -> None:
    """Raises ConfigError for a `transformer_layer_cls_to_wrap` that the code of the model does not mention.

    Says nothing where that cannot be known here: of a model that is still to be downloaded, or brings its own code.
    """
    wanted = cfg.parallel.fsdp_settings.transformer_layer_cls_to_wrap
    config = _model_config(Path(cfg.model.base_model)) if wanted else {}
    source = _source(str(config.get("model_type", "")))
    if not wanted or not source or "auto_map" in config:
        return
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    wrong = [name for name in names if not re.search(rf"\b{re.escape(name)}\b", source)]
    if wrong:
        architecture = next(iter(config.get("architectures") or []), config["model_type"])
        found = dict.fromkeys(name for listed in _NO_SPLIT.findall(source) for name in re.findall(r"\w+", listed))
        right = f"; the right value is {', '.join(found)}" if found else ""
        raise ConfigError(
            f"fsdp_config.transformer_layer_cls_to_wrap: {architecture} has no {', '.join(wrong)}{right} (or leave the "
            "key out: it is found)"
        )


def _model_config(folder: Path) -> dict:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _source(model_type: str) -> str:
    """The code of the architecture in the transformers that is installed; "" if there is none."""
    spec = importlib.util.find_spec("transformers") if re.fullmatch(r"[\w-]+", model_type) else None
    if spec is None or not spec.submodule_search_locations:
        return ""
    folder = Path(spec.submodule_search_locations[0], "models", model_type.replace("-", "_"))
    return "".join(path.read_text(errors="replace") for path in sorted(folder.glob("modeling_*.py")))
