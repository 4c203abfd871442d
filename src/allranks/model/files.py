"""What a model, tokenizer or adapter is on this node, file by file, to be compared with the other nodes'.

Needs no torch. What a digest covers is said in its text:

- `sha256`: every byte. Of all small files, and of weights that are together at most WHOLE_BYTES; read once
  on a node and kept (digests.py), so that neither its other ranks nor the next start read them again.
- `sha256 of samples`: of larger weights the list of tensors, and the beginning, middle and end of every tensor: another
  model, or any tensor that was trained, converted or cut off differs there. A single flipped bit may not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from allranks.config import RunConfig
from allranks.digests import file_sha256

WHOLE_BYTES = 2 * 2**30
"""About a second of hashing and, cold, a few of reading."""

SAMPLE_BYTES = 4096
"""One page: a disk reads no less."""

_SMALL_BYTES = 2**20
"""Files up to here are always read whole."""

_LARGEST_HEADER_BYTES = 100_000_000  # safetensors' own limit
_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", "*.tiktoken")
_SHOWN_DIGITS = 16


CANNOT_BE_READ = "cannot be read: "
"""How the description of such a file begins."""


def model_files(cfg: RunConfig, *, from_hub: bool = False, every_byte: bool = False) -> dict[str, str]:
    """`KEY: FILE` -> size and digest, for every folder that the config names a model, tokenizer or adapter in.

    A name of the Hub counts only with `from_hub`, and then what lies of it in this machine's cache: before a download
    one node has it and another has not. A file that cannot be read is said as its value. `every_byte`: of large
    weights, too, which takes as long as reading them does.
    """
    found: dict[str, str] = {}
    for key, name in {
        "base_model": cfg.model.base_model,
        "base_model_config": cfg.model.base_model_config,
        "tokenizer_config": cfg.model.tokenizer_config,
        "lora_model_dir": cfg.adapter.lora_model_dir,
    }.items():
        folder = Path(name).expanduser() if name else None
        if name and from_hub and folder is not None and not folder.is_dir():
            folder = _cached_snapshot(name, cfg.model.revision_of_model)
        if folder is not None and folder.is_dir():
            found |= {f"{key}: {file}": described for file, described in _described(folder, every_byte).items()}
    return found


def stored_config(cfg: RunConfig) -> dict[str, Any]:
    """The model's config.json with `overrides_of_model_config`, as a run would read it; empty where it is not here yet,
    or no JSON."""
    found = config_json(cfg)
    return cfg.model.overridden(found) if found else {}


def config_json(cfg: RunConfig) -> dict[str, Any]:
    """The model's config.json, of `base_model_config` where that is given; empty likewise."""
    name, revision = cfg.model.base_model, cfg.model.revision_of_model
    if cfg.model.base_model_config:
        name, revision = cfg.model.base_model_config, None
    at = Path(name)
    try:
        if not at.exists():
            at = _cached_snapshot(name, revision) or at
        found = json.loads((at / "config.json" if at.is_dir() else at).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the Hub's own, of what is no name there, derive from it
        return {}  # whoever reads the model says what is wrong with it
    return found if isinstance(found, dict) else {}


def _described(folder: Path, every_byte: bool) -> dict[str, str]:
    files = sorted({file for pattern in _PATTERNS for file in folder.glob(pattern) if file.is_file()})
    weights = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
    return {file.name: _describe(file, whole=every_byte or weights <= WHOLE_BYTES) for file in files}


def _describe(file: Path, *, whole: bool) -> str:
    try:
        size = file.stat().st_size
        if whole or size <= _SMALL_BYTES or file.suffix != ".safetensors":
            kind, digest = "sha256", file_sha256(file)
        else:
            kind, digest = "sha256 of samples", sampled_sha256(file)
    except OSError as error:
        return f"{CANNOT_BE_READ}{error.strerror}"
    return f"{size} bytes, {kind} {digest[:_SHOWN_DIGITS]}"


def sampled_sha256(file: Path) -> str:
    """SHA-256 over a safetensors file's header and the first, middle and last SAMPLE_BYTES of every tensor in it."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for start, end in _parts(opened, size, digest):
            last = max(start, end - SAMPLE_BYTES)
            for position in sorted({start, (start + last) // 2, last}):
                opened.seek(position)
                digest.update(opened.read(min(SAMPLE_BYTES, end - position)))
    return digest.hexdigest()


def _parts(opened: BinaryIO, size: int, digest: hashlib._Hash) -> Iterator[tuple[int, int]]:
    """Where each tensor begins and ends; of what is no safetensors file, a thousand equal parts."""
    num_bytes = int.from_bytes(opened.read(8), "little")
    if num_bytes <= min(size - 8, _LARGEST_HEADER_BYTES):
        header = opened.read(num_bytes)
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            table = json.loads(header)
            spans = [entry["data_offsets"] for name, entry in table.items() if name != "__metadata__"]
            parts = sorted((8 + num_bytes + int(start), 8 + num_bytes + int(end)) for start, end in spans)
            if all(0 <= start <= end <= size for start, end in parts):
                digest.update(header)
                yield from parts
                return
    yield from ((size * i // 1000, size * (i + 1) // 1000) for i in range(1000))


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a Hub model in this machine's cache, if it is there."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit if commit else None
    return snapshot if snapshot is not None and snapshot.is_dir() else None
