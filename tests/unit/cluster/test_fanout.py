import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from allranks.cluster.fanout import NodeLost, NodeRefused, fan_out
from allranks.cluster.nodes import parse_hosts
from allranks.cluster.transports import Transport

SSH = Transport("ssh", connect_seconds=20)
TREE = Transport("ssh", connect_seconds=20, flat=2, width=2)

HOSTILE = [
    "two words",
    'it\'s "quoted"',
    "; touch /tmp/allranks-was-here",
    "$(touch /tmp/allranks-was-here) `id` $HOME ${HOME}",
    "line\nbreak\r\n\ttab",
    "& | > < * ? ! ~ # % \\ \\n",
    "-P",
    "--",
    "",
    "ünïcödé ☃",
    os.fsdecode(b"\xff\xfe no utf-8"),
    "x" * 100_000,
]
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['VALUE'], os.getcwd(), os.environ['NODE']]))"


class Collected:
    """Output by node and stream."""

    def __init__(self):
        self.lines = {}

    async def __call__(self, node, stream, lines):
        self.lines.setdefault((node, stream), []).extend(lines)

    def stdout(self, node):
        return self.lines.get((node, "stdout"), [])


def on(hosts, work, transport=SSH, on_output=None):
    """Run `work(fanout)` with agents on `hosts`."""

    async def main():
        async with fan_out(parse_hosts(hosts), transport, on_output or Collected()) as fanout:
            return await work(fanout)

    return asyncio.run(main())


def test_words_variables_and_directories_arrive_as_they_are(ssh, tmp_path):
    output = Collected()
    # A path has no more than 255 bytes between two slashes.
    directories = [tmp_path / "d" / value.replace("/", "_") for value in HOSTILE if len(value) < 255]
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)

    async def work(fanout):
        for directory, value in zip(directories, HOSTILE, strict=False):
            assert await fanout.run(0, [sys.executable, "-c", SHOW, *HOSTILE], {"VALUE": value}, str(directory)) == 0

    on("n0", work, on_output=output)
    shown = [json.loads(line) for line in _joined(output.stdout(0))]
    assert [words for words, *_ in shown] == [HOSTILE] * len(directories)
    assert [value for _, value, *_ in shown] == HOSTILE[: len(directories)]
    assert [directory for _, _, directory, _ in shown] == [str(directory.resolve()) for directory in directories]
    assert not Path("/tmp/allranks-was-here").exists()


def _joined(lines):
    """A line of more than 64 KiB comes in pieces."""
    text = ""
    for line in lines:
        text += line
        if text.endswith('"n0"]'):
            yield text
            text = ""


def test_output_and_exit_codes_by_node(ssh):
    output = Collected()
    code = "import os, sys; print('out', os.environ['NODE']); print('err', file=sys.stderr); sys.exit(int(sys.argv[1]))"

    async def work(fanout):
        runs = (fanout.run(node, [sys.executable, "-c", code, str(node)], {}, "/") for node in fanout.nodes)
        return await asyncio.gather(*runs)

    assert on("n[0-2]", work, on_output=output) == [0, 1, 2]
    assert output.lines == {
        (node, stream): [text] for node in range(3) for stream, text in (("stdout", f"out n{node}"), ("stderr", "err"))
    }


def test_a_node_that_cannot_be_connected_to_is_not_a_command_that_failed(ssh):
    async def work(fanout):
        codes = [await fanout.run(node, ["sh", "-c", "exit 255"], {}, "/") for node in fanout.nodes]
        with pytest.raises(NodeLost, match="Connection refused"):
            await fanout.ask(1, "account")
        return codes, fanout.unreachable

    codes, unreachable = on("n0,gone1,locked2", work)
    assert codes == [255]
    assert unreachable[1] == "ssh says: ssh: connect to host gone1 port 22: Connection refused"
    assert "Permission denied (publickey)" in unreachable[2] and "ssh-copy-id" in unreachable[2]


def test_an_interpreter_that_is_missing_or_lacks_allranks(ssh, tmp_path):
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho "$0: No module named allranks" >&2; exit 1\n')
    bare.chmod(0o755)

    async def unreachable(fanout):
        return fanout.unreachable[0]

    missing = on("n0", unreachable, Transport("ssh", python="/no/such/python"))
    assert "there is no /no/such/python" in missing and "--python" in missing
    without = on("n0", unreachable, Transport("ssh", python=str(bare)))
    assert f"{bare} there has no allranks" in without


def test_what_a_login_shell_prints_is_no_message(ssh):
    async def work(fanout):
        return (await fanout.ask(0, "account"))["account"]["python"]

    assert on("chatty0", work) == sys.executable


def test_what_cannot_be_started_is_told_and_the_node_stays(ssh):
    async def work(fanout):
        with pytest.raises(NodeRefused, match="/no/program cannot be started: No such file"):
            await fanout.run(0, ["/no/program"], {}, "/")
        with pytest.raises(NodeRefused, match="there is no directory /no/where"):
            await fanout.run(0, ["true"], {}, "/no/where")
        with pytest.raises(NodeRefused, match="does not know 'explode'"):
            await fanout.ask(0, "explode")
        with pytest.raises(NodeRefused, match="malformed request: KeyError"):
            await fanout.ask(0, "run")
        return await fanout.run(0, ["true"], {}, "/")

    assert on("n0", work) == 0


def test_lines_of_any_length_and_bars_that_redraw_themselves(ssh):
    output = Collected()
    code = r"import sys; sys.stdout.write('a\n\nb\r\n' + '\r10%\r20%' + '\n' + 'x' * 200_000 + '\nno end')"

    async def work(fanout):
        return await fanout.run(0, [sys.executable, "-c", code], {}, "/")

    on("n0", work, on_output=output)
    lines = output.stdout(0)
    assert lines[:5] == ["a", "", "b", "10%", "20%"] and lines[-1] == "no end"
    assert "".join(lines[5:-1]) == "x" * 200_000 and max(map(len, lines)) <= 2**17


def test_secrets_are_on_no_command_line(ssh):
    output = Collected()
    code = (
        "import os, pathlib\n"
        "seen = [path.read_bytes() for path in pathlib.Path('/proc').glob('[0-9]*/cmdline')]\n"
        "print(any(os.environ['HF_TOKEN'].encode() in words for words in seen))"
    )

    async def work(fanout):
        return await fanout.run(0, [sys.executable, "-c", code], {"HF_TOKEN": "hf_" + "s3cret" * 6}, "/")

    on("n0", work, on_output=output)
    assert output.stdout(0) == ["False"]


def test_a_slow_reader_slows_the_command_and_loses_nothing(ssh, tmp_path):
    progress = tmp_path / "progress"
    code = (
        "import sys\n"
        "for number in range(400):\n"
        "    print(number, 'x' * 50_000, flush=True)\n"
        "    open(sys.argv[1], 'w').write(str(number))\n"
    )
    numbers = []
    stalled_at = []

    async def slow(node, stream, lines):
        if not stalled_at:
            # Until it comes no further: then pipes are full, and it waits.
            last = None
            while (now := progress.read_text() if progress.exists() else None) != last or now is None:
                last = now
                await asyncio.sleep(1)
            stalled_at.append(int(last))
        numbers.extend(int(line.split()[0]) for line in lines if line[0].isdigit())

    async def work(fanout):
        return await fanout.run(0, [sys.executable, "-c", code, str(progress)], {}, "/")

    assert on("n0", work, on_output=slow) == 0
    assert stalled_at[0] < 200
    assert numbers == list(range(400))


def test_a_signal_reaches_the_command_itself_and_stop_ends_all_of_it(ssh, marked):
    code = (
        "import signal, subprocess, sys, time\n"
        "subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('saved', flush=True))\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    output = Collected()

    async def until(word):
        while word not in output.stdout(0):
            await asyncio.sleep(0.02)

    async def work(fanout):
        running = asyncio.create_task(fanout.run(0, [sys.executable, "-c", code], marked.mark, "/"))
        await until("ready")
        fanout.signal(signal.SIGUSR1)
        await until("saved")
        assert len(marked()) == 2
        fanout.stop(0.2)
        return await running

    assert on("n0", work, on_output=output) == -signal.SIGKILL
    assert marked() == []


def test_a_signal_at_the_heels_of_a_command_is_not_lost(ssh):
    async def work(fanout):
        running = asyncio.create_task(fanout.run(0, ["sleep", "1000"], {}, "/"))
        await asyncio.sleep(0)
        fanout.signal(signal.SIGTERM)
        return await running

    assert on("n0", work) == -signal.SIGTERM


def test_a_daemon_does_not_outlive_its_command(ssh, marked):
    code = "(setsid sh -c 'trap \"\" HUP; sleep 1000 & sleep 1000' >/dev/null 2>&1 &) ; sleep 0.2; exit 3"

    async def work(fanout):
        return await fanout.run(0, ["sh", "-c", code], marked.mark, "/")

    assert on("n0", work) == 3
    assert marked() == []


def test_messages_that_are_none_end_the_link_not_the_head(ssh):
    async def work(fanout):
        lost = {}
        for node in range(2):
            with pytest.raises(NodeLost) as error:
                await fanout.ask(node, "account")
            lost[node] = str(error.value)
        return lost, (await fanout.ask(2, "account"))["account"]["num_gpus"]

    lost, gpus = on("lying0,flooding1,n2", work)
    assert "not a message: b'rm -rf /" in lost[0]
    assert "a line that is too long" in lost[1] and gpus == 0


def test_a_tree_reaches_everybody(ssh):
    output = Collected()

    async def work(fanout):
        codes = await asyncio.gather(*(fanout.run(node, ["sh", "-c", "echo $NODE"], {}, "/") for node in fanout.nodes))
        direct = len(fanout._subtree.process_ids())
        return codes, direct, fanout.unreachable

    codes, direct, unreachable = on("n[0-3],gone4,n[5-10]", work, TREE, output)
    assert codes == [0] * 10 and list(unreachable) == [4]
    assert direct <= 3  # two, and one more for the one that did not answer
    assert {node: output.stdout(node) for node in range(11) if node != 4} == {
        node: [f"n{node}"] for node in range(11) if node != 4
    }


def test_nodes_behind_one_that_dies_are_lost_with_its_name(ssh):
    async def work(fanout):
        runs = [asyncio.create_task(fanout.run(node, ["sleep", "1000"], {}, "/")) for node in fanout.nodes]
        await asyncio.sleep(0.5)
        for pid in fanout._subtree.process_ids():
            os.kill(pid, signal.SIGKILL)
        return await asyncio.gather(*runs, return_exceptions=True)

    ends = on("n[0-3]", work, TREE)
    assert all(isinstance(end, NodeLost) for end in ends)
    assert "node 0, through which it was reached, is lost" in str(ends[1])


def test_an_agent_that_is_killed_takes_all_it_started_with_it(ssh, marked):
    """Whichever of its two processes it is."""

    async def work(fanout):
        ends = []
        for node, which in ((0, 0), (1, 1)):
            code = "(setsid sleep 1000 &) ; sleep 1000 & sleep 1000"
            running = asyncio.create_task(fanout.run(node, ["sh", "-c", code], marked.mark, "/"))
            while len(marked()) < 4:
                await asyncio.sleep(0.05)
            parent = next(pid for pid in marked() if _parent(pid) not in marked())
            agent = _parent(parent)
            os.kill([agent, _parent(agent)][which], signal.SIGKILL)
            ends += await asyncio.gather(running, return_exceptions=True)
            while marked():
                await asyncio.sleep(0.05)
        return ends

    assert [type(end) for end in on("n[0-1]", work)] == [NodeLost, NodeLost]


def _parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_head_that_stops_in_the_middle_leaves_nothing(ssh, marked):
    async def work(fanout):
        async with asyncio.TaskGroup() as runs:
            for node in fanout.nodes:
                runs.create_task(fanout.run(node, ["sleep", "1000"], marked.mark, "/"))
            while len(marked()) < 3:
                await asyncio.sleep(0.05)
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        on("n[0-2]", work)
    assert marked() == []
