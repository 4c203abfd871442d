"""Why a connection did not come about, in the system's words and not in asyncio's."""

import asyncio
import errno
import socket

import pytest

from allranks.cluster.not_reached import why_not_reached


def _refused(host: str) -> Exception:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(OSError) as caught:
            asyncio.run(asyncio.open_connection(host, bound.getsockname()[1]))
    return caught.value


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_asyncios_words_are_not_told(host: str) -> None:
    error = _refused(host)
    assert "Connect call failed" in str(error)
    assert why_not_reached(error) == "connection refused"


def test_each_reason_of_a_name_with_several_addresses_is_told_once() -> None:
    told = "Multiple exceptions: " + ", ".join(
        f"[Errno {number}] Connect call failed ('10.0.0.{number}', 1)"
        for number in (errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.EHOSTUNREACH)
    )
    assert why_not_reached(OSError(told)) == "no route to host and connection refused"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EHOSTUNREACH, "Connect call failed ('10.0.0.1', 29500)"), "no route to host"),
        (TimeoutError(), "timed out"),
        (TimeoutError(errno.ETIMEDOUT, "Connect call failed"), "connection timed out"),
        (socket.gaierror(-2, "Name or service not known"), "the name is not known"),
        (OSError("something"), "something"),
    ],
)
def test_in_words(error: Exception, expected: str) -> None:
    assert why_not_reached(error) == expected
