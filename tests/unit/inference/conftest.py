"""A tiny model with a tokenizer of whole words and a chat template, and conversations to go with it."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import VOCABULARY, saved_model

TEMPLATE = (
    "{% for m in messages %}{{ 'w12 ' if m['role'] == 'assistant' else 'w11 ' }}"
    "{{ m['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'w12 ' }}{% endif %}"
)
CONVERSATIONS = [("w20 w21", "w30 w31 w32"), ("w22", "w33"), ("w23 w24 w25", "w34 w35 w36 w37 w38 w39")]


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{number}": number for number in range(3, VOCABULARY)}
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<unknown>": 1, "<end>": 2, **words}, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inference") / "base"
    shutil.copytree(saved_model("llama"), folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_data(file: Path, conversations=CONVERSATIONS) -> Path:
    lines = (
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in conversations
    )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(autouse=True)
def _prepared_data_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where `last_run_prepared` is made


def keys_of(base: Path, data: Path, **keys: object) -> dict:
    datasets = [{"path": str(data), "type": "chat_template"}]
    return {"base_model": str(base), "datasets": datasets, "sequence_len": 32, **keys}
