"""Which modules an adapter goes to where its config names none: PEFT's own table, which is by the kind of the model."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

_TABLE = "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"
_UNTOLD = ["q_proj", "v_proj"]
"""What it is for most, where PEFT is not here or keeps its table elsewhere."""


def usual_targets(model_type: object) -> str | list[str]:
    """Names of modules, or a pattern; empty where PEFT has none for such a model, and refuses it."""
    table = _table()
    return table.get(str(model_type), []) if table else _UNTOLD


@lru_cache(maxsize=1)
def _table() -> Mapping[str, str | list[str]]:
    """Read, for importing PEFT imports torch."""
    spec = importlib.util.find_spec("peft")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        try:
            statements = ast.parse((Path(folder) / "utils" / "constants.py").read_text(encoding="utf-8")).body
            for one in statements:
                if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == _TABLE:
                    return dict(ast.literal_eval(one.value))
        except (OSError, SyntaxError, ValueError, TypeError):
            continue
    return {}
