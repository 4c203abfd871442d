"""The environment's settings of NCCL and gloo: unknown names, unreadable values, differences between nodes."""

import pytest

from allranks.cluster import nccl_catalogue as catalogue
from allranks.cluster.environments import differences, must_be_equal, network_settings
from allranks.cluster.nccl_files import from_files
from allranks.cluster.nccl_lookalikes import NEVER_EXISTED, REMOVED, REPLACED, TORCHS_OWN
from allranks.cluster.nccl_variables import doubts, settings, unreadable


@pytest.fixture(autouse=True)
def _no_files_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NCCL_SOCKET_IFNAM", "did you mean NCCL_SOCKET_IFNAME?"),
        ("NCCL_IB_DISABLED", "did you mean NCCL_IB_DISABLE?"),
        ("NCCL_BUFFSIZ", "did you mean NCCL_BUFFSIZE?"),
        ("NCCL_BUFFER_SIZE", "did you mean NCCL_BUFFSIZE?"),
        ("GLOO_SOCKET_IFNAMES", "gloo knows no such variable; did you mean GLOO_SOCKET_IFNAME?"),
        ("TORCH_NCCL_BLOCKING_WAITS", "PyTorch knows no such variable; did you mean TORCH_NCCL_BLOCKING_WAIT?"),
        ("NCCL_QQQ_ZZZ", f"NCCL {catalogue.NCCL_VERSION} knows no such variable"),
        ("NCCL_TIMEOUT", "`network.timeout`"),
        ("NCCL_TIMEOUTS", "`network.timeout`"),
        ("NCCL_COMPRESSION", "`ddp_comm_hook`"),
        ("NCCL_ASYNC_ERROR_HANDLING", "deprecated; use TORCH_NCCL_ASYNC_ERROR_HANDLING"),
        ("NCCL_BLOCKING_WAIT", "deprecated; use TORCH_NCCL_BLOCKING_WAIT"),
        ("TORCH_NCCL_TRACE_BUFFER_SIZE", "deprecated; use TORCH_FR_BUFFER_SIZE"),
        ("NCCL_TREE_THRESHOLD", "no longer reads it; its place took NCCL_ALGO"),
    ],
)
def test_what_is_doubtful_is_named_with_what_was_probably_meant(name, said):
    (line,) = doubts({name: "1"})
    assert line.startswith(f"{name}: ") and said in line


def test_what_is_known_is_not_doubted():
    known = {
        "NCCL_IB_DISABLE": "0",
        "NCCL_SOCKET_IFNAME": "eth0,en,eth,em,bond",
        "NCCL_BUFFSIZE": "2097152",
        "NCCL_DEBUG": "info",
        "NCCL_DEBUG_SUBSYS": "init,NET",
        "NCCL_VERSION": "2.28.9-1",  # NVIDIA's images set it
        "NCCL_UCX_TLS": "dc",
        "NCCL_NET_OVERHEAD": "10",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "GLOO_SOCKET_IFNAME": "eth0",
        "NCCL_EMPTY": "",
        "PATH": "/bin",
    }
    assert doubts(known, installed="2.28.9") == []
    assert unreadable(known) == []


def test_variables_newer_than_the_installed_nccl():
    env = {"NCCL_NET_MERGE_POLICY": "RAIL", "NCCL_RAS_ENABLE": "0"}
    assert doubts(env, installed="2.31.1") == []
    assert doubts(env, installed="2.30.4") == [
        "NCCL_NET_MERGE_POLICY: came with NCCL 2.30.5; the installed 2.30.4 does not read it"
    ]
    assert [line.partition(":")[0] for line in doubts(env, installed="2.23.4")] == [*env]


def test_a_subsystem_that_is_none():
    assert doubts({"NCCL_DEBUG_SUBSYS": "INIT,NETT"}) == [
        "NCCL_DEBUG_SUBSYS: NCCL has no subsystem NETT; did you mean NET?"
    ]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NCCL_IB_DISABLE", "yes", "would read 0"),
        ("NCCL_IB_DISABLE", "true", "would read 0"),
        ("NCCL_BUFFSIZE", "4MiB", "would read 4"),
        ("NCCL_IB_TIMEOUT", "22s", "would read 22"),
        ("NCCL_DEBUG", "debug", "logs nothing"),
        ("NCCL_SOCKET_FAMILY", "ipv4", "AF_INET and AF_INET6"),
    ],
)
def test_values_that_nccl_would_read_otherwise(name, value, said):
    (line,) = unreadable({name: value})
    assert line.startswith(f"{name}={value}: ") and said in line


@pytest.mark.parametrize("value", ["0", "1", "-1", "0x400000", " 4194304 "])
def test_numbers_as_c_writes_them(value):
    assert unreadable({"NCCL_BUFFSIZE": value}) == []


def test_nccls_own_files_are_read_as_nccl_reads_them(tmp_path):
    own = tmp_path / "my.conf"
    own.write_text("# comment\nNCCL_DEBUG=WARN\nNCCL_SOCKET_IFNAME==ens1f0\nNCCL_DEBUG=INFO\nnonsense\n")
    env = {"NCCL_CONF_FILE": str(own), "NCCL_DEBUG": "VERSION"}
    assert from_files(env) == {"NCCL_SOCKET_IFNAME": ("=ens1f0", own)}
    assert settings(env) == env | {"NCCL_SOCKET_IFNAME": "=ens1f0"}
    (tmp_path / ".nccl.conf").write_text("NCCL_BUFFSIZE=1\n")
    assert from_files({}) == {"NCCL_BUFFSIZE": ("1", tmp_path / ".nccl.conf")}
    assert "NCCL_BUFFSIZE" not in from_files(env), "NCCL_CONF_FILE takes the place of the file at home"


def test_nodes_that_cannot_work_together():
    found = differences(
        {
            "node0": {"NCCL_BUFFSIZE": "2097152", "NCCL_IB_DISABLE": "0"},
            "node1": {"NCCL_IB_DISABLE": "1"},
            "node2": {"NCCL_PROTO": "Simple"},
        }
    )
    assert all(difference.is_refused for difference in found)
    messages = {difference.name: difference.message for difference in found}
    assert messages["NCCL_BUFFSIZE"] == (
        "NCCL_BUFFSIZE must be the same on all nodes, but is 2097152 on node0, "
        "not set (default 4194304) on node1, node2"
    )
    assert "0 on node0, 1 on node1, not set (default 0) on node2" in messages["NCCL_IB_DISABLE"]
    assert messages.keys() == {"NCCL_BUFFSIZE", "NCCL_IB_DISABLE", "NCCL_PROTO"}


def test_a_default_and_another_spelling_are_no_difference():
    assert differences({"a": {"NCCL_BUFFSIZE": "0x400000", "NCCL_ALGO": "ring"}, "b": {"NCCL_ALGO": "Ring"}}) == []
    assert must_be_equal({"NCCL_BUFFSIZE": "4194304"}) == {}


def test_what_may_differ_is_noted():
    found = differences(
        {
            "node0": {"NCCL_SOCKET_IFNAME": "=eth0", "NCCL_IB_HCA": "=mlx5_0", "GLOO_SOCKET_IFNAME": "eth0"},
            "node1": {"NCCL_SOCKET_IFNAME": "=ens5", "NCCL_IB_HCA": "=mlx5_0", "GLOO_SOCKET_IFNAME": "ens5"},
        }
    )
    assert [(difference.name, difference.is_refused) for difference in found] == [
        ("GLOO_SOCKET_IFNAME", False),
        ("NCCL_SOCKET_IFNAME", False),
    ]


def test_of_many_nodes_a_few_are_named():
    environments = {f"node{index}": {"NCCL_PROTO": "LL" if index else "Simple"} for index in range(1024)}
    (difference,) = differences(environments)
    assert difference.message.endswith("Simple on node0, LL on node1, node2, node3, node4 and 1,019 more")


def test_facts_hold_no_secret_and_no_log_file():
    facts = network_settings({"NCCL_PSK": "p" * 40, "NCCL_DEBUG_FILE": "/x", "NCCL_DEBUG": "INFO", "HOME": "/"})
    assert facts["NCCL_DEBUG"] == "INFO" and "p" * 10 not in facts["NCCL_PSK"]
    assert facts.keys() == {"NCCL_DEBUG", "NCCL_PSK"}


def test_the_catalogue_is_in_order():
    names = [*catalogue.CATALOGUE]
    assert len(names) == len(set(names)) > 140
    assert not catalogue.UNDOCUMENTED & set(names)
    for variable in catalogue.CATALOGUE.values():
        assert variable.meaning and len(variable.meaning) < 100
    for successor in (*REPLACED.values(), *REMOVED.values()):
        assert successor in catalogue.CATALOGUE or successor in TORCHS_OWN
    assert not NEVER_EXISTED.keys() & {*names, *REPLACED, *REMOVED}
