"""Processes that encode: started afresh, a pipe each way to every one of them, gone when the block is left.

Not forked, since other threads of this process may hold locks (the meeting of the nodes runs in one). Not a pool of the
standard library: its own threads wait for each other, and can do so for ever when somebody is killed. Here only this
thread waits, on one pipe at a time, and a process that dies closes its pipe.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from allranks.errors import DataError

Batch = TypeVar("Batch")
# One that it works on and the next; what is in flight is what bounds the memory.
_REQUESTS_EACH = 2


class Workers:
    """A context of `count` processes. They load their libraries while the caller loads its own."""

    def __init__(self, count: int):
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Workers":
        try:
            for _ in range(self._count):
                self._processes.append(_start())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # it holds nothing that is to be kept
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # a request that was interrupted cannot be sent any more
                    pipe and pipe.close()

    def encode(
        self, batches: Iterable[tuple[Batch, list[Any]]], encoder: Any, tokenizer: Any, name: Callable[[Batch], str]
    ) -> Iterator[tuple[Batch, Any]]:
        """(batch, what `encode_values` gives for its values) in the order of `batches`.

        `name` says which records a batch holds. Errors: what encoding raised; `DataError` for a process
        that was killed.
        """
        setup = pickle.dumps((encoder, _core(tokenizer)), pickle.HIGHEST_PROTOCOL)
        waiting: deque[tuple[subprocess.Popen[bytes], Batch]] = deque()
        for number, (batch, values) in enumerate(batches):
            process = self._processes[number % self._count]
            if len(waiting) == _REQUESTS_EACH * self._count:
                yield self._answer(*waiting.popleft(), name)
            request = pickle.dumps(values, pickle.HIGHEST_PROTOCOL)
            waiting.append((process, batch))
            try:
                assert process.stdin is not None
                if number < self._count:
                    process.stdin.write(setup)
                process.stdin.write(request)
                process.stdin.flush()
            except BrokenPipeError:
                first = next(one for one in waiting if one[0] is process)
                raise _died(*first, name) from None
        while waiting:
            yield self._answer(*waiting.popleft(), name)

    def _answer(
        self, process: "subprocess.Popen[bytes]", batch: Batch, name: Callable[[Batch], str]
    ) -> tuple[Batch, Any]:
        assert process.stdout is not None
        try:
            answer = pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise _died(process, batch, name) from None
        if isinstance(answer, BaseException):
            raise answer
        return batch, answer


def _start() -> "subprocess.Popen[bytes]":
    program = f"import sys; sys.path[:] = {sys.path!r}; from allranks.data.worker import main; main({os.getpid()})"
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # The processes share the cores already.
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        process_group=0,  # a terminal's Ctrl-C is for this process only
    )


def _core(tokenizer: Any) -> Any:
    """Of a fast tokenizer what encodes: to load the rest, every process would import much of transformers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return tokenizer if backend is None else backend


def _died(process: "subprocess.Popen[bytes]", batch: Batch, name: Callable[[Batch], str]) -> DataError:
    code = process.wait()  # its pipe is closed, so that it has ended
    if code != -signal.SIGKILL:
        how = f"ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
        return DataError(f"a process that prepared data {how} while it had {name(batch)}")
    return DataError(
        f"a process that prepared data was killed, most often for want of memory; set dataset_num_proc lower. It had "
        f"{name(batch)}"
    )
