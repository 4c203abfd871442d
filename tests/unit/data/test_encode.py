"""Encoding on several processes, which may die at any moment, and what is in memory at a time."""

import os
import re
import signal

import psutil
import pytest

from allranks.data.encode import encode
from allranks.data.plain import CompletionEncoder
from allranks.data.records import Record
from allranks.data.workers import Workers
from allranks.errors import DataError


def records(count):
    return (Record({"text": f"It is {i}."}, lambda i=i: f"here:{i}") for i in range(count))


@pytest.fixture
def encoder(make_config, tokenizer):
    cfg = make_config({"path": "unused.jsonl", "type": "completion"})
    return CompletionEncoder(cfg.data.datasets[0], cfg.data, tokenizer)


def ends_the_process(value):
    if value["text"] == "It is 700.":
        os.kill(os.getpid(), signal.SIGKILL)
    return []


def exits(value):
    os._exit(9)


def raises(value):
    print("what a library prints")
    raise ZeroDivisionError("in the encoder")


def of_children(num_processes):
    return sum(one.status() != psutil.STATUS_ZOMBIE for one in psutil.Process().children()) - num_processes


def test_batches_come_in_the_order_of_the_records(encoder, tokenizer):
    before = of_children(0)
    with Workers(3) as workers:
        assert of_children(3) == before
        for _ in range(2):  # data sets, one after the other
            texts = [tokenizer.decode(batch.tokens) for batch in encode(records(5200), encoder, tokenizer, workers)]
            assert "".join(texts) == "".join(f"It is {i}.<|im_end|>" for i in range(5200))
    assert of_children(0) == before


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            ends_the_process,
            "was killed, most often for want of memory; set dataset_num_proc lower. It had here:500 to here:999",
        ),
        (exits, "ended with exit code 9 while it had here:0 to here:499"),
    ],
)
def test_a_process_that_dies_is_one_clear_error_that_names_its_records(tokenizer, encoder, message):
    before = of_children(0)
    with Workers(2) as workers, pytest.raises(DataError) as raised:
        list(encode(records(5200), encoder, tokenizer, workers))
    assert message in str(raised.value)
    assert of_children(0) == before


@pytest.mark.parametrize("idle", [True, False])
def test_processes_that_are_killed_while_they_wait_are_noticed(encoder, tokenizer, idle):
    def killing():
        for number, record in enumerate(records(9000)):
            if number == 0 if idle else number == 4000:
                for process in psutil.Process().children():
                    process.kill()
            yield record

    with Workers(2) as workers, pytest.raises(DataError, match=r"was killed.* It had here:\d+ to here:\d+"):
        list(encode(killing(), encoder, tokenizer, workers))


@pytest.mark.parametrize("num_processes", [0, 1])
def test_what_an_encoder_raises_is_said_of_its_record(tokenizer, encoder, num_processes):
    with Workers(num_processes) as workers:
        (batch,) = encode(records(3), raises, tokenizer, workers if num_processes else None)
    assert batch.problems[1][0] == "here:1" and len(batch.problems) == batch.num_records == 3
    assert re.match(
        r"it cannot be encoded: ZeroDivisionError: in the encoder \(test_encode.py:\d+\)", batch.problems[1][1]
    )


@pytest.mark.parametrize("num_processes", [0, 1])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": "a \ud83d b"}, r"half of a character (a lone surrogate), which no token stands for: 'a \ud83d b'"),
        ({"text\x1b[2J\n": "a"}, r"no field text; it has text\x1b[2J\n"),
        ({"text": ["deep"]}, "field text: expected text"),
    ],
)
def test_a_text_that_no_tokenizer_takes_is_one_broken_record(tokenizer, encoder, num_processes, value, message):
    deep = value
    for _ in range(150):
        deep = [deep]
    mixed = [Record({"text": "one"}, lambda: "here:0"), Record(value, lambda: "here:1"), Record({"text": deep}, str)]
    mixed.append(Record({"text": [deep, [[[[[[[[deep]]]]]]]]]}, lambda: "here:3"))
    for _ in range(100):
        deep = [deep]
    mixed += [Record({"text": deep}, lambda: "here:4"), Record({"text": "two"}, lambda: "here:5")]
    with Workers(num_processes) as workers:
        (batch,) = encode(iter(mixed), encoder, tokenizer, workers if num_processes else None)
    assert tokenizer.decode(batch.tokens) == "one<|im_end|>two<|im_end|>"
    assert [place for place, _ in batch.problems] == ["here:1", "", "here:3", "here:4"]
    assert message in batch.problems[0][1] and batch.problems[0][1].isprintable()
    assert batch.problems[3][1] == "nested more than 200 levels deep"


def test_batches_are_bounded_by_bytes(encoder, tokenizer):
    sizes = [300_000, 300_000, 300_000, 300_000, 2_000_000, 10, 10]
    large = (Record({"text": "a" * size}, lambda: "here") for size in sizes)
    assert [batch.num_records for batch in encode(large, encoder, tokenizer)] == [3, 1, 1, 2]
