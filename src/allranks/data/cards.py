"""The data card of a folder: the `configs` in its README.md, which say the files of each configuration and split."""

import glob
from pathlib import Path
from typing import Any

from allranks.errors import DataError


def files_by_card(folder: Path, name: str | None) -> tuple[Path, dict[str, list[Path]] | None] | None:
    """(folder, files of each split) of a configuration, as `datasets` reads it from a card; None without a card.

    The files are None where the card names a folder only. name: of the configuration; the only or the default one if
    not given. Errors: `DataError` for a card that cannot be read, and for a configuration that is not in it.
    """
    configs = _configs(folder / "README.md")
    if not configs:
        return None
    by_name = {str(config.get("config_name", "default")): config for config in configs}
    config = by_name.get(name) if name else _default(by_name)
    if config is None:
        asked = f"has no configuration {name!r}" if name else "has several configurations and no default"
        raise DataError(f"data set {folder} {asked}: set name to one of {', '.join(by_name)} (README.md)")
    inner = folder / str(config.get("data_dir", ""))
    data_files = config.get("data_files")
    if data_files is None:
        return inner, None
    return inner, {split: _matches(inner, patterns) for split, patterns in _patterns(data_files, folder).items()}


def _configs(card: Path) -> list[dict[str, Any]]:
    """The `configs` in the head of the card, between two lines of ---."""
    try:
        parts = card.read_text(encoding="utf-8-sig").split("---\n", 2)
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{card} cannot be read: {error}") from error
    if len(parts) < 3 or parts[0].strip():
        return []
    import yaml

    try:
        head = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise DataError(f"{card}: its head is not valid YAML: {' '.join(str(error).split())}") from error
    configs = head.get("configs") if isinstance(head, dict) else None
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []


def _default(by_name: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    if len(by_name) == 1:
        return next(iter(by_name.values()))
    marked = next((config for config in by_name.values() if config.get("default")), None)
    return marked or by_name.get("default")


def _patterns(data_files: Any, folder: Path) -> dict[str, list[str]]:
    """`data_files` of a card: a pattern, patterns, a mapping, or entries of split and path."""
    if isinstance(data_files, list) and all(isinstance(entry, dict) for entry in data_files):
        found = {str(entry.get("split", "train")): entry.get("path") for entry in data_files}
    else:
        found = data_files if isinstance(data_files, dict) else {"train": data_files}
    patterns = {str(split): [value] if isinstance(value, str) else value for split, value in found.items()}
    if not all(isinstance(value, list) and all(isinstance(one, str) for one in value) for value in patterns.values()):
        raise DataError(f"{folder / 'README.md'}: data_files of configs: expected paths by split, found {data_files!r}")
    return patterns


def _matches(folder: Path, patterns: list[str]) -> list[Path]:
    found = [sorted(glob.glob(pattern, root_dir=folder, recursive=True)) for pattern in patterns]  # noqa: PTH207
    return [folder / name for names in found for name in names if (folder / name).is_file()]
