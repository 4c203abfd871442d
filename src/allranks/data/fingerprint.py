"""The fingerprint of prepared data: a hash over everything its content depends on, and nothing else.

In it: the bytes of the data files, the bytes of the tokenizer's files, the templates' text, the settings, the format's
version. Not in it: paths, file times, the number of processes. The same content elsewhere has the same fingerprint, so
that nodes can compare theirs, and a changed file can never be taken for the old one.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from allranks.config import RunConfig
from allranks.config.dataset_types import is_prompt, template_of
from allranks.data.sources import locate
from allranks.data.templates import named_template_text
from allranks.data.tokenizer import tokenizer_files
from allranks.digests import file_sha256
from allranks.errors import DataError

FORMAT_VERSION = 4  # raise it whenever the same inputs give other blocks

_NOT_CONTENT_OF_SPEC = {"path", "data_files", "revision", "trust_remote_code", "chat_template_jinja", "ds_type"}
_NOT_CONTENT_OF_DATA = {
    "datasets",
    "test_datasets",
    "dataset_prepared_path",
    "dataset_num_proc",
    "pad_to_sequence_len",
    "data_seed",
    "chat_template_jinja",
    # The order of the blocks, which no block depends on.
    "curriculum_sampling",
    "group_by_length",
}


def fingerprint(cfg: RunConfig) -> str:
    """Hex SHA-256 of what `cfg` prepares. All data files are read, once on a node and again when they have changed.

    Errors: `DataError` or `ConfigError` if a file is not there.
    """
    contents = {
        "format": FORMAT_VERSION,
        "datasets": [_dataset(spec) for spec in cfg.data.datasets],
        "test_datasets": [_dataset(spec) for spec in cfg.data.test_datasets or []],
        "data": cfg.data.model_dump(mode="json", exclude=_NOT_CONTENT_OF_DATA),
        "template": named_template_text(cfg.data.chat_template, cfg.data.chat_template_jinja),
        "tokenizer": {path.name: file_sha256(path) for path in tokenizer_files(cfg)},
        "special_tokens": cfg.model.special_tokens and cfg.model.special_tokens.model_dump(mode="json"),
        "tokens": cfg.model.tokens,
        "added_tokens_overrides": cfg.model.added_tokens_overrides,
        # The seed decides which documents are set aside for evaluation, and nothing else.
        "seed": split_seed(cfg) if cfg.data.val_set_size else None,
    }
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def data_files(cfg: RunConfig) -> dict[str, str]:
    """`data: KEY.N: FILE` -> size and digest of every local data file, to tell which of them is not the same elsewhere.

    Errors: as of `fingerprint`. Data sets of the Hub are not in it: the config has their names and revisions.
    """
    found = {}
    for key, specs in (("datasets", cfg.data.datasets), ("test_datasets", cfg.data.test_datasets or [])):
        for number, spec in enumerate(specs):
            for path, _ in locate(spec).files:
                found[f"data: {key}.{number}: {path.name}"] = (
                    f"{path.stat().st_size} bytes, sha256 {_digest(path)[:16]}"
                )
    return found


def split_seed(cfg: RunConfig) -> int:
    """The seed of the evaluation split."""
    return cfg.optimizer.seed if cfg.data.data_seed is None else cfg.data.data_seed


def _dataset(spec: Any) -> dict:
    source = locate(spec)
    settings = spec.model_dump(mode="json", exclude=_NOT_CONTENT_OF_SPEC)
    name = template_of(spec) if is_prompt(spec) and not spec.chat_template_jinja else spec.chat_template
    # The config's own template, by the name jinja, is in the fingerprint anyway.
    name = None if name == "jinja" and not spec.chat_template_jinja else name
    settings["template"] = named_template_text(name, spec.chat_template_jinja)
    if source.hub_id is not None:
        from allranks.data.hub import resolve_commit

        files = spec.data_files
        return settings | {"hub": source.hub_id, "commit": resolve_commit(spec), "data_files": files}
    with ThreadPoolExecutor(8) as threads:  # hashing releases the interpreter lock
        digests = list(threads.map(_digest, [path for path, _ in source.files]))
    return settings | {"files": [(kind, digest) for (_, kind), digest in zip(source.files, digests, strict=True)]}


def _digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(f"data file {path} cannot be read: {error.strerror or error}") from error
