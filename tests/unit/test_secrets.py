"""Secrets are found by name and by shape, wherever they are written; hashes, names and paths stay."""

import json
import random
import re

import pytest

from allranks import secrets
from allranks.secrets import (
    REMOVED,
    known_secrets,
    without_secret_values,
    without_secret_words,
    without_secrets,
)
from tests.planted_secrets import LOOK_ALIKES, SHAPELESS, SHAPES, core, drawn

NAMES = [
    "hub-token",
    "hf_token",
    "HF_TOKEN",
    "password",
    "wandb-api-key",
    "apiKey",
    "aws.secret.access_key",
    "db_passwd",
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(8))
def test_a_shape_is_seen_anywhere(shape, seed):
    secret = SHAPES[shape](random.Random(f"{shape} {seed}"))
    for text in (secret, f"x {secret} y", f"--note={secret}", f'{{"a": "{secret}"}}', f"https://h/p?x={secret}&y=1"):
        left = without_secrets(text)
        assert core(secret) not in left and REMOVED in left, text
    for nested in ({"a": [secret]}, [{"b": {"c": secret}}], {secret: 1}):
        assert core(secret) not in json.dumps(without_secret_values(nested))
    assert core(secret) not in " ".join(without_secret_words(["run", secret, f"--x={secret}", "--y", secret]))


@pytest.mark.parametrize("shape", [*SHAPES, *SHAPELESS])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_tells_whatever_the_shape(shape, name):
    secret = (SHAPES | SHAPELESS)[shape](random.Random(f"{shape} {name}"))
    if "\n" not in secret:
        for words in (
            [f"--{name}", secret, "--seed", "7"],
            [f"--{name}={secret}", "--seed", "7"],
            ["env", f"{name}={secret}", "--seed", "7"],
            [f"--env={name}={secret}", "--seed", "7"],
            ["-x", f"{name}={secret}", "--seed", "7"],
            [json.dumps({name: secret}), "--seed", "7"],
            [f"curl -H '{name}: {secret}' host", "--seed", "7"],
        ):
            left = without_secret_words(words)
            assert secret not in " ".join(left), left
            assert left[-2:] == ["--seed", "7"]
    assert without_secret_values({name: secret, "seed": 7}) == {name: REMOVED, "seed": 7}
    assert without_secret_values({"kwargs": [{name: secret}]}) == {"kwargs": [{name: REMOVED}]}


@pytest.mark.parametrize("shape", [*SHAPES, *SHAPELESS])
def test_what_the_environment_calls_a_secret_is_removed_everywhere(shape):
    secret = (SHAPES | SHAPELESS)[shape](random.Random(shape))
    known = known_secrets({"WANDB_API_KEY": secret, "HOME": "/root", "GIT_TOKEN": "short", "HF_TOKEN_PATH": "/a/token"})
    assert known == {secret}
    assert secret not in without_secrets(f"a{secret}b", known)
    assert secret not in json.dumps(without_secret_values({"note": [f"see {secret}"]}, known))
    assert secret not in " ".join(without_secret_words(["--note", f"x{secret}"], known))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://user:pass@host/x", f"https://{REMOVED}@host/x"),
        ("redis://:p%40ss@host:6379", f"redis://{REMOVED}@host:6379"),
        ("https://user:p@ss@host/x", f"https://{REMOVED}@host/x"),
        ("https://0123456789abcdef01@host/x", f"https://{REMOVED}@host/x"),
        ("ssh://git@github.com/a/b", "ssh://git@github.com/a/b"),
        ("Authorization: Bearer abc.def-ghi", f"Authorization: Bearer {REMOVED}"),
        ("authorization: basic dXNlcjpwYXNz", f"authorization: basic {REMOVED}"),
        ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", REMOVED),
    ],
)
def test_urls_headers_and_keys_without_a_prefix(text, left):
    assert without_secrets(text) == left


@pytest.mark.parametrize(
    "word",
    [
        "https://h/x?access_token=abc123&a=1",
        "https://h/x?sv=2024&sig=abc%2F123",
        "https://h/x?X-Amz-Signature=abc123&a=1",
        "AccountName=a;AccountKey=abc123;EndpointSuffix=core",
    ],
)
def test_secrets_in_queries_and_connection_strings(word):
    (left,) = without_secret_words([word])
    assert "abc" not in left and REMOVED in left
    assert left.startswith(word[:11])


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_look_alikes_stay(text):
    assert without_secrets(text) == text
    assert without_secret_words([text, "--revision", text, f"--x={text}"]) == [text, "--revision", text, f"--x={text}"]
    assert without_secret_values({"revision": text, "path": [text]}) == {"revision": text, "path": [text]}


@pytest.mark.parametrize("seed", range(200))
def test_random_hashes_stay(seed):
    digits = drawn(random.Random(seed), "0123456789abcdef", random.Random(seed).choice((32, 40, 64, 128)))
    assert without_secrets(f"commit {digits}, sha {digits.upper()}") == f"commit {digits}, sha {digits.upper()}"


def test_removing_twice_is_removing_once():
    words = ["--hub-token", "x" * 20, "https://a:b@c", "--x=hf_" + "a" * 34]
    once = without_secret_words(words)
    assert without_secret_words(once) == once


def test_a_name_is_tried_from_its_first_sign_only_and_gives_none_back():
    """What makes the time of a long word grow with its length: no second start in it, and no second end."""
    name = secrets._NAME
    word = "aB-c_9." * 100
    assert [at for at in range(len(word)) if name.match(f"{word}=1", at)] == [0]
    backwards, group, ahead, *_ = re._parser.parse(name.pattern)
    assert backwards[0] is re._constants.ASSERT_NOT
    (repeated,) = group[1][3]
    signs = repeated[1][2][0][1]
    assert signs == backwards[1][1][0][1]
    assert ahead == (re._constants.ASSERT_NOT, (1, ahead[1][1])) and ahead[1][1][0][1] == signs


@pytest.mark.parametrize("unit", ["a=", "--env=", "a: ", '"a": "', "a.", "x-", "a   ", "a='", r"\"a\":"])
def test_each_name_of_a_long_word_is_looked_at_once(unit, monkeypatch):
    seen = []
    monkeypatch.setattr(secrets, "is_secret_name", lambda name: seen.append(name))
    word = unit * 20_000
    assert without_secret_words([word]) == [word]
    assert len(seen) <= 20_001 and sum(map(len, seen)) <= len(word)


def test_a_secret_behind_many_names_goes():
    (left,) = without_secret_words(["--env=" * 5000 + "HF_TOKEN=abc123&a=1"])
    assert left == "--env=" * 5000 + f"HF_TOKEN={REMOVED}&a=1"
