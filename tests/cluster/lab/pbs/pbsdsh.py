"""The stand-in's pbsdsh. Like OpenPBS's, it exits with 0 whatever the tasks exit with, and prints no output of theirs.

What a task prints goes to the job's own output files; a task's status is printed when it is not 0.
"""

from __future__ import annotations

import getopt
import json
import os
import signal
import sys
from typing import Any

from tests.cluster.lab.pbs import wire

USAGE = """Usage: pbsdsh [-c copies][-s][-v][-o] -- program [args...]
       pbsdsh [-n node_index][-s][-v][-o] -- program [args...]
       pbsdsh --version"""


def main() -> None:
    wire.answer_version()
    try:  # getopt(3) of glibc also finds options behind the program, where no -- is before it
        options, argv = getopt.gnu_getopt(sys.argv[1:], "c:n:svo")
        values = dict(options)
        copies, index = (int(values[name]) if name in values else None for name in ("-c", "-n"))
    except (getopt.GetoptError, ValueError):
        print(USAGE, file=sys.stderr)
        sys.exit(1)
    if not argv or (copies is not None and index is not None):
        print(USAGE, file=sys.stderr)
        sys.exit(1)
    if "PBS_ENVIRONMENT" not in os.environ:
        wire.fail("not executing under PBS", 1)
    try:
        stream = wire.connect("127.0.0.1", wire.MOM_PORT).makefile("rwb")
    except OSError:
        wire.fail("tm_init failed, rc = TM_ESYSTEM (17000)", 1)
    request: dict[str, Any] = {
        "op": "tm",
        "job": os.environ.get("PBS_JOBID"),
        "cookie": os.environ.get("PBS_JOBCOOKIE"),
    }
    request |= {"argv": argv, "copies": copies, "index": index, "one_by_one": "-s" in values}
    stream.write(wire.encode(request))
    stream.flush()

    def stop(number: int, _: object) -> None:
        print(f"pbsdsh: killing tasks signal {number}", flush=True)
        stream.write(wire.encode({"signal": number}))
        stream.flush()
        os._exit(1)

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for line in stream:
        event = json.loads(line)
        if "failed" in event:
            wire.fail(event["failed"], 1)
        if "spawn_error" in event:
            print(
                f"pbsdsh: spawn failed on node {event['node']} err {event['spawn_error']}", file=sys.stderr, flush=True
            )
        elif "started" in event and "-v" in values:
            print(f"pbsdsh: spawned task 0x{event['task']:08X} on logical node {event['node']}", flush=True)
        elif "exit" in event and (event["exit"] or "-v" in values):
            print(f"pbsdsh: task 0x{event['task']:08X} exit status {event['exit']}", flush=True)
        elif "all_started" in event and "-o" in values:
            break
