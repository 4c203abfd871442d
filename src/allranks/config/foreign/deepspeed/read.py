"""DeepSpeed's JSON file, with the line of every key."""

import json
from pathlib import Path

from allranks.config.config_source import ConfigSource, dotted
from allranks.config.yaml_lines import KeyPath, parse_yaml
from allranks.errors import ConfigError


def read_into(config_source: ConfigSource) -> None:
    """Put the contents of the file that `deepspeed` names, if it names one, in the place of its name.

    From then on the file's lines are where its keys were written. Raises ConfigError naming file, line and key.
    """
    name = config_source.values.get("deepspeed")
    if not isinstance(name, str):
        return
    where = config_source.label(("deepspeed",))
    path = _find(name, config_source.source, where)
    text = path.read_text(encoding="utf-8-sig")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    # JSON is YAML, but for tabs; and of YAML every key's line is known.
    data, lines = parse_yaml(text.replace("\t", " "), str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: expected a JSON object of DeepSpeed's settings (named by {where})")

    def label(written: KeyPath) -> str:
        parts = (written[1:length] for length in range(len(written), 1, -1))
        line = next((lines[part] for part in parts if part in lines), 1)
        return f"{path}:{line}: {dotted(written[1:])}" if written[1:] else f"{path}"

    config_source.replace("deepspeed", data, label)


def _find(name: str, source: str, where: str) -> Path:
    """The file, from here, as all paths of a config are, or else from the config's own folder."""
    here = Path(name).expanduser()
    candidates = [here] if here.is_absolute() else [here, Path(source).parent / here]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    axolotl = "deepspeed_configs/" in name
    hint = " (`axolotl fetch deepspeed_configs` downloads Axolotl's)" if axolotl else ""
    raise ConfigError(
        f"{where}: {name}: no such file, neither here nor in the config's folder{hint}; a mapping does as well: "
        "deepspeed: {zero_optimization: {stage: " + ("2" if "zero2" in name else "1" if "zero1" in name else "3") + "}}"
    )
