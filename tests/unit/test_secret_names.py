"""One rule says which names are secrets: in any case, with any separator, as a plural, with a number behind."""

import re
from pathlib import Path

import pytest

import allranks
from allranks.config.run import SECTION_OF
from allranks.config.unsupported import secret_variable
from allranks.secret_names import is_secret_name

SECRETS = [
    *("hf token", "hugging face hub token", "hub token", "github token", "gh token", "secret token", "api token"),
    *("token", "access token", "use auth token", "bearer token", "max api token", "id token", "my token"),
    *("session token", "personal access token", "actions id token request token", "wandb api key", "openai api key"),
    *("aws secret access key", "access key", "secret key", "azure storage key", "ssh private key", "account key"),
    *("db password", "passwd", "secret", "client secret", "my credential", "db pwd", "nccl psk", "authorization"),
    *("session cookie", "github pat", "x amz signature", "shared access key", "jwt", "ssh key passphrase"),
]
HARMLESS = [
    *("special tokens", "pad token", "eos token id", "add eos token", "eot tokens", "tokenizers parallelism", "tokens"),
    *("max new tokens", "max tokens", "num tokens", "num input tokens seen", "tokens per second", "target tokens"),
    *(
        "tokenizer config",
        "template thinking key",
        "nccl ib pkey",
        "nccl ib pkey value",
        "pwd",
        "oldpwd",
        "key",
        "keys",
    ),
    *("nccl debug", "field messages", "keyboard", "additional special tokens", "added tokens overrides", "sort keys"),
    *("token type ids", "total tokens", "prompt tokens", "token count", "ignored tokens", "max prompt tokens"),
    *("secretary", "compass", "passes", "tokenizer", "detokenize", "keystone", "message property mappings"),
]


def spellings(words):
    """The same name as a variable, a config key, an option, in camel case; each of them again with a number."""
    parts = words.split()
    camel = "".join(part.capitalize() for part in parts)
    names = ["_".join(parts), "-".join(parts), "_".join(parts).upper(), "--" + "-".join(parts), camel]
    names += [camel[:1].lower() + camel[1:], "-".join(part.capitalize() for part in parts), f"model.{'_'.join(parts)}"]
    return [*names, *(f"{name}_2" for name in names if "." not in name)]


@pytest.mark.parametrize("words", SECRETS)
@pytest.mark.parametrize("plural", ["", "s"])
def test_a_secret_is_one_however_it_is_spelt(words, plural):
    for name in spellings(words + plural) if words != "token" or not plural else ["AUTH_TOKENS"]:
        assert is_secret_name(name), name


@pytest.mark.parametrize("words", HARMLESS)
def test_a_harmless_name_stays_visible_however_it_is_spelt(words):
    for name in spellings(words):
        assert not is_secret_name(name), name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "PGPASSWORD",
            "PGPASSWD",
            "MYSQLPASSWORD",
            "clientsecret",
            "apikey",
            "APIKEYS",
            "authtoken",
            "HFToken",
            "hftoken",
        ),
        *("APITokens", "APIKey", "accesskey", "SharedAccessKey", "TOKEN1", "API_KEY_2", "aws.secret.access_key"),
    ],
)
def test_words_written_together(name):
    assert is_secret_name(name)


def test_the_configs_own_keys_and_the_records_own_fields_are_visible():
    assert [key for key in SECTION_OF if is_secret_name(key)] == []
    # Whatever of the package is called something with tokens: a field of an event, a key, an option.
    sources = Path(allranks.__file__).parent.rglob("*.py")
    named = {name for path in sources for name in re.findall(r"[\"'](\w*tokens\w*)[\"']", path.read_text())}
    assert [name for name in sorted(named) if is_secret_name(name)] == []


def test_a_secret_in_a_config_is_told_its_variable():
    assert secret_variable("hub_token") == "HF_TOKEN"
    assert secret_variable("wandb_api_keys") == "WANDB_API_KEYS"
    assert secret_variable("eot_tokens") is None
