"""An agent at the other end of two pipes, and the ports that agents open to each other."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from allranks.cluster.handshake import NotProven, shake_hands
from allranks.cluster.listening import Listener, PortTaken, reach
from allranks.cluster.protocol import GRACE_SECONDS, SILENCE_SECONDS
from tests.ports import free_port


@pytest.fixture
def agent():
    command = [sys.executable, "-P", "-m", "allranks.cluster.agent"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert json.loads(process.stdout.readline())["allranks_agent"] == 1
    yield process
    process.kill()
    process.communicate()


def say(agent, **message):
    agent.stdin.write(json.dumps({"to": 0, "re": 1, **message}).encode() + b"\n")
    agent.stdin.flush()


def run(agent, code):
    say(agent, do="run", argv=[sys.executable, "-c", code], env={}, cwd="/")
    return json.loads(agent.stdout.readline())


def test_silence_of_the_head_ends_a_job_that_will_not_end(agent):
    """Its connection stands, but nothing comes: a cable was pulled, or the head is frozen."""
    code = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True)\n"
    started = time.monotonic()  # before the last word that it hears
    pid = int(run(agent, code + "time.sleep(1000)")["lines"][0])
    agent.wait(timeout=60)
    assert not Path(f"/proc/{pid}").exists()
    assert time.monotonic() - started > SILENCE_SECONDS
    assert SILENCE_SECONDS + GRACE_SECONDS < 15


def test_pings_are_answered_while_a_job_runs(agent):
    assert run(agent, "import time; print('ready', flush=True); time.sleep(1000)")["lines"] == ["ready"]
    say(agent, do="ping")
    assert json.loads(agent.stdout.readline()) == {"pong": True}


def test_a_line_that_is_no_message_ends_it(agent):
    agent.stdin.write(b"rm -rf /\n")
    agent.stdin.flush()
    _, errors = agent.communicate(timeout=60)
    assert b"not a message: b'rm -rf /" in errors


def test_what_a_job_prints_cannot_be_taken_for_a_message(agent):
    said = run(agent, 'print(\'{"from": 0, "re": 1, "exit": 0}\')')
    assert said["lines"] == ['{"from": 0, "re": 1, "exit": 0}'] and "exit" not in said


def test_a_node_is_reached_at_a_port_or_not_and_why():
    async def main():
        port = free_port()
        listener = await Listener.open(port)
        found = await reach(["127.0.0.1"], port, listener.token, 5)
        impostor = await reach(["127.0.0.1"], port, "0" * 32, 5)
        with pytest.raises(PortTaken, match="already in use"):
            await Listener.open(port)
        await listener.close()
        closed = await reach(["127.0.0.1"], port, listener.token, 5)
        return found["127.0.0.1"], impostor["127.0.0.1"]["reason"], closed["127.0.0.1"]["reason"]

    assert asyncio.run(main()) == (
        {"ok": True, "from": "127.0.0.1"},
        "something else listens there",
        "connection refused",
    )


def test_a_port_that_accepts_and_says_nothing_is_no_node():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = asyncio.run(reach(["127.0.0.1"], silent.getsockname()[1], "t", 0.2))
    assert found["127.0.0.1"] == {"ok": False, "reason": "timed out"}


@pytest.mark.parametrize(("token", "is_known"), [("secret", True), ("guess", False)])
def test_both_ends_must_know_the_token(token, is_known):
    async def main():
        ends = {}

        async def head(reader, writer):
            ends["head"] = await proven(reader, writer, "secret", "head")

        server = await asyncio.start_server(head, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        ends["agent"] = await proven(reader, writer, token, "agent")
        while "head" not in ends:
            await asyncio.sleep(0.01)
        server.close()
        return ends

    async def proven(reader, writer, token, role):
        try:
            await shake_hands(reader, writer, token, role)
        except NotProven:
            return False
        finally:
            writer.close()
        return True

    assert asyncio.run(main()) == {"head": is_known, "agent": is_known}


def test_a_proof_cannot_be_handed_back():
    """An end that only echoes knows nothing."""

    async def main():
        async def echo(reader, writer):
            while data := await reader.read(100):
                writer.write(data)
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            await shake_hands(reader, writer, "secret", "agent")
        finally:
            writer.close()
            server.close()

    with pytest.raises(NotProven):
        asyncio.run(main())
