"""The stand-in's qstat, qdel and pbsnodes."""

from __future__ import annotations

import getopt
import sys
from typing import Any

from tests.cluster.lab.pbs import wire

# qstat(1B): the codes of a job that is unknown, and of one that has finished.
UNKNOWN, FINISHED = 153, 35


def main() -> None:
    wire.answer_version()
    try:
        options, names = getopt.gnu_getopt(sys.argv[1:], "fxwatHu:")
    except getopt.GetoptError as error:
        wire.fail(str(error))
    flags = {option for option, _ in options}
    jobs: list[dict[str, Any]] = wire.ask_server({"op": "stat"})["jobs"]
    history = bool(flags & {"-x", "-H"})
    code = 0
    if names:
        chosen = []
        for name in names:
            found = [job for job in jobs if job["id"] == name or job["id"].split(".")[0] == name]
            if not found:
                print(f"qstat: Unknown Job Id {name}", file=sys.stderr)
                code = UNKNOWN
            elif found[0]["state"] == "F" and not history:
                hint = "Job has finished, use -x or -H to obtain historical job information"
                print(f"qstat: {found[0]['id']} {hint}", file=sys.stderr)
                code = FINISHED
            else:
                chosen += found
    else:
        chosen = [job for job in jobs if history or job["state"] != "F"]
    (show_full if "-f" in flags else show_table)(chosen)
    sys.exit(code)


def show_table(jobs: list[dict[str, Any]]) -> None:
    if not jobs:
        return
    print("Job id            Name             User              Time Use S Queue")
    print("----------------  ---------------- ----------------  -------- - -----")
    for job in jobs:
        print(f"{job['id']:<17} {job['name'][:16]:<16} root              {'00:00:00':<8} {job['state']} {job['queue']}")


def show_full(jobs: list[dict[str, Any]]) -> None:
    for job in jobs:
        print(f"Job Id: {job['id']}")
        print(f"    Job_Name = {job['name']}\n    job_state = {job['state']}\n    queue = {job['queue']}")
        if job["hosts"]:
            print(f"    exec_host = {'+'.join(f'{host}/0' for host in job['hosts'])}")
        print(f"    Output_Path = {job['output']}\n    Error_Path = {job['error']}")
        if job["exit"] is not None:
            print(f"    Exit_status = {job['exit']}")
        print(f"    run_count = {job['run_count']}\n")


def delete() -> None:
    wire.answer_version()
    try:
        options, names = getopt.gnu_getopt(sys.argv[1:], "xW:")
    except getopt.GetoptError as error:
        wire.fail(str(error))
    del options
    if not names:
        wire.fail("usage: qdel [-W force] [-x] job_identifier...")
    for name in names:
        wire.ask_server({"op": "delete", "id": name})


def rerun() -> None:
    wire.answer_version()
    if len(sys.argv) != 2:
        wire.fail("usage: qrerun job_identifier")
    wire.ask_server({"op": "rerun", "id": sys.argv[1]})


def hosts() -> None:
    wire.answer_version()
    named = [word for word in sys.argv[1:] if not word.startswith("-")]
    for host, state in wire.ask_server({"op": "hosts"})["hosts"].items():
        if named and host not in named:
            continue
        print(f"{host}\n     Mom = {host}\n     state = {state}\n")
