"""A process that encodes records for `Workers`: `main` is all that it runs."""

import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from typing import Any, BinaryIO

from allranks.parent import die_with_parent
from allranks.quick_imports import import_quickly


def main(parent_pid: int) -> None:
    """Answer requests until there are no more. In and out are standard input and output, in pickles of our own.

    A request is (encoder, tokenizer) for all that follow, or a list of values; the answer to a list is what
    `encode_values` gives, or the exception that it raised.
    """
    die_with_parent(parent_pid=parent_pid)
    import_quickly()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C, and ends this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    from allranks.data.encode import encode_values

    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Always ready to take the next request: a parent that writes one never waits for this process to be done.
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    encoder: Any = None
    tokenizer: Any = None
    while (request := requests.get()) is not None:
        try:
            if isinstance(request, BaseException):
                raise request
            if isinstance(request, tuple):
                encoder, tokenizer = request
                continue
            answer: Any = encode_values(request, encoder, tokenizer)
        except BaseException as error:  # the parent raises it again
            answer = _portable(error)
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _read(file: BinaryIO, requests: "queue.SimpleQueue[Any]") -> None:
    while True:
        try:
            requests.put(pickle.load(file))
        except EOFError:
            requests.put(None)
            return
        except BaseException as error:  # an encoder that this process cannot make
            requests.put(error)


def _portable(error: BaseException) -> BaseException:
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"a process that prepared data failed: {error!r}")
