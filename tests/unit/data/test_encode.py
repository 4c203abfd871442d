"""Encoding on several processes: what happens when one of them dies."""

import os

import pytest

from allranks.data.encode import encode
from allranks.data.plain import CompletionEncoder
from allranks.data.records import Record
from allranks.errors import DataError


def records(count):
    return (Record({"text": f"It is {i}."}, lambda i=i: f"here:{i}") for i in range(count))


@pytest.fixture
def encoder(make_config, tokenizer):
    cfg = make_config({"path": "unused.jsonl", "type": "completion"})
    return CompletionEncoder(cfg.data.datasets[0], cfg.data, tokenizer)


def test_batches_come_in_the_order_of_the_records(encoder, tokenizer):
    texts = []
    for batch in encode(records(1200), encoder, tokenizer, 3):
        texts.append(tokenizer.decode(batch.tokens))
    assert "".join(texts) == "".join(f"It is {i}.<|im_end|>" for i in range(1200))


def test_a_killed_process_is_one_clear_error(tokenizer):
    with pytest.raises(DataError, match="was killed, most often for want of memory; set dataset_num_proc lower"):
        list(encode(records(10), lambda _: os._exit(9), tokenizer, 2))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_environment_is_left_as_it_was(encoder, tokenizer, monkeypatch, num_processes):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    list(encode(records(3), encoder, tokenizer, num_processes))
    assert "TOKENIZERS_PARALLELISM" not in os.environ
