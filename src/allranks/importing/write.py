"""An imported config as YAML, with what could not be carried over at its end."""

from typing import Any

import yaml

from allranks.config.run import SECTION_OF, SECTIONS
from allranks.importing.imported import Imported


def written(imported: Imported) -> str:
    """The YAML file: the keys by section, then a comment for each line of `lost` and `notes`."""
    parts = [f"# Imported from {imported.source} ({imported.tool}).\n"]
    for section in SECTIONS:
        keys: dict[str, Any] = {key: value for key, value in imported.flat.items() if SECTION_OF.get(key) == section}
        if keys:
            parts.append(f"# {section}\n" + yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=120))
    for title, lines in (("Could not be carried over", imported.lost), ("Note", imported.notes)):
        if lines:
            parts.append("".join([f"# {title}:\n", *(f"# - {_one_line(line)}\n" for line in lines)]))
    return "\n".join(parts)


def _one_line(text: str) -> str:
    return " ".join(text.split())
