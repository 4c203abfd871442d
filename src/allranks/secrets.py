"""Take secrets out of what is written down: by the names they are given to, by their shape, and those known already."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from allranks.secret_names import is_secret_name

REMOVED = "<removed>"

_SHORTEST_KNOWN = 8  # characters; a shorter "secret" such as `true` would be found everywhere

_SHAPES = re.compile(
    "|".join(
        [
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
            r"\bhf_(?:oauth_)?[A-Za-z0-9]{16,}|\bapi_org_[A-Za-z0-9]{16,}",  # Hugging Face
            r"\bsk-[\w-]{16,}|\b[sr]k_(?:live|test)_\w{10,}",  # OpenAI and others; Stripe
            r"\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}",  # GitHub, GitLab
            r"\b(?:AKIA|ASIA|AROA|AIDA)[0-9A-Z]{16}\b",  # AWS: id of a key
            r"\bAIza[\w-]{35}|\bya29\.[\w-]{10,}|\bGOCSPX-[\w-]{20,}",  # Google
            r"\b[\w-]{3}8Q~[\w.~-]{30,}",  # Azure: client secret
            r"(?<![\w+/-])(?<!sha512:)[A-Za-z0-9+/]{86}==(?![\w+/=])",  # Azure: key of a storage account
            r"\bwandb_v1_\w{16,}|\bnvapi-[\w-]{20,}|\bdapi[0-9a-f]{32}\b|\bgsk_\w{20,}|\bxai-\w{20,}|\bpplx-\w{20,}",
            r"\br8_\w{20,}|\bnpm_\w{20,}|\bpypi-[\w-]{16,}|\bdop_v1_\w{32,}|\bSG\.[\w-]{16,}\.[\w-]{16,}",
            r"\bxox[abeprs]-[\w-]{10,}|\b\d{8,10}:[\w-]{35}\b|\bAGE-SECRET-KEY-1\w{16,}",  # Slack, Telegram, age
            r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*",  # JSON web tokens
            r"(?<=://)[^/\s:@]*:[^/\s]+(?=@)|(?<=://)[^/\s:@]{16,}(?=@)",  # passwords, and tokens as users, in URLs
            r"(?i:(?<=\bbearer )|(?<=\bbasic ))[\w.~+/=-]{8,}",  # HTTP headers
        ]
    ),
    re.DOTALL,
)
_FORTY = re.compile(r"(?<![A-Za-z0-9/+_.-])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=_.-])")
# NAME=VALUE, NAME: VALUE, "NAME": "VALUE", also in the query of a URL. A name is tried from its first sign only, and
# ends with its last: the time grows with the length of a text, not with its square. The probe is read by Python 3.8,
# which has no possessive repeats.
_NAME = re.compile(r"(?<![\w.-])(?P<name>[\w.-]+)(?![\w.-])\\?[\"']?\s*[=:]\s*")
_VALUE = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'|(?:Bearer |Basic )?[^\s&\"',;}]+")


def known_secrets(env: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Values that the environment holds under a secret name: to be removed wherever they are, whatever their shape."""
    return frozenset(
        value
        for name, value in env.items()
        # What is a path names a file, which is no secret.
        if is_secret_name(name) and len(value) >= _SHORTEST_KNOWN and not value.startswith(("/", "~", "./"))
    )


def without_secrets(text: str, known: Collection[str] = ()) -> str:
    """`text` with what is a secret by shape, or known to be one, replaced."""
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, REMOVED)
    text = _SHAPES.sub(REMOVED, text)
    return _FORTY.sub(lambda found: REMOVED if _is_random(found[0]) else found[0], text)


def shaped_secrets(text: str) -> Iterator[tuple[int, int]]:
    """Where a text has what is a secret by its shape: begin and end of each."""
    for found in _SHAPES.finditer(text):
        yield found.span()
    for found in _FORTY.finditer(text):
        if _is_random(found[0]):
            yield found.span()


def without_secret_words(words: Sequence[str], known: Collection[str] = ()) -> list[str]:
    """The same for a command line: also `--password VALUE`, `--password=VALUE` and `env NAME=VALUE`."""
    kept: list[str] = []
    hides_next = False
    for word in words:
        if hides_next and not word.startswith("--"):
            kept.append(REMOVED)
            hides_next = False
            continue
        hides_next = word.startswith("-") and "=" not in word and is_secret_name(word)
        kept.append(without_secrets(_without_assigned(word), known))
    return kept


def without_secret_values(value: Any, known: Collection[str] = ()) -> Any:
    """The same nested value, such as a config, with secrets replaced by the names of keys and by the shape of texts."""
    if isinstance(value, str):
        return without_secrets(value, known)
    if isinstance(value, Mapping):
        return {
            without_secrets(str(key), known): REMOVED
            if _is_scalar(item) and is_secret_name(str(key))
            else without_secret_values(item, known)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secret_values(item, known) for item in value]
    return value


def _without_assigned(text: str) -> str:
    kept, at = [], 0
    for found in _NAME.finditer(text):
        # What is assigned to another name is looked through as well, as in `--env=HF_TOKEN=…`.
        if found.start() < at or not is_secret_name(found["name"].rpartition(".")[2]):
            continue
        if (value := _VALUE.match(text, found.end())) is not None:
            quote = value[0][0] if value[0][0] in "\"'" else ""
            kept += [text[at : found.end()], quote, REMOVED, quote]
            at = value.end()
    return "".join([*kept, text[at:]])


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != ""


def _is_random(text: str) -> bool:
    """Forty signs as in a secret key of AWS; hashes are hexadecimal, paths and names have few capitals and digits."""
    capitals, small, digits = (sum(map(kind, text)) for kind in (str.isupper, str.islower, str.isdigit))
    return min(capitals, small) >= 5 and digits >= 1 and capitals + digits >= 14
