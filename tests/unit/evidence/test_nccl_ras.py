"""NCCL's RAS service is asked as its own client asks it. Answers here are written from NCCL's source and documentation,
not recorded."""

import contextlib
import socket
import threading

import pytest

from allranks.evidence.nccl_ras import nccl_diagnostics, nccl_status

# Until what does not end is cut: all before it has to be said within them.
SECONDS = 4.0


class Service(threading.Thread):
    """Answers one connection, line by line."""

    def __init__(self, answers: dict[str, bytes], ends: bool = True) -> None:
        super().__init__(daemon=True)
        self.answers, self.ends, self.asked = answers, ends, []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        connection, _ = self.socket.accept()
        with contextlib.suppress(ConnectionError), connection, connection.makefile("rb") as lines:
            for line in lines:
                self.asked.append(line.decode().strip())
                connection.sendall(next((said for word, said in self.answers.items() if word in self.asked[-1]), b""))
                if ("STATUS" in self.asked[-1] or self.asked[-1] == "DIAGNOSTICS") and self.ends:
                    return


HELLO = {"PROTOCOL": b"SERVER PROTOCOL 2\n", "TIMEOUT": b"OK\n"}


def test_json_where_the_version_has_it():
    service = Service({**HELLO, "FORMAT": b"OK\n", "STATUS": b'{"nccl_version": "2.28.7", "communicators": []}\n'})
    assert nccl_status(service.address)["json"]["nccl_version"] == "2.28.7"
    assert service.asked[0] == "CLIENT PROTOCOL 2"
    assert service.asked[-1] == "VERBOSE STATUS"


def test_text_from_an_older_one():
    service = Service({**HELLO, "FORMAT": b"ERROR: unknown command\n", "STATUS": b"NCCL version 2.24.3\nJob summary\n"})
    assert nccl_status(service.address) == {"text": "NCCL version 2.24.3\nJob summary\n"}


def test_a_status_that_does_not_end_is_cut_at_the_deadline():
    service = Service({**HELLO, "FORMAT": b"OK\n", "STATUS": b'{"half": '}, ends=False)
    assert nccl_status(service.address, seconds=SECONDS) == {"text": '{"half": '}


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n", b"x" * 5000])
def test_what_is_no_such_service_is_left_alone(greeting):
    service = Service({"PROTOCOL": greeting})
    assert "no RAS service" in nccl_status(service.address)["why"]
    assert len(service.asked) == 1


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as port:
        address = f"127.0.0.1:{port.getsockname()[1]}"
    assert "refused" in nccl_status(address)["why"]


REPORT = b"""node042:12345 NCCL DIAG === RAS Diagnostics ===
node042:12345 NCCL DIAG [OK]   CUDA driver version: 13000 consistent across 2 ranks in comm 0x1234
node042:12345 NCCL DIAG [INFO] NCCL environment: NCCL_DEBUG=INFO on rank(s) {0}
node042:12345 NCCL DIAG RAS diagnostics completed in 12.3 ms across 2 RAS peers
"""
NEW = {"json": {"nccl_version": "2.31.2"}}


def test_diagnostics_where_the_version_has_them():
    service = Service({**HELLO, "DIAGNOSTICS": REPORT})
    assert nccl_diagnostics(NEW, service.address) == {
        "diagnostics": [
            "[OK] CUDA driver version: 13000 consistent across 2 ranks in comm 0x1234",
            "[INFO] NCCL environment: NCCL_DEBUG=INFO on rank(s) {0}",
        ],
        "is_complete": True,
    }


@pytest.mark.parametrize(
    "status", [{"json": {"nccl_version": "2.30.7"}}, {"text": "NCCL version 2.24.3\n"}, {"why": "-"}]
)
def test_a_version_without_diagnostics_is_not_asked_for_them(status):
    service = Service({})
    assert nccl_diagnostics(status, service.address) == {}
    assert service.asked == []


def test_diagnostics_that_do_not_come_in_time_or_are_under_way():
    late = Service({**HELLO, "DIAGNOSTICS": REPORT[:130]}, ends=False)
    assert nccl_diagnostics(NEW, late.address, seconds=SECONDS)["is_complete"] is False
    busy = Service({**HELLO, "DIAGNOSTICS": b"BUSY: diagnostics already in progress\n"})
    assert "by somebody else just now" in nccl_diagnostics(NEW, busy.address)["why"]
