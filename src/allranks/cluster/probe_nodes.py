"""Ask many nodes for their reports, each by what leads to it: ssh, srun, pbsdsh. Nothing of ours need be there.

The probe goes over standard input into whatever Python the node has, so that what is said is about the node: also of
one where allranks, torch or the interpreter of the run is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from allranks.cluster.node_report import NodeReport
from allranks.cluster.nodes import Host
from allranks.cluster.transports import Transport, ssh
from allranks.cluster.transports.srun import srun_command
from allranks.parent import die_with_parent

CONNECT_SECONDS = 10.0
"""What ssh may take to connect; it gives up by itself then."""
_REPORT_BYTES = 4 * 2**20
_TAIL_CHARACTERS = 500
# $1 is the interpreter of the run, which may be missing: then any Python tells what is there.
_SCRIPT = (
    'for python in "$1" python3 python; do command -v "$python" >/dev/null 2>&1 && exec "$python" -; done; '
    'echo "there is neither $1 nor python3" >&2; exit 127'
)


@dataclass(frozen=True)
class Probed:
    """A node's report, or why there is none. `sent` and `received`: this machine's clock around it, in unix seconds."""

    report: NodeReport | None
    why: str = ""
    sent: float = 0.0
    received: float = 0.0


async def probe_nodes(hosts: Sequence[Host], transport: Transport, source: str, seconds: float) -> list[Probed]:
    """The reports of all hosts, in order; `source` is the probe's text, which is done within `seconds` of its start.

    Nothing is raised for a node that does not answer, and as many are asked at a time as `transport` allows.
    """
    limit = CONNECT_SECONDS + seconds + 5.0
    if transport.kind == "pbsdsh":
        return await _by_pbsdsh(hosts, transport, source, limit)
    window = asyncio.Semaphore(transport.window)

    async def ask(host: Host) -> Probed:
        async with window:
            return await _ask(_command(transport, host), transport, source, limit)

    return list(await asyncio.gather(*map(ask, hosts)))


def _command(transport: Transport, host: Host) -> list[str]:
    words = ["sh", "-c", _SCRIPT, "sh", transport.python]
    if transport.kind == "ssh" and not ssh.is_this_machine(host):
        return ssh.ssh_command(host, words)
    return srun_command(host, words) if transport.kind == "srun" else words


async def _ask(command: Sequence[str], transport: Transport, source: str, seconds: float) -> Probed:
    sent = time.time()
    try:
        code, said, errors = await _run(command, source.encode(), seconds)
    except TimeoutError:
        return Probed(None, f"no answer within {seconds:.0f} s")
    except OSError as error:
        return Probed(None, f"{command[0]} cannot be started: {error.strerror}")
    report = _read(said)
    if report is not None:
        return Probed(report, "", sent, time.time())
    tail = "; ".join(errors.decode("utf-8", "backslashreplace").strip().splitlines()[-3:])[-_TAIL_CHARACTERS:]
    if transport.kind == "ssh" and code == ssh.FAILED:
        return Probed(None, ssh.explain(tail))
    return Probed(None, f"the probe ended with exit code {code}: {tail or 'it said nothing'}")


async def _run(command: Sequence[str], text: bytes, seconds: float) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr, each cut. Raises TimeoutError and OSError."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    try:
        async with asyncio.timeout(seconds):
            reading = asyncio.gather(_cut(process.stdout), _cut(process.stderr))
            with contextlib.suppress(OSError):  # it has ended without reading: its last words say why
                process.stdin.write(text)
                await process.stdin.drain()
            process.stdin.close()
            said, errors = await reading
            return await process.wait(), said, errors
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _cut(stream: asyncio.StreamReader) -> bytes:
    """All that comes, of which no more is kept than a report has."""
    kept = b""
    while chunk := await stream.read(65536):
        if len(kept) < _REPORT_BYTES:
            kept += chunk
    return kept


def _read(said: bytes) -> NodeReport | None:
    """The report among what a node printed: a remote shell may have words of its own."""
    for line in reversed(said.splitlines()):
        with contextlib.suppress(ValueError, RecursionError):
            if line.startswith(b"{"):
                return NodeReport.from_message(json.loads(line))
    return None


async def _by_pbsdsh(hosts: Sequence[Host], transport: Transport, source: str, seconds: float) -> list[Probed]:
    """pbsdsh leads neither in nor out: the probe and the reports are files in a folder that all nodes share."""
    folder = Path.cwd() / f".allranks-probe-{secrets.token_hex(8)}"
    folder.mkdir(mode=0o700)
    program = folder / "probe.py"
    try:
        program.write_text(source)
        script = f'{{ {_SCRIPT}; }} < "$2" > "$2.$$.$(uname -n)"'
        command = ["pbsdsh", "--", "sh", "-c", script, "sh", transport.python, str(program)]
        sent = time.time()
        why = (
            f"pbsdsh left no report of it in {folder.parent}, which all nodes must share; --remote-start ssh needs none"
        )
        try:
            await _run(command, b"", seconds)
        except TimeoutError:
            why = f"no answer by pbsdsh within {seconds:.0f} s"
        except OSError as error:
            why = f"pbsdsh cannot be started: {error.strerror}; try --remote-start ssh"
        received = time.time()
        found = {path.name.split(".")[3]: _read(path.read_bytes()) for path in folder.glob("probe.py.*.*")}
        reports = [found.get(host.name.partition(".")[0]) for host in hosts]
        return [Probed(report, "" if report else why, sent, received) for report in reports]
    finally:
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
