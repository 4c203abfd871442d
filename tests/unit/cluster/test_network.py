"""The network section on a node with given interfaces and InfiniBand ports."""

import socket

import pytest

from allranks.cluster import infiniband
from allranks.cluster import network as module
from allranks.cluster.infiniband import ports
from allranks.cluster.interfaces import Interface, facing, interfaces, select
from allranks.cluster.network import network_environment
from allranks.config.sections.network import NetworkSettings
from allranks.errors import RefusedError, UsageError

NICS = [
    Interface("lo", ("127.0.0.1", "::1"), True),
    Interface("docker0", ("172.17.0.1",), True),
    Interface("eth0", ("10.0.0.1", "fe80::1"), True),
    Interface("eth0.100", ("10.1.0.1",), True),
    Interface("eth1", ("10.0.1.1",), False),
    Interface("ens5", ("10.2.0.1",), True),
]


IB0P = Interface("ib0p", ("fe80::2%ib0p",), True)


@pytest.fixture(autouse=True)
def _no_files_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))


@pytest.fixture
def sysfs(tmp_path):
    """A tree as /sys/class/infiniband: mlx5_0 active, mlx5_1 down, rocep1s0 with one port of two active."""
    for hca, number, state, link in [
        ("mlx5_0", 1, "4: ACTIVE", "InfiniBand"),
        ("mlx5_1", 1, "1: DOWN", "InfiniBand"),
        ("rocep1s0", 1, "4: ACTIVE", "Ethernet"),
        ("rocep1s0", 2, "2: INIT", "Ethernet"),
    ]:
        folder = tmp_path / "sys" / hca / "ports" / str(number)
        folder.mkdir(parents=True)
        (folder / "state").write_text(state + "\n")
        (folder / "link_layer").write_text(link + "\n")
        (folder / "rate").write_text("200 Gb/sec (4X HDR)\n")
    return tmp_path / "sys"


def render(env=None, *, ib_ports=(), nics=NICS, uses_gpus=True, peer=None, **keys):
    settings = NetworkSettings.model_validate(keys)
    return network_environment(settings, env or {}, uses_gpus=uses_gpus, peer=peer, nics=nics, ib_ports=ib_ports)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("eth0,en,eth,em,bond", ["eth0", "eth0.100", "ens5"]),
        ("eth", ["eth0", "eth0.100"]),
        ("=eth0", ["eth0"]),
        ("=eth0,ens5", ["eth0", "ens5"]),
        ("=eth", []),
        ("^docker,lo", ["eth0", "eth0.100", "ens5"]),
        ("^=eth0", ["lo", "docker0", "eth0.100", "ens5"]),
        ("eth1", []),
    ],
)
def test_nccls_way_to_choose(pattern, names):
    assert [nic.name for nic in select(pattern, NICS)] == names


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("mlx5", ["mlx5_0:1", "mlx5_1:1", "mlx5_10:1", "mlx5_10:2"]),
        ("mlx5_1", ["mlx5_1:1", "mlx5_10:1", "mlx5_10:2"]),
        ("=mlx5_1", ["mlx5_1:1"]),
        ("mlx5_1:1", ["mlx5_1:1", "mlx5_10:1"]),
        ("=mlx5_10:2,mlx5_0:1", ["mlx5_0:1", "mlx5_10:2"]),
        ("^mlx5_1", ["mlx5_0:1", "rocep1s0:1"]),
        ("^=mlx5_1:1", ["mlx5_0:1", "mlx5_10:1", "mlx5_10:2", "rocep1s0:1"]),
        ("=mlx5", []),
        ("mlx5_0,,rocep1s0:7", ["mlx5_0:1"]),
        ("", ["mlx5_0:1", "mlx5_1:1", "mlx5_10:1", "mlx5_10:2", "rocep1s0:1"]),
        ("^", []),  # an empty list matches all
    ],
)
def test_nccls_way_to_choose_adapters(pattern, taken):
    all_ports = [("mlx5_0", 1), ("mlx5_1", 1), ("mlx5_10", 1), ("mlx5_10", 2), ("rocep1s0", 1)]
    assert [f"{hca}:{number}" for hca, number in all_ports if infiniband.select(pattern, hca, number)] == taken


def test_this_machine_has_a_loopback_that_leads_to_itself():
    here = interfaces()
    assert any("127.0.0.1" in nic.addresses and nic.is_running for nic in here)
    assert facing("127.0.0.1", here) in here


def test_everything_rendered(sysfs):
    made = render(
        interface="eth0",
        infiniband="on",
        hcas=["mlx5_0:1", "rocep1s0"],
        gid_index=3,
        buffer_size=8388608,
        debug="INFO",
        debug_subsystems=["INIT", "NET"],
        cuda_device_max_connections=1,
        ib_ports=ports(sysfs),
    )
    assert made.added == {
        "NCCL_SOCKET_IFNAME": "=eth0",
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_IB_DISABLE": "0",
        "NCCL_IB_HCA": "=mlx5_0:1,rocep1s0",
        "NCCL_IB_GID_INDEX": "3",
        "NCCL_BUFFSIZE": "8388608",
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT,NET",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    }
    assert made.kept == {} and made.findings == []
    assert made.shown[0] == "interface eth0 (10.0.0.1)"
    assert "InfiniBand on: mlx5_0:1 (InfiniBand, 200 Gb/sec, ACTIVE), rocep1s0:1" in made.shown[1]


def test_rendering_again_what_is_set_changes_nothing():
    first = render(interface="eth,ens", infiniband="off", debug="INFO")
    again = render(first.added, interface="eth,ens", infiniband="off", debug="INFO")
    assert (again.added, again.kept) == ({}, {})


def test_an_empty_section_adds_nothing():
    assert render() == module.NetworkEnvironment()


def test_prefixes_select_several_of_which_gloo_takes_the_first():
    made = render(interface="eth0,en,eth,em,bond")
    assert made.added == {"NCCL_SOCKET_IFNAME": "=eth0,eth0.100,ens5", "GLOO_SOCKET_IFNAME": "eth0"}
    assert made.shown[0].endswith("; gloo uses eth0")


def test_the_command_of_the_document():
    """NCCL_IB_DISABLE=0 NCCL_SOCKET_IFNAME=… NCCL_BUFFSIZE=2097152 allranks train …"""
    env = {
        "NCCL_IB_DISABLE": "0",
        "NCCL_SOCKET_IFNAME": "eth0,en,eth,em,bond",
        "NCCL_BUFFSIZE": "2097152",
        "NCCL_DEBUG": "INFO",
    }
    made = render(env)
    assert made.added == {"GLOO_SOCKET_IFNAME": "eth0"}
    assert made.kept == {} and made.findings == []
    text = "\n".join(made.shown)
    assert "interface eth0 (10.0.0.1)" in text
    assert "InfiniBand allowed, but this node has no active port: NCCL uses sockets" in text
    assert "buffer 2 MiB, not NCCL's default of 4 MiB" in text
    assert "NCCL_SOCKET_IFNAME=eth0,en,eth,em,bond" in text


def test_variables_of_the_user_win_and_are_reported():
    made = render({"NCCL_SOCKET_IFNAME": "ens", "NCCL_DEBUG": "WARN"}, interface="eth0", debug="INFO", infiniband="off")
    assert made.added == {"NCCL_IB_DISABLE": "1", "GLOO_SOCKET_IFNAME": "ens5"}
    assert made.kept == {"NCCL_SOCKET_IFNAME": ("ens", "=eth0"), "NCCL_DEBUG": ("WARN", "INFO")}
    assert "NCCL_DEBUG=WARN of the environment wins over the config's INFO" in made.shown


def test_an_interface_that_is_not_here():
    with pytest.raises(RefusedError, match=r"network.interface: ib selects no running interface .*eth0 \(10.0.0.1\)"):
        render(interface="ib")
    with pytest.raises(RefusedError, match=r"eth1 selects no running interface .*eth1 \(10.0.1.1, down\)"):
        render(interface="eth1")
    with pytest.raises(RefusedError, match=r"GLOO_SOCKET_IFNAME=eth: .*no interface eth, but .*exact names"):
        render({"GLOO_SOCKET_IFNAME": "eth"})


def test_a_variable_that_selects_nothing_is_told():
    (finding,) = render({"NCCL_SOCKET_IFNAME": "ib"}).findings
    assert "selects no running interface" in finding and "NCCL will find no way" in finding
    (finding,) = render({"NCCL_SOCKET_IFNAME": "ib"}, uses_gpus=False).findings
    assert "no harm" in finding


def test_loopback_between_nodes_is_told():
    (finding,) = render(interface="=lo", peer="10.0.0.9").findings
    assert finding == "interface lo (127.0.0.1) reaches no other node; the nodes meet at 10.0.0.9"
    assert render(interface="=lo", peer="127.0.0.1").findings == []


def test_unreadable_and_doubtful_variables():
    with pytest.raises(UsageError, match=r"environment: NCCL_BUFFSIZE=4MiB: .*would read 4\n  NCCL_IB_DISABLE=yes"):
        render({"NCCL_IB_DISABLE": "yes", "NCCL_BUFFSIZE": "4MiB"})
    (finding,) = render({"NCCL_TIMEOUT": "1800"}).findings
    assert finding.startswith("NCCL_TIMEOUT: there is no such variable")


def test_required_infiniband(sysfs):
    assert render(infiniband="required", ib_ports=ports(sysfs)).added == {"NCCL_IB_DISABLE": "0"}
    with pytest.raises(RefusedError, match=r"no active InfiniBand or RoCE port; found: none in /sys/class/infiniband"):
        render(infiniband="required")
    with pytest.raises(RefusedError, match=r"found: mlx5_1:1 \(InfiniBand, 200 Gb/sec, DOWN\)") as refused:
        render(infiniband="required", hcas=["mlx5_1"], ib_ports=ports(sysfs))
    assert refused.value.exit_code == 3
    with pytest.raises(UsageError, match="NCCL_IB_DISABLE=1 contradicts"):
        render({"NCCL_IB_DISABLE": "1"}, infiniband="required", ib_ports=ports(sysfs))


def test_adapters_that_are_not_here(sysfs):
    for name in ("mlx5_7", "mlx5_0:2", "mlx5"):
        with pytest.raises(RefusedError, match=rf"network.hcas: .* has no {name}; .*mlx5_0:1"):
            render(hcas=[name], ib_ports=ports(sysfs))


def test_settings_from_nccls_files_are_told(tmp_path):
    conf = tmp_path / "nccl.conf"
    conf.write_text("NCCL_DEBUG=WARN\nNCCL_SOCKET_IFNAME=ens\nNCCL_IB_DISABEL=1\n")
    made = render({"NCCL_CONF_FILE": str(conf)}, debug="INFO")
    assert made.added == {"NCCL_DEBUG": "INFO", "GLOO_SOCKET_IFNAME": "ens5"}
    assert made.kept == {}
    assert made.findings == [
        "NCCL_IB_DISABEL: NCCL 2.32 knows no such variable; did you mean NCCL_IB_DISABLE?",
        f"NCCL_DEBUG is set in {conf}, but the config's INFO is taken",
        f"NCCL_IB_DISABEL is set in {conf}",
        f"NCCL_SOCKET_IFNAME is set in {conf}",
    ]


def test_gloo_is_kept_off_a_host_name_that_means_loopback(monkeypatch):
    """As Debian writes it into /etc/hosts: gloo would tell the other nodes 127.0.1.1."""
    resolve = socket.getaddrinfo

    def as_debian(host, *arguments, **keys):
        return resolve("127.0.1.1" if host in ("node0", socket.gethostname()) else host, *arguments, **keys)

    monkeypatch.setattr(socket, "getaddrinfo", as_debian)
    monkeypatch.setattr(module, "facing", lambda peer, nics: nics[5] if peer == "10.2.0.9" else nics[0])
    made = render(peer="10.2.0.9")
    assert (made.added, made.shown[0]) == ({"GLOO_SOCKET_IFNAME": "ens5"}, "gloo uses interface ens5")
    assert render(peer="10.2.0.9", interface="=eth0").added["GLOO_SOCKET_IFNAME"] == "eth0"
    assert render({"GLOO_SOCKET_IFNAME": "eth0"}, peer="10.2.0.9").kept == {}
    assert render(peer="node0", nics=NICS[:3]).added == {"GLOO_SOCKET_IFNAME": "eth0"}, "the only other"
    assert render(peer="node0").added == {}, "which of them is not known"
    for peer in ("127.0.0.1", "::1", "localhost", None):
        assert render(peer=peer).added == {}, "all ranks are here: loopback is as good"


def test_the_key_of_encrypted_sockets_is_not_shown():
    assert "s3cret" not in "\n".join(render({"NCCL_PSK": "s3cret" * 8}).shown)


def test_an_interface_that_only_its_own_link_can_reach_is_told_and_not_handed_to_gloo():
    """NCCL takes `ib0` for a prefix, which also ib0p has."""
    made = render({"NCCL_SOCKET_IFNAME": "ib0"}, nics=[*NICS, IB0P])
    (found,) = [finding for finding in made.findings if "ib0" in finding]
    assert found.startswith("NCCL_SOCKET_IFNAME=ib0 selects only ib0p (fe80::2%ib0p), with a link-local address, of")
    assert "eth0 (10.0.0.1)" in found and "NCCL will find no way to the other ranks" in found
    assert "GLOO_SOCKET_IFNAME" not in made.added
    both = render({"NCCL_SOCKET_IFNAME": "ib0,eth0"}, nics=[IB0P, *NICS])
    assert both.added["GLOO_SOCKET_IFNAME"] == "eth0"
    assert render(interface="ib,eth", nics=[IB0P, *NICS]).added["NCCL_SOCKET_IFNAME"] == "=eth0,eth0.100"


def test_what_is_required_and_cannot_be_had_is_refused_before_the_start(sysfs):
    for require in ("ib", "RoCE", "gdr"):
        with pytest.raises(
            RefusedError, match=f"network.require: {require}, but this node .* has no active InfiniBand"
        ):
            render(peer="127.0.0.2", require=require)
        render(peer="127.0.0.2", require=require, ib_ports=ports(sysfs))
        render(require=require)  # of one node
    for require in ("eth0", "ens9, eth0", "mlx5_0:1"):
        render(peer="127.0.0.2", require=require, ib_ports=ports(sysfs))
    with pytest.raises(RefusedError, match="infiniband is none of ib, roce, gdr, and no interface"):
        render(peer="127.0.0.2", require="infiniband", uses_gpus=False)
