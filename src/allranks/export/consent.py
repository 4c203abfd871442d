"""Whether code that lies beside a model may run. Only the command that would run it can say so: what is read from a
run's folder comes from whoever wrote that folder."""

import json
from pathlib import Path

from allranks.errors import UsageError

_CLASSES = ("AutoConfig", "AutoModelForCausalLM")


def runs_its_own_code(folder: Path, *, trained_with_it: bool, consent: bool) -> bool:
    """Whether the model in `folder` is made by the Python code that its config.json names; False: by transformers.

    `trained_with_it`: the run says that it ran such code. That alone is no consent.

    Raises:
        UsageError: it cannot be made without that code, and there is no `consent`.
    """
    named = _named_code(folder)
    if not named or not (trained_with_it or _is_unknown(folder)):
        return False
    if not consent:
        raise UsageError(
            f"{folder}/config.json names Python code of its own ({', '.join(named)}), which would run here. What the "
            "run's folder says is no consent to that: read the code, then give --trust-remote-code"
        )
    return True


def _named_code(folder: Path) -> list[str]:
    named = _config(folder).get("auto_map")
    if not isinstance(named, dict):
        return []
    return [str(named[name]) for name in _CLASSES if named.get(name)]


def _is_unknown(folder: Path) -> bool:
    from transformers import CONFIG_MAPPING

    return _config(folder).get("model_type") not in CONFIG_MAPPING


def _config(folder: Path) -> dict[str, object]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # transformers names what is wrong with it
    return config if isinstance(config, dict) else {}
