"""What the kernel tells of a process: connections with their peers and queues, memory's limit, states."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from allranks.evidence.processes import held_threads, memory_events, process_state, sockets

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def test_connections_are_told_with_their_peers_those_with_full_queues_first(tmp_path):
    folder = tmp_path / "7"
    (folder / "fd").mkdir(parents=True)
    (folder / "net").mkdir()
    for number, inode in enumerate((11, 12, 13, 14)):
        (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")
    (folder / "fd" / "9").symlink_to("/dev/null")
    rows = [
        "0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 11 1",
        "1: 0100000A:C350 0200000A:7530 01 00000000:00000000 00:00000000 00000000 0 0 12 1",
        "2: 0100000A:C351 0300000A:7530 01 00001000:00000002 00:00000000 00000005 0 0 13 1",
        "3: 0100000A:C352 0300000A:7530 01 00009999:00000000 00:00000000 00000000 0 0 99 1",
        "a torn line",
    ]
    (folder / "net" / "tcp").write_text(HEAD + "\n".join(rows) + "\n")
    mapped = "0000000000000000FFFF0000"
    (folder / "net" / "tcp6").write_text(
        f"{HEAD}0: {mapped}0100000A:C353 {mapped}0400000A:7530 08 00000000:00000001 00:00000000 00000000 0 0 14 1\n"
    )
    full, unread, idle = sockets(7, tmp_path)
    assert full == {
        "state": "ESTABLISHED",
        "local": "10.0.0.1:50001",
        "peer": "10.0.0.3:30000",
        "send_queue_bytes": 4096,
        "receive_queue_bytes": 2,
        "retransmits": 5,
    }
    assert (unread["peer"], unread["state"], unread["receive_queue_bytes"]) == ("10.0.0.4:30000", "CLOSE_WAIT", 1)
    assert idle["peer"] == "10.0.0.2:30000"


def test_a_real_connection_is_found():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        taken, _ = server.accept()
        with taken:
            client.sendall(b"12345")
            at = "{}:{}".format(*client.getsockname())
            (one,) = [one for one in sockets(os.getpid()) if one["peer"] == at]
    assert (one["state"], one["receive_queue_bytes"]) == ("ESTABLISHED", 5)


def test_the_memory_of_either_kind_of_cgroup(tmp_path):
    proc = tmp_path / "proc/7"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text("4:memory:/job\n0::/slice\n")
    old, new = tmp_path / "sys/fs/cgroup/memory/job", tmp_path / "sys/fs/cgroup/slice"
    for folder in (old, new):
        folder.mkdir(parents=True)
    (new / "memory.events").write_text("oom 1\noom_kill 2\n")
    (new / "memory.max").write_text("max\n")
    assert memory_events(7, tmp_path) == {"oom": 1, "oom_kill": 2}
    (old / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (old / "memory.limit_in_bytes").write_text("1000\n")
    told = memory_events(7, tmp_path)
    assert (told["oom_kill"], told["limit_bytes"]) == (3, 1000)


def test_states_and_processes_that_are_gone():
    told = process_state(os.getpid())
    assert told["state"] in "RS"
    assert told["memory_bytes"] > 0
    gone = 2**22 + 1  # no process has so high a number
    assert not Path(f"/proc/{gone}").exists()
    assert process_state(gone) == {}
    assert sockets(gone) == []
    assert memory_events(gone) == {}


HELD = """
import os, sys, threading

# The child waits for its standard input, a FIFO that nobody opens, and the thread that begins it for the child: in D.
actions = [(os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)]
print("begun", flush=True)  # before it: the thread keeps Python's lock
threading.Thread(target=os.posix_spawn, args=("/bin/true", ["true"], {}), kwargs={"file_actions": actions}).start()
threading.Event().wait()
"""


def test_a_thread_that_waits_in_the_kernel_is_found_beside_one_that_waits_for_it(tmp_path):
    """As one that writes to a dead disk behind the training, for which the training waits."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen([sys.executable, "-c", HELD, str(fifo)], stdout=subprocess.PIPE) as held:
        try:
            assert held.stdout.readline() == b"begun\n"
            found = []
            while {one["thread"] for one in found} in (set(), {held.pid}):  # it may wait for its own pages at first
                assert held.poll() is None
                found = held_threads(held.pid, seconds=0.05)
            assert all(one["comm"] for one in found)
            while process_state(held.pid)["state"] != "S":
                assert held.poll() is None
        finally:
            os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))
            held.kill()


def test_threads_that_run_or_sleep_are_not_held():
    assert held_threads(os.getpid(), seconds=0.01) == []
    assert held_threads(2**22 + 1) == []
