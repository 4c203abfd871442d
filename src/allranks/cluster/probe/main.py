"""All that can be known of a node, as one line of JSON: whatever hangs, fails or is missing on it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import time
from typing import Any, Iterable, Iterator, Mapping

from allranks.cluster.probe import (
    adapters,
    amd,
    commit,
    environment,
    interfaces,
    kernel_log,
    mounts,
    names,
    nvidia,
    packages,
    pci,
    processes,
    system,
)
from allranks.cluster.probe.children import Answer, Found, Reporter, ask_all, end_all
from allranks.cluster.probe.node import Node

VERSION = 1
"""Raised when a key gets another meaning, never for a new key."""

_OF_GPUS = ("nvidia", "nvlinks", "fabric manager", "amd", "amd processes")
"""Sources that wait for a GPU's driver."""
_SAME = {"gpus": ("uuid", "pci")}
"""By what a thing is known again in lists that several sources add to."""


def main(request: Mapping[str, Any]) -> None:
    """Write the document for `request` to standard output, and end this process."""
    started = time.monotonic()
    # Whoever started this may block signals, or ignore the deaths of children, which would make each seem a success.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _give_up)
    output = os.dup(1)
    try:
        document = probe(request)
    except Exception as error:  # nothing that is known of should come here; but never half a document
        document = {"unanswered": {"probe": f"ended with {type(error).__name__}: {error}"[:300]}}
    document = {"version": VERSION, **document, "seconds": round(time.monotonic() - started, 3), "time": time.time()}
    data = json.dumps(document).encode() + b"\n"
    with contextlib.suppress(OSError):  # nobody reads
        while data:
            data = data[os.write(output, data) :]
    os._exit(0)


def probe(request: Mapping[str, Any]) -> dict[str, Any]:
    """The document without its version and times."""
    seconds = float(request.get("deadline_seconds") or 5)
    of_gpus = max(seconds, float(request.get("gpu_deadline_seconds") or 0))
    answers = ask_all(_sources(request), seconds, dict.fromkeys(_OF_GPUS, of_gpus))
    return {
        **_joined(answers),
        "unanswered": {place: why for answer in answers.values() for place, why in answer.unanswered.items()},
        "withheld": {place: why for answer in answers.values() for place, why in answer.withheld.items()},
    }


def _sources(request: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked, by its name in `unanswered`: each in a child of its own, those that a caller chose."""
    wanted = request.get("packages") or packages.DEFAULT
    all_sources: dict[str, Any] = {
        "system": system.look_at_system,
        "clock": system.look_at_clock,
        "shm": mounts.look_at_shm,
        "interfaces": interfaces.look_at_interfaces,
        "infiniband": functools.partial(adapters.look_at_adapters, pattern=request.get("nccl_ib_hca")),
        "pci": pci.look_at_pci,
        "nvidia": nvidia.look_at_nvidia,
        "nvlinks": nvidia.look_at_nvlinks,
        "fabric manager": nvidia.look_at_fabric_manager,
        "amd": amd.look_at_amd,
        "amd processes": amd.look_at_amd_processes,
        "kernel log": kernel_log.look_at_kernel_log,
        "packages": functools.partial(packages.look_at_packages, wanted=wanted),
        "code": functools.partial(commit.look_at_code, path=request.get("code")),
        "environment": environment.look_at_environment,
        "leftovers": processes.look_for_leftovers,
    }
    if request.get("names"):
        all_sources["names"] = functools.partial(names.look_up_names, names=request["names"])
    for entry in request.get("paths") or ():
        look = functools.partial(mounts.look_at_path, path=entry["path"], purpose=entry.get("purpose"))
        all_sources[f"paths: {entry.get('purpose')} {entry['path']}"] = look
    chosen = request.get("sources")
    return {
        name: functools.partial(_ask, source, request.get("root") or "/")
        for name, source in all_sources.items()
        if chosen is None or name.partition(":")[0] in chosen
    }


def _ask(source: Any, root: str, reporter: Reporter) -> Iterable[Found]:
    found: Iterable[Found] = source(Node(root, reporter.doing), reporter)
    return found


def _joined(answers: Mapping[str, Answer]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for answer in answers.values():
        for section, value in answer.found.items():
            if isinstance(value, dict):
                document.setdefault(section, {}).update(value)
            elif isinstance(value, list):
                document[section] = list(_with(document.get(section, []), value, _SAME.get(section, ())))
            else:
                document[section] = value
    return document


def _with(known: list[dict[str, Any]], more: list[dict[str, Any]], same: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Both lists, but what is the same thing as one."""
    left = list(more)
    for one in known:
        for other in list(left):
            if any(one.get(key) is not None and one.get(key) == other.get(key) for key in same):
                left.remove(other)
                one = {**one, **other}
        yield one
    yield from left


def _give_up(number: int, frame: object) -> None:
    end_all()
    os._exit(128 + number)
