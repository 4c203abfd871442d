"""pbsdsh shows nothing of what its tasks say: a node that starts no agent says so in the folder that all share."""

import asyncio
import os

import pytest

from allranks.cluster.link import NotOpened
from allranks.cluster.nodes import Host
from allranks.cluster.transports.pbsdsh import connections_back
from allranks.cluster.transports.spec import Transport

HERE = os.uname().nodename


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def refused(tmp_path, monkeypatch, python):
    """Why no link to this node opens, where `python` is what starts the agent."""
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin/pbsdsh", 'shift; exec "$@" > /dev/null 2>&1')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    shared = tmp_path / "shared"
    shared.mkdir()

    async def open_it():
        way = Transport("pbsdsh", python=python, connect_seconds=60.0)
        async with connections_back(way, [Host(HERE)], shared) as open_link:
            await open_link({}, {"host": HERE})

    with pytest.raises(NotOpened) as caught:
        asyncio.run(open_it())
    assert list(shared.iterdir()) == []
    return str(caught.value)


def test_a_node_without_allranks_is_told_at_once(tmp_path, monkeypatch):
    python = program(tmp_path / "python", "echo \"ModuleNotFoundError: No module named 'allranks'\" >&2; exit 1")
    assert f"{python} there has no allranks (ModuleNotFoundError: No module named 'allranks'): install it" in refused(
        tmp_path, monkeypatch, python
    )


def test_a_node_without_that_python_is_told_at_once(tmp_path, monkeypatch):
    told = refused(tmp_path, monkeypatch, "/no/such/python")
    assert "/no/such/python there starts no agent (" in told and "not found" in told
