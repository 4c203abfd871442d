"""Encoding on several processes, which may die at any moment, and what is in memory at a time."""

import os
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


def test_what_encoding_raises_comes_out_with_its_place(tokenizer):
    with Workers(1) as workers, pytest.raises(ZeroDivisionError, match="in the encoder") as raised:
        list(encode(records(3), raises, tokenizer, workers))
    assert "in raises" in "".join(raised.value.__notes__)


def test_batches_are_bounded_by_bytes(encoder, tokenizer):
    sizes = [300_000, 300_000, 300_000, 300_000, 2_000_000, 10, 10]
    large = (Record({"text": "a" * size}, lambda: "here") for size in sizes)
    assert [batch.num_records for batch in encode(large, encoder, tokenizer)] == [3, 1, 1, 2]
