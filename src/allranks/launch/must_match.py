"""What every node must have alike for a run: config, model, code and packages, as flat texts that can be compared."""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import allranks
from allranks.config import RunConfig
from allranks.errors import UsageError
from allranks.launch.manifest import package_versions, without_secret_values
from allranks.listing import few
from allranks.model.files import CANNOT_BE_READ, model_files


def what_must_be_equal(cfg: RunConfig | None) -> dict[str, str]:
    """Field -> value, as text; of the config every key by its dotted name. Secrets are left out."""
    facts = {"python": platform.python_version()}
    facts |= {f"package {name}": version for name, version in package_versions().items()}
    facts["code of allranks"] = f"sha256 {_code_sha256()[:16]}"
    if cfg is not None:
        # What must be equal of the network is compared as variables: names of interfaces and adapters are a node's own.
        flat = {key: value for key, value in cfg.flat().items() if key != "network"}
        facts |= dict(_flat(without_secret_values(flat)))
        facts |= model_files(cfg)
    return facts


def refuse_unreadable(facts: Mapping[str, str]) -> None:
    """Raises UsageError for files of the model that `what_must_be_equal` could not read: all nodes may be alike."""
    unread = [f"{name} {value}" for name, value in facts.items() if value.startswith(CANNOT_BE_READ)]
    if unread:
        raise UsageError(
            f"{few(unread, 4)}, as user {os.getuid()}: let this user read it (`ls -l`, chmod, chown), or copy it to a "
            "folder of your own"
        )


def _code_sha256() -> str:
    """Of the sources that would run: a version or a commit does not tell of changes made in place."""
    package = str(Path(allranks.__file__).parent)
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(package):  # pathlib takes twice the time, on every node of every start
        folders.sort()
        for name in sorted(file for file in files if file.endswith(".py")):
            content = Path(folder, name).read_bytes()
            digest.update(f"{folder[len(package) :]}/{name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
