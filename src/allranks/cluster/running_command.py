"""One command on this node, and all that descends from it: started, its output read, signalled, ended."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path

from allranks.cluster.descendants import descendants, end_descendants, reap_orphans, send_signal
from allranks.cluster.protocol import GRACE_SECONDS
from allranks.parent import die_with_parent

_CHUNK_BYTES = 65536  # also the longest line: a longer one comes in pieces
_DRAIN_SECONDS = 2.0  # for output that was still on its way when the last process ended

OnOutput = Callable[[str, list[str]], Awaitable[None]]
"""Is given "stdout" or "stderr", and lines. While it waits, the command waits too, once its pipe is full."""


class CannotStart(Exception):
    """Why a command could not be started."""


class RunningCommand:
    """A running command in a session of its own. One at a time: whatever this process has adopted belongs to it."""

    def __init__(self, process: asyncio.subprocess.Process, keep: Callable[[], Collection[int]]) -> None:
        self._process = process
        self._keep = keep

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        *,
        keep: Callable[[], Collection[int]] = tuple,
        pass_fds: Sequence[int] = (),
    ) -> "RunningCommand":
        """Start `argv` in `cwd`, with the variables `env` besides those of this process; no shell comes near it.

        `keep` tells the children of this process that are no part of the command, which inherits `pass_fds`. Raises
        CannotStart.
        """
        if not Path(cwd).is_dir():
            raise CannotStart(f"there is no directory {cwd}")
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                env={**os.environ, **env},
                cwd=cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                pass_fds=tuple(pass_fds),
                preexec_fn=die_with_parent,
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise CannotStart(f"{argv[0]} cannot be started: {reason}") from None
        return cls(process, keep)

    async def finish(self, on_output: OnOutput) -> int:
        """The command's exit status (negative: the signal that ended it), when nothing of it runs any more.

        What it leaves running when it ends is asked to end, and then killed.
        """
        assert self._process.stdout is not None and self._process.stderr is not None
        pumps = [_Pump(self._process.stdout, "stdout", on_output), _Pump(self._process.stderr, "stderr", on_output)]
        try:
            code = await self._process.wait()
            send_signal(signal.SIGTERM, descendants(self._keep()))
            await end_descendants(self._keep(), GRACE_SECONDS)
            reap_orphans(self._keep())
            for pump in pumps:
                await pump.drain()
        finally:
            for pump in pumps:
                pump.task.cancel()
        return code

    def signal(self, number: int) -> None:
        """To the command itself, which knows what it has to tell its own children."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def end(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """SIGTERM to the command's process group and, after `grace_seconds`, SIGKILL to all that descends from it."""
        if grace_seconds > 0 and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
        await end_descendants(self._keep(), grace_seconds)


class _Pump:
    """Reads a pipe to its end and hands on its lines."""

    def __init__(self, pipe: asyncio.StreamReader, name: str, on_output: OnOutput) -> None:
        self._pipe, self._name, self._on_output = pipe, name, on_output
        self._handing_on = False
        self.task = asyncio.create_task(self._run())

    async def drain(self) -> None:
        """Wait for the end of the pipe, however slow the reader is; not for an escaped process that holds it open."""
        while not self.task.done():
            await asyncio.wait([self.task], timeout=_DRAIN_SECONDS)
            if not self._handing_on:
                return

    async def _run(self) -> None:
        rest = b""
        while chunk := await self._pipe.read(_CHUNK_BYTES):
            lines, rest = _split_lines(rest + chunk)
            if len(rest) > _CHUNK_BYTES:
                lines, rest = [*lines, rest], b""
            await self._hand_on(lines)
        await self._hand_on([rest] if rest else [])

    async def _hand_on(self, lines: list[bytes]) -> None:
        if lines:
            self._handing_on = True
            await self._on_output(self._name, [line.decode("utf-8", "backslashreplace") for line in lines])
            self._handing_on = False


def _split_lines(data: bytes) -> tuple[list[bytes], bytes]:
    """Whole lines, and what is left. Each state of a progress bar, which a carriage return parts, is a line too."""
    *whole, rest = data.split(b"\n")
    lines = []
    for line in whole:
        lines += [part for part in line.split(b"\r") if part] or [b""]
    bar, _, newest = rest.rpartition(b"\r")
    if not newest:
        return lines, rest  # a carriage return at the very end may be half of "\r\n"
    return lines + [part for part in bar.split(b"\r") if part], newest
