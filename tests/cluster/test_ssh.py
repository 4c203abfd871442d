"""Real OpenSSH between nodes: what arrives, what cannot be reached and why, jump hosts, trees, a head that is lost."""

import json
import signal
import sys
import time
from collections.abc import Callable

import pytest

from tests.cluster.lab import Lab
from tests.patience import TIMEOUT_SECONDS

# Runs on node 0. `act(fanout)` and `show(what)` are there for `code`, the body of a coroutine.
HEAD = """
import asyncio, json, os, sys
from allranks.cluster.fanout import NodeLost, NodeRefused, fan_out
from allranks.cluster.nodes import parse_hosts
from allranks.cluster.transports import Transport

async def on_output(node, stream, lines):
    output.setdefault(str(node), []).extend(lines)

output = {}
async def main(hosts, options):
    async with fan_out(parse_hosts(hosts), Transport("ssh", **json.loads(options)), on_output) as fanout:
        nodes = list(fanout.nodes)
        CODE
        print(json.dumps({"result": result, "unreachable": fanout.unreachable, "output": output}), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""
RUN_EVERYWHERE = "result = await asyncio.gather(*(fanout.run(node, ['hostname'], {}, '/') for node in nodes))"


def head(lab: Lab, hosts: str, code: str = RUN_EVERYWHERE, **options: object) -> dict:
    """What a head on node 0 with agents on `hosts` found."""
    program = HEAD.replace("CODE", code.replace("\n", "\n        "))
    done = lab.node(0).run(
        [sys.executable, "-c", program, hosts, json.dumps(options)], timeout=TIMEOUT_SECONDS, check=True
    )
    return json.loads(done.stdout)


def test_hostile_words_and_secrets_cross_real_ssh_unread(lab: Lab) -> None:
    words = ["a b", "it's", '"', "; touch /pwned", "$(touch /pwned)", "`touch /pwned`", "line\nbreak", "-P", "", "\\n"]
    code = (
        "import json, os, pathlib, sys\n"
        "seen = b''.join(path.read_bytes() for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'))\n"
        "print(json.dumps([sys.argv[1:], os.getcwd(), os.environ['HF_TOKEN'] == 'x' * 40, b'x' * 40 in seen]))\n"
    )
    folder = lab.shared / "it's a $(touch pwned) folder;"
    folder.mkdir()
    found = head(
        lab,
        "node[1-2]",
        f"result = await asyncio.gather(*(fanout.run(node, [sys.executable, '-c', {code!r}, *{words!r}], "
        f"{{'HF_TOKEN': 'x' * 40}}, {str(folder)!r}) for node in nodes))",
    )
    assert found["result"] == [0, 0]
    for node in ("0", "1"):
        assert json.loads(found["output"][node][0]) == [words, str(folder), True, False]
    for node in lab.nodes:
        assert node.run(["test", "-e", "/pwned"]).returncode == 1
        assert node.processes() == []


def test_what_cannot_be_reached_is_told_in_the_words_of_ssh(lab: Lab) -> None:
    """A closed port, no known key, no such name, no such interpreter, and a node without power: each its own reason."""
    lab.refuse_port(1, 22)
    lab.power_off(2)
    node0 = lab.node(0)
    node0.write("/etc/hosts", node0.run(["cat", "/etc/hosts"]).stdout + f"{node0.ip} stranger\n")
    started = time.monotonic()
    found = head(lab, "node0,node1,node2,stranger,nowhere")
    assert time.monotonic() - started < 60
    reasons = {int(node): reason for node, reason in found["unreachable"].items()}
    assert found["result"] == [0] and found["output"] == {"0": ["node0"]}
    assert "port 22: Connection refused" in reasons[1]
    assert "timed out" in reasons[2] or "No route to host" in reasons[2]
    assert "Host key verification failed" in reasons[3] and "connect once by hand" in reasons[3]
    assert "Could not resolve hostname nowhere" in reasons[4]
    lab.heal(1)
    lacking = head(lab, "node1", python="/no/python")
    assert "there is no /no/python" in lacking["unreachable"]["0"]


def test_a_jump_host_of_the_users_config_leads_the_way(lab: Lab) -> None:
    node0 = lab.node(0)
    # From node 0 straight to node 2: nothing. The config knows the way, and words that only suit a terminal.
    lab.node(2).run(["iptables", "-A", "INPUT", "-s", node0.ip, "-p", "tcp", "--dport", "22", "-j", "DROP"], check=True)
    node0.write(
        "/root/.ssh/config",
        "Host far\n  HostName node2\n  HostKeyAlias node2\n  ProxyJump node1\n  RequestTTY force\n"
        "  RemoteCommand bash -l\n  LocalForward 8080 localhost:80\n",
    )
    found = head(lab, "far")
    assert (found["result"], found["output"], found["unreachable"]) == ([0], {"0": ["node2"]}, {})


def test_a_tree_over_real_ssh(lab: Lab) -> None:
    code = RUN_EVERYWHERE + "\nresult.append(len(fanout._subtree.process_ids()))"
    found = head(lab, "node1,node2,node0", code, flat=1, width=1)
    assert found["result"] == [0, 0, 0, 1]
    assert found["output"] == {"0": ["node1"], "1": ["node2"], "2": ["node0"]}


def test_the_address_where_all_meet_is_tried_before_anything_starts(lab: Lab) -> None:
    lab.drop_port(0, 29600)
    options = ["--hosts", "node[0-1]", "--master-port", "29600", "--nproc-per-node", "1"]
    refused = lab.node(0).run(
        [sys.executable, "-m", "allranks", "run", *options, "--", "hostname"], timeout=TIMEOUT_SECONDS
    )
    assert refused.returncode == 3, refused.stderr
    assert "node1 cannot reach node0 at 10.77.0.1:29600 (eth0): timed out: a firewall?" in refused.stderr


# Writes a file once it runs, as a daemon would: in a session of its own, deaf to SIGTERM.
STUBBORN = """
import os, pathlib, signal, socket, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    pathlib.Path(sys.argv[1], socket.gethostname()).touch()
time.sleep(1000)
"""
STAY = """
command = [sys.executable, '-c', STUBBORN, FOLDER]
await asyncio.gather(*(fanout.run(node, command, {}, '/') for node in nodes))
result = None
"""


@pytest.mark.parametrize(
    "fault", ["killed", *(pytest.param(fault, marks=pytest.mark.thorough) for fault in ("cut", "frozen"))]
)
def test_a_head_that_is_lost_leaves_nothing_running(lab: Lab, fault: str) -> None:
    """Neither on the node that it is connected to, nor on the one behind that."""
    folder = lab.shared / fault
    folder.mkdir()
    code = STAY.replace("STUBBORN", repr(STUBBORN)).replace("FOLDER", repr(str(folder)))
    program = HEAD.replace("CODE", code.replace("\n", "\n        "))
    process = lab.node(0).popen([sys.executable, "-c", program, "node[1-2]", json.dumps({"flat": 1, "width": 1})])
    wait_for(lambda: len(list(folder.iterdir())) == 2 or process.poll() is not None, 60)
    assert process.poll() is None, process.stdout.read()
    nodes = [lab.node(1), lab.node(2)]
    assert all(node.processes() for node in nodes)
    match fault:
        case "killed":
            process.send_signal(signal.SIGKILL)
        case "cut":
            lab.cut(0)
        case "frozen":
            lab.freeze(0)
    wait_for(lambda: not any(node.processes() for node in nodes), 15)


def test_a_node_that_is_lost_is_told_while_the_others_go_on(lab: Lab) -> None:
    code = (
        "runs = [asyncio.create_task(fanout.run(node, ['sleep', '1000'], {}, '/')) for node in nodes]\n"
        "print('running', flush=True)\n"
        "try:\n    await runs[1]\nexcept NodeLost as error:\n    why = str(error)\n"
        "fanout.stop(1, [0])\n"
        "result = [why, await runs[0]]"
    )
    process = lab.node(0).popen(
        [sys.executable, "-c", HEAD.replace("CODE", code.replace("\n", "\n        ")), "node[1-2]", "{}"]
    )
    assert process.stdout.readline() == "running\n"
    lab.power_off(2)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert json.loads(output)["result"] == ["nothing was heard of it for 7 s", -signal.SIGTERM]


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
