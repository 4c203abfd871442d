"""ib_write_bw's table in the forms of its versions, and two of its stand-ins (`tests/ib_write_bw_stand_in.py`), which
meet over TCP as the real ones do. Nothing here is RDMA."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from allranks.cluster.measure import perftest
from allranks.cluster.measure.perftest import (
    Adapter,
    Tool,
    answering,
    bytes_per_second,
    find_tool,
    measure_adapter,
    why_not_at,
)
from tests.ib_write_bw_stand_in import install
from tests.patience import await_end

ADAPTER = Adapter("mlx5_0", 1)
GBIT = 1e9 / 8


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Installs a stand-in that was told this, and finds it."""

    def make(**told) -> Tool:
        install(tmp_path, **told)
        monkeypatch.setenv("PATH", str(tmp_path))
        found = find_tool()
        assert isinstance(found, Tool), found
        return found

    return make


@pytest.fixture
def port():
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


def children() -> list[psutil.Process]:
    """Those of this process that are one of these programs; a zombie is one, too, and still has its name."""
    return [one for one in psutil.Process().children() if one.name() == "ib_write_bw"]


def table(unit: str, peak: str, average: str, size: int = 65536) -> str:
    heading = f" #bytes     #iterations    BW peak[{unit}]    BW average[{unit}]   MsgRate[Mpps]"
    return f"{heading}\n {size:<7}    5000             {peak}              {average}              0.097356\n"


NO_ROW = " #bytes     #iterations    BW peak[Gb/sec]    BW average[Gb/sec]   MsgRate[Mpps]\n"
WARNED = "Conflicting CPU frequency values detected: 1500.0 != 3300.0. CPU Frequency is not max.\n"


@pytest.mark.parametrize(
    ("printed", "rate"),
    [
        (table("Gb/sec", "51.05", "51.04"), 51.04),
        (NO_ROW + WARNED + " 1048576    560845           0.00               391.90\t\t     0.186950\n", 391.90),
        (table("Gb/sec", "0.000000", "0.012281", 2**20), 0.012281),
        (table("MB/sec", "0.00", "6103.52"), 51.2),
        (table("MiB/sec", "0.00", "6103.52"), 51.2),
        (NO_ROW.rstrip() + "    CPU_Util[%]\n 65536 5000 1.00 98.02 0.1869 3.5\n", 98.02),
        ("", None),
        (NO_ROW, None),
        (table("KB/sec", "51.05", "51.04"), None),
        (table("Gb/sec", "inf", "-nan"), None),
        (table("Gb/sec", "0.00", "0.00"), None),
        (" local address: LID 0x01 QPN 0x0127 PSN 0x7d6c4d\n 65536 5000 51.05 51.04 0.097\n", None),
    ],
)
def test_the_average_is_read_in_the_unit_of_the_heading(printed, rate):
    found = bytes_per_second(f"{'-' * 87}\n Mtu             : 4096[B]\n{printed}{'-' * 87}\n")
    assert found is None if rate is None else found == pytest.approx(rate * GBIT, rel=1e-4)


@pytest.mark.parametrize("version", ["4.5", "26.04"])
def test_two_ends_meet_and_the_one_that_writes_tells_the_rate(tool, port, version):
    found = tool(version=version, gbits=187.25)
    assert found.binds == found.speaks_ipv6 == (version != "4.5")
    with answering(found, [(ADAPTER, port)], "127.0.0.1"):
        measured = measure_adapter(found, Adapter("mlx5_0", 1, gid_index=3), "127.0.0.1", "127.0.0.1", port)
    assert measured.failed == "" and measured.bytes_per_second == pytest.approx(187.25 * GBIT)
    assert children() == []


def test_both_ends_are_the_same_in_what_must_be_and_are_bound_to_their_addresses(tool):
    found = tool()
    server = perftest._command(found, Adapter("mlx5_7", 2, 3), "10.0.0.1", 4000)
    assert server == [
        *(found.path, "-d", "mlx5_7", "-i", "2", "-p", "4000", "-F", "--report_gbits", "-D", "1", "-s", "1048576"),
        *("-x", "3", "--bind_source_ip", "10.0.0.1"),
    ]
    assert perftest._command(found, ADAPTER, "fd00::1", 4000)[-3:] == ["--bind_source_ip", "fd00::1", "--ipv6-addr"]


def test_an_end_that_nobody_meets_is_ended(tool, port):
    with answering(tool(), [(ADAPTER, port), (Adapter("mlx5_1", 1), port)], "127.0.0.1"):
        assert children()
    assert children() == []


def test_an_end_that_fails_by_itself_says_why(tool, port):
    said = []
    with answering(tool(fails="Couldn't allocate MR"), [(ADAPTER, port)], "127.0.0.1", said.append):
        (end,) = children()
        await_end(end.pid)
    assert said == ["ib_write_bw: Couldn't allocate MR"] and children() == []
    with answering(tool(), [(ADAPTER, port)], "127.0.0.1", said.append):
        pass
    assert len(said) == 1, "one that was ended has not failed"


def test_who_comes_first_waits_for_the_other_end(tool, port, monkeypatch):
    found = tool()
    with contextlib.ExitStack() as other_end:

        def sleep(seconds: float) -> None:
            """Nobody has answered yet: now the other end comes."""
            if not children():
                other_end.enter_context(answering(found, [(ADAPTER, port)], "127.0.0.1"))
            time.sleep(seconds)

        clock = SimpleNamespace(monotonic=time.monotonic, sleep=sleep)
        monkeypatch.setattr(perftest, "time", clock)
        measured = measure_adapter(found, ADAPTER, "127.0.0.1", "127.0.0.1", port)
    assert measured.failed == "" and measured.bytes_per_second == pytest.approx(195 * GBIT)


def test_nobody_answers(tool, port, monkeypatch):
    monkeypatch.setattr(perftest, "_SERVER_SECONDS", 0.0)
    measured = measure_adapter(tool(), ADAPTER, "127.0.0.1", "127.0.0.1", port)
    assert measured.failed == (
        f"ib_write_bw: Couldn't connect to 127.0.0.1:{port}; Unable to init the socket connection"
    )


def test_one_that_hangs_is_killed_and_one_that_fails_says_why(tool, port, monkeypatch):
    monkeypatch.setattr(perftest, "RAIL_SECONDS", 1.0)
    hanging = measure_adapter(tool(hangs=True), ADAPTER, "127.0.0.1", "127.0.0.1", port)
    assert hanging.failed == "ib_write_bw: it had not ended after 1 s" and children() == []
    monkeypatch.undo()
    failing = measure_adapter(tool(fails="Couldn't allocate MR"), ADAPTER, "127.0.0.1", "127.0.0.1", port)
    assert failing.failed == "ib_write_bw: Couldn't allocate MR" and failing.bytes_per_second is None


def test_it_dies_with_who_started_it(tool, port, tmp_path):
    """A launcher that is killed leaves nothing that keeps the adapter and the port."""
    tool()
    program = (
        "import time\nfrom allranks.cluster.measure.perftest import Adapter, answering, find_tool\n"
        f"with answering(find_tool(), [(Adapter('mlx5_0', 1), {port})], '127.0.0.1'):\n"
        "    print('started', flush=True)\n    time.sleep(1000)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    launcher = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=env)
    assert launcher.stdout.readline() == b"started\n"
    (server,) = psutil.Process(launcher.pid).children()
    launcher.kill()
    launcher.communicate()
    await_end(server.pid)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "ib_write_bw is not installed (package perftest)"),
        ("#!/bin/sh\necho Usage: -p PORT\n", "it has no --report_gbits"),
        ("#!/nowhere/sh\n", "ib_write_bw --help: No such file or directory"),
    ],
)
def test_why_it_cannot_be_used(tmp_path, monkeypatch, script, why):
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "ib_write_bw").write_text(script)
        (tmp_path / "ib_write_bw").chmod(0o755)
    assert why in find_tool()


def test_addresses_that_a_version_cannot_meet_at():
    old, new = Tool("ib_write_bw"), Tool("ib_write_bw", True, True)
    assert why_not_at(old, "10.0.0.1") == why_not_at(new, "10.0.0.1") == why_not_at(new, "fd00::1") == ""
    assert "IPv6" in why_not_at(old, "fd00::1") and "link-local" in why_not_at(new, "fe80::1%2")
