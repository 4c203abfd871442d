"""A thousand "nodes" on one machine: an `ssh` that hands its pipes to a server, which forks an agent for them.

The agents are real processes with the real protocol; only their start is cheap (3 MiB and some milliseconds each, where
a new interpreter needs 20 MiB and 50 ms), so that what is measured is the fan-out and not this machine.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Python without site is up in 10 ms; `cat` then waits at the socket, in the place of ssh, until the agent has ended.
_SSH = """#!{python} -ISE
import os, socket, sys
host = sys.argv[sys.argv.index("--") + 1]
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
socket.send_fds(server, [host.encode()], [0, 1, 2])
nowhere = os.open(os.devnull, os.O_RDWR)
for stream, end in ((server.fileno(), 0), (nowhere, 1), (nowhere, 2)):
    os.dup2(stream, end)
os.execv("/bin/cat", ["cat"])
"""


@contextlib.contextmanager
def many_nodes() -> Iterator[dict[str, str]]:
    """Yields variables with which `ssh ANY-NAME` reaches a node."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "nodes")
        program = Path(folder, "ssh")
        program.write_text(_SSH.format(python=sys.executable, path=str(path)))
        program.chmod(0o755)
        env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}  # the nodes' too: in a tree they use it as well
        command = [sys.executable, "-m", "benchmarks.many_nodes", str(path)]
        server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            yield env
        finally:
            server.kill()
            server.wait()


def be_patient() -> None:
    """Wait longer for each other's signs of life: a thousand nodes on one machine are slower than a node of its own."""
    from allranks.cluster import agent, link

    agent.SILENCE_SECONDS = link.SILENCE_SECONDS = 60.0


def _serve(path: str) -> None:
    # What an agent uses is imported once, before any fork.
    from allranks.cluster import agent, gather  # noqa: F401

    gather.gather_account()
    be_patient()
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(4096)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    gc.collect()
    gc.freeze()  # else the children's collector would touch, and so copy, every page
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        _, streams, _, _ = socket.recv_fds(connection, 256, 3)
        if os.fork() == 0:
            server.close()
            _be_a_node(streams)
        for stream in streams:
            os.close(stream)
        connection.close()


def _be_a_node(streams: list[int]) -> None:
    """The connection stays open as long as this process lives, which the waiting `cat` sees."""
    from allranks.cluster import agent
    from allranks.cluster.descendants import adopt_orphans

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for end, stream in enumerate(streams):
        os.dup2(stream, end)
        os.close(stream)
    adopt_orphans()
    try:
        asyncio.run(agent._serve_on_pipes())
    finally:
        os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
