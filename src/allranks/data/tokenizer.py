"""The tokenizer of a run: as the model brings it, with the config's tokens and chat template applied."""

from pathlib import Path
from typing import Any

from allranks.config import RunConfig
from allranks.data.token_names import rename_added_tokens
from allranks.errors import ConfigError
from allranks.observe.libraries import shown

# What decides how a tokenizer works. Everything else beside the weights does not touch the data.
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "qwen.tiktoken",
    "tekken.json",
)
# Templates beside the default one, and code that can be the tokenizer (trust_remote_code).
_PATTERNS = ("additional_chat_templates/*.jinja", "tokenization_*.py")


def load_tokenizer(cfg: RunConfig) -> Any:
    """The tokenizer with `added_tokens_overrides`, `special_tokens`, `tokens` and `chat_template` applied.

    Errors: `ConfigError` if there is none at `tokenizer_config` / `base_model`; `DataError` for the chat template.
    """
    from allranks.data.templates import template_text, template_texts

    tokenizer = _base_tokenizer(cfg)
    if cfg.model.special_tokens is not None:
        tokenizer.add_special_tokens(cfg.model.special_tokens.model_dump(exclude_none=True))
    if cfg.model.tokens:
        tokenizer.add_tokens(list(cfg.model.tokens))
    tokenizer.init_kwargs.setdefault("chat_template", tokenizer.chat_template)
    name, jinja = cfg.data.chat_template, cfg.data.chat_template_jinja
    if (name or jinja) and not template_texts(name, jinja, tokenizer).names:  # of its own it keeps all
        tokenizer.chat_template = template_text(name, jinja, tokenizer)
    return tokenizer


def new_tokens(cfg: RunConfig) -> list[str]:
    """The tokens of `special_tokens` and `tokens` that the tokenizer does not have by itself."""
    special = cfg.model.special_tokens.model_dump(exclude_none=True) if cfg.model.special_tokens else {}
    several = special.pop("additional_special_tokens", [])
    given = list(dict.fromkeys([*special.values(), *several, *(cfg.model.tokens or [])]))
    vocabulary = _base_tokenizer(cfg).get_vocab() if given else {}
    return [token for token in given if token not in vocabulary]


def _base_tokenizer(cfg: RunConfig) -> Any:
    """The tokenizer as the model brings it, with other names for tokens that it has in reserve."""
    from transformers import AutoTokenizer

    name = cfg.model.tokenizer_config or cfg.model.base_model
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=cfg.model.revision_of_model, trust_remote_code=cfg.model.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(_not_loaded(cfg, name, error)) from error
    names = cfg.model.added_tokens_overrides
    return rename_added_tokens(tokenizer, names) if names else tokenizer


def tokenizer_files(cfg: RunConfig) -> list[Path]:
    """The files that define the tokenizer, by name, for the fingerprint. Needs no transformers."""
    name = cfg.model.tokenizer_config or cfg.model.base_model
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _hub_snapshot(cfg, name)
    files = [folder / file for file in _FILES] + [path for glob in _PATTERNS for path in sorted(folder.glob(glob))]
    found = [file for file in files if file.is_file()]
    if not found:
        raise ConfigError(_not_loaded(cfg, name, ValueError(f"the folder holds none of {', '.join(_FILES[:4])}, …")))
    return found


def _hub_snapshot(cfg: RunConfig, name: str) -> Path:
    """The folder of a Hub model's tokenizer files in the local cache, downloaded if they are not there."""
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        no_folder = ValueError("there is no such folder; give one that exists, or a Hub id such as Qwen/Qwen2.5-7B")
        raise ConfigError(_not_loaded(cfg, name, no_folder))
    from huggingface_hub import snapshot_download

    try:
        patterns = [*_FILES, *_PATTERNS]
        with shown():
            return Path(snapshot_download(name, revision=cfg.model.revision_of_model, allow_patterns=patterns))
    except Exception as error:  # many kinds: network, authorisation, a name that is no id
        raise ConfigError(_not_loaded(cfg, name, error)) from error


def _not_loaded(cfg: RunConfig, name: str, error: Exception) -> str:
    key = "tokenizer_config" if cfg.model.tokenizer_config else "base_model"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{cfg.source}: {key}: {name}: no tokenizer can be loaded from there: {reason}"
