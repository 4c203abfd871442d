import subprocess
import sys

import pytest

from allranks.cluster.nodes import Host, parse_hosts, read_hostfile
from allranks.errors import UsageError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node[0-3],gpu7", ["node0", "node1", "node2", "node3", "gpu7"]),
        ("b,a", ["b", "a"]),  # the first is node 0: the order is the user's
        ("b[1-2],a", ["b1", "b2", "a"]),
        ("rack[1-2]n[08-10]", ["rack1n08", "rack1n09", "rack1n10", "rack2n08", "rack2n09", "rack2n10"]),
        ("node[0-10/5]", ["node0", "node5", "node10"]),
        ("10.0.0.1,fe80::1%eth0,[::1]", ["10.0.0.1", "fe80::1%eth0", "::1"]),
        ("gpu.cluster.example.org, b,", ["gpu.cluster.example.org", "b"]),
    ],
)
def test_sets_of_hosts_come_in_the_order_given(text, names):
    assert [host.name for host in parse_hosts(text)] == names


def test_a_login_name_holds_for_its_set():
    assert parse_hosts("me@n[0-1],x") == [Host("n0", user="me"), Host("n1", user="me"), Host("x")]


def test_a_thousand_hosts():
    assert len(parse_hosts("node[0-1023]")) == 1024


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no host in ''"),
        (" , ", "no host in"),
        ("@compute", "groups are not supported"),
        ("-oProxyCommand=touch", "is not a host name"),
        ("-x", "it starts with '-'"),
        ("-[0-3]", "it starts with '-'"),
        ("me@-x", "it starts with '-'"),
        ("a;reboot", "is not a host name"),
        ("a$(reboot)", "is not a host name"),
        ("a\nb", "is not a host name"),
        ("a b", "is not a host name"),
        ("nöde", "is not a host name"),
        ("a!b", "is not a host name"),
        ("node*", "is not a host name"),
        ("a@b@c", "'a@b' is not a login name"),
        ("-l@host", "is not a login name"),
        ("node[0-1", "is not a host name"),
        ("node[3-1]", "'3-1' is not a range"),
        ("node[0-9/0]", "is not a range"),
        ("node[0-999999999]", "1000000000 hosts; expected at most"),
        ("a[0-999]b[0-999]", "1000000 hosts; expected at most"),
        ("a,b,a", "a comes twice"),
        ("node[0-3],node2", "node2 comes twice"),
        ("node[1,1]", "names a host twice"),
        ("fe80::1%;x", "is not a host name"),
    ],
)
def test_what_is_no_host_is_refused_by_name(text, said):
    with pytest.raises(UsageError) as error:
        parse_hosts(text)
    assert str(error.value).startswith("--hosts: ") and said in str(error.value)


def test_node_groups_run_nothing(tmp_path, monkeypatch):
    """ClusterShell would run the commands of the user's group configuration for `@name`."""
    (tmp_path / "clustershell").mkdir()
    trap = tmp_path / "trap"
    (tmp_path / "clustershell" / "groups.conf").write_text(
        f"[Main]\ndefault: evil\n[evil]\nmap: touch {trap}\nall: touch {trap}\nlist: touch {trap}\n"
    )
    code = "from allranks.cluster.nodes import parse_hosts\nprint(len(parse_hosts('n[0-1]')))\nparse_hosts('@evil')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"XDG_CONFIG_HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout == "2\n" and "groups are not supported" in done.stderr
    assert not trap.exists()


def test_a_host_file_of_deepspeed_and_open_mpi(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\nnode0 slots=8\n\n  node1 slots=4 max_slots=4  # older\ngpu[2-3]\nnode4:2\nme@node5\n")
    assert read_hostfile(path) == [
        Host("node0", 8),
        Host("node1", 4),
        Host("gpu2"),
        Host("gpu3"),
        Host("node4", 2),
        Host("node5", user="me"),
    ]


def test_a_node_file_of_pbs_repeats_hosts(tmp_path):
    path = tmp_path / "nodes"
    path.write_text("n2\nn2\nn0\nn2\nn0\n")
    assert [host.name for host in read_hostfile(path, repeated=True)] == ["n2", "n0"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("node1 slots=0", "slots=0: expected a number of processes"),
        ("node1 slots=x", "slots=x: expected a number"),
        ("node1 slots=99999999999999999999", "expected a number"),
        ("node1:2 slots=2", "given twice"),
        ("node1 gpus=2", "'gpus=2' is not understood"),
        ("node1 node2", "'node2' is not understood"),
        ("node0", "node0 comes twice, first at"),
        ("$(reboot)", "is not a host name"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, said):
    path = tmp_path / "hosts"
    path.write_text(f"node0\n{line}\n")
    with pytest.raises(UsageError) as error:
        read_hostfile(path)
    assert str(error.value).startswith(f"{path}:2: ") and said in str(error.value)


def test_a_host_file_that_is_empty_missing_or_no_text(tmp_path):
    path = tmp_path / "hosts"
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_hostfile(path)
    path.write_text("# nobody\n")
    with pytest.raises(UsageError, match="no host in it"):
        read_hostfile(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="it is not text"):
        read_hostfile(path)
