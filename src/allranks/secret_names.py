"""Is what is called so a secret? The one rule for names of variables, config keys and options."""

from __future__ import annotations

import re

_SECRET = frozenset(
    [
        *("secret", "password", "passwd", "passphrase", "passcode", "pwd", "credential", "cred", "authorization"),
        *("bearer", "cookie", "psk", "jwt", "pat", "sig", "signature"),
    ]
)
# Written together with what stands before them: PGPASSWORD, clientsecret.
_SECRET_ENDINGS = ("secret", "password", "passwd", "passphrase")
# `key` is harmless in many names; after one of these words it is not. Nor is `token`, written together with one.
_OWNERS = frozenset(
    [
        *("api", "access", "account", "auth", "private", "secret", "service", "shared", "signing", "encryption"),
        *("master", "ssh", "deploy", "license", "storage", "admin", "write", "read", "sharedaccess"),
        *("hf", "hub", "bot", "bearer", "refresh", "session", "oauth", "user", "client", "gh", "github", "gitlab"),
    ]
)
# Tokens of a vocabulary, and counts of them: by the word before, or the word behind.
_BEFORE_TOKEN = frozenset(
    [
        *("pad", "bos", "eos", "unk", "cls", "sep", "mask", "eot", "eod", "eom", "start", "end", "boi", "eoi"),
        *("image", "audio", "video", "prefix", "suffix", "special", "added", "extra", "additional", "stop", "reserved"),
        *("max", "min", "num", "total", "per", "new", "next", "target", "prompt", "completion", "input", "output"),
        *(
            "train",
            "eval",
            "batch",
            "supervised",
            "seen",
            "unseen",
            "ignored",
            "generated",
            "real",
            "padded",
            "average",
            "mean",
        ),
        *("trained", "untrained", "embed", "thinking", "context", "chunk", "add"),
    ]
)
_BEHIND_TOKEN = frozenset(
    [
        *("id", "ids", "type", "types", "count", "counts", "per", "seen", "length", "lengths", "budget", "limit"),
        *("classification", "accuracy", "mask", "name", "names", "override", "overrides", "embedding", "embeddings"),
    ]
)
_SHELLS_FOLDERS = ("pwd", "oldpwd")
_WORD_BEGINS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9.]+")


def is_secret_name(name: str) -> bool:
    """Whether what is called so (a variable, a config key, an option) is a secret: HF_TOKEN, --hub-token, apiKeys.

    Case, separators and plurals make no difference. What could be either counts as a secret.
    """
    return any(_is_secret(part) for part in name.split("."))


def _is_secret(name: str) -> bool:
    words = [word for part in _WORD_BEGINS.split(name) if (word := part.lower().rstrip("0123456789"))]
    if "".join(words) in _SHELLS_FOLDERS:
        return False
    singular = [word[:-1] if word.endswith("s") and not word.endswith("ss") else word for word in words]
    for index, word in enumerate(singular):
        if word in _SECRET or word.endswith(_SECRET_ENDINGS):
            return True
        for noun in ("key", "token"):
            if word != noun and word.endswith(noun) and word[: -len(noun)] in _OWNERS:
                return True
        if word == "key" and index > 0 and singular[index - 1] in _OWNERS:
            return True
        if word == "token" and words != ["tokens"] and not _is_of_a_vocabulary(words, index):
            return True
    return False


def _is_of_a_vocabulary(words: list[str], index: int) -> bool:
    before = words[index - 1] if index > 0 else ""
    behind = words[index + 1] if index + 1 < len(words) else ""
    return before in _BEFORE_TOKEN or behind in _BEHIND_TOKEN
