"""Where ranks will listen, as NCCL and gloo choose it."""

import socket

import pytest

from allranks.cluster.interfaces import Interface
from allranks.cluster.rank_addresses import ephemeral_ports, rank_addresses

LO = Interface("lo", ("127.0.0.1", "::1"), True)
ETH = Interface("eth0", ("10.0.0.5", "fd00::5"), True)
IB = Interface("ib0", ("10.1.0.5",), True)
DOCKER = Interface("docker0", ("172.17.0.1",), True)
ONLY_IPV6 = Interface("ens1", ("fd00::9",), True)


def nccls(env: dict[str, str], *nics: Interface) -> list[str]:
    return [one.address for one in rank_addresses(env, uses_nccl=True, uses_gloo=False, nics=nics)]


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("allranks.cluster.nccl_variables.from_files", lambda env: {})


@pytest.mark.parametrize(
    ("env", "nics", "expected"),
    [
        ({}, (LO, DOCKER, ETH, IB), ["10.1.0.5"]),
        ({}, (LO, DOCKER, ETH), ["10.0.0.5"]),
        ({}, (LO, DOCKER), ["172.17.0.1"]),
        ({}, (LO,), ["127.0.0.1"]),
        ({}, (ONLY_IPV6, ETH), ["10.0.0.5"]),
        ({"NCCL_SOCKET_FAMILY": "AF_INET6"}, (LO, ETH), ["fd00::5"]),
        ({"NCCL_SOCKET_IFNAME": "eth"}, (LO, ETH, IB), ["10.0.0.5"]),
        ({"NCCL_SOCKET_IFNAME": "^ib,lo"}, (LO, ETH, IB), ["10.0.0.5"]),
        ({"NCCL_SOCKET_IFNAME": "ens"}, (LO, ETH), []),
    ],
)
def test_nccl_takes_what_is_named_else_infiniband_then_anything_but_bridges(env, nics, expected) -> None:
    assert nccls(env, *nics) == expected


def test_gloo_takes_its_interface_else_what_the_hosts_name_leads_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def gloos(**env: str) -> list[tuple[str, str]]:
        found = rank_addresses(env, uses_nccl=False, uses_gloo=True, nics=(LO, ETH))
        return [(one.address, one.interface) for one in found]

    def resolves_to(*addresses: str) -> None:
        entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)

    assert gloos(GLOO_SOCKET_IFNAME="eth0,lo") == [("10.0.0.5", "eth0")]
    resolves_to("192.0.2.1", "127.0.1.1")  # the first is no address of this host
    assert gloos() == [("127.0.1.1", "lo")]
    resolves_to()
    assert gloos() == [("127.0.0.1", "lo")]


def test_one_address_serves_both() -> None:
    env = {"NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0"}
    (both,) = rank_addresses(env, uses_nccl=True, uses_gloo=True, nics=(LO, ETH))
    assert (both.address, both.library) == ("10.0.0.5", "NCCL and gloo")


def test_a_link_local_address_has_the_number_that_other_nodes_hear() -> None:
    nic = Interface("lo", ("fe80::1%lo",), True)
    assert nccls({"NCCL_SOCKET_IFNAME": "lo"}, nic) == [f"fe80::1%{socket.if_nametoindex('lo')}"]


def test_the_kernels_ports_are_those_that_it_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        first, _, last = ephemeral_ports().partition(" to ")
        assert int(first) <= server.getsockname()[1] <= int(last)
