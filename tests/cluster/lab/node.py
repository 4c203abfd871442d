"""One node of a lab: starting it, running programs on it, and breaking it."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.lab.ground import PATH, kill, limit_cpu, limit_memory, limited_by
from tests.cluster.lab.identity import SITE_ENVIRONMENT

# In the environment of what the lab itself starts on a node (sshd, slurmd, ...), and of nothing that they start.
DAEMON = "ALLRANKS_LAB_DAEMON"
# Daemons whose title overwrites their environment.
TITLED = ("sshd", "slurmctld", "slurmd", "slurmstepd")
RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
LOGIN_ENVIRONMENT = {"PATH": PATH, "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash"}
START_SECONDS = 60
INIT = Path(__file__).with_name("node_init.sh")


class CommandFailed(subprocess.CalledProcessError):
    """Like its parent, but its message holds what the command printed."""

    def __str__(self) -> str:
        return f"{shlex.join(self.cmd)}: exit code {self.returncode}\n{self.stdout or ''}\n{self.stderr or ''}"


@dataclass(frozen=True)
class NodeProcess:
    """A process on a node, by its id on the host."""

    pid: int
    argv: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.pid} {shlex.join(self.argv)}"


class Popen(subprocess.Popen):
    """A program that runs on a node. Signals reach it, not the tool that carries it into the node's namespaces."""

    def await_program(self) -> None:
        """Return when the program has taken the place of what carried it in."""
        deadline = time.monotonic() + START_SECONDS
        while self.poll() is None and time.monotonic() < deadline:
            for child in _children(self.pid):
                argv = _argv(child)
                if argv and argv[0] != "nsenter" and argv[:2] not in (("setsid", "env"), ("env", "-C")):
                    return
            time.sleep(0.002)

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            for child in _children(self.pid):
                os.kill(child, number)


class Node:
    """`ip` and `name` are what the others know it by. `dirty`: it must be made anew before another test uses it."""

    def __init__(self, name: str, ip: str, files: Path, cgroup: Path):
        self.name = name
        self.ip = ip
        self.dirty = False
        self.init_pid = 0
        self._files = files
        self._cgroup = cgroup
        self._limited: dict[str, Path] = {}  # by controller: where its processes are limited
        self._carrier: subprocess.Popen | None = None

    def __repr__(self) -> str:
        return f"<{self.name} {self.ip}>"

    @property
    def alive(self) -> bool:
        return self._carrier is not None and self._carrier.poll() is None

    def begin(self, shared: Path, disk_size: str, visible: Sequence[Path]) -> None:
        """Start its init; `await_ready` says when it is done, so that many nodes start at once."""
        self._cgroup.mkdir(exist_ok=True)
        self.thaw()
        namespaces = ["--net", "--uts", "--mount", "--pid", "--ipc", "--fork", "--kill-child"]
        init = ["sh", INIT, self.name, self._files, shared, disk_size, *visible]
        with (self._files / "init.log").open("w") as log:
            self._carrier = subprocess.Popen(
                self._in_cgroup(["unshare", *namespaces, *init]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**LOGIN_ENVIRONMENT, **SITE_ENVIRONMENT, DAEMON: "init"},
                cwd="/",
            )

    def await_ready(self) -> None:
        assert self._carrier is not None and self._carrier.stdout is not None
        readable, _, _ = select.select([self._carrier.stdout], [], [], START_SECONDS)
        if not readable or self._carrier.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{self.name} did not start:\n{(self._files / 'init.log').read_text()}")
        self._carrier.stdout.close()
        self.init_pid = _children(self._carrier.pid)[0]
        self.dirty = False

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/root",
        timeout: float = 120,
        check: bool = False,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; `env` is added to a login's environment. Errors: CommandFailed with `check`."""
        process = self.popen(
            argv,
            env=env,
            cwd=cwd,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        )
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
        if check and process.returncode != 0:
            raise CommandFailed(process.returncode, list(map(str, argv)), stdout, stderr)
        return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = "/root",
        **options: Any,
    ) -> Popen:
        """Start a program in a session of its own, its stdout and stderr in one pipe; `options`: subprocess.Popen's."""
        options = {
            "text": True,
            "errors": "surrogateescape",
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "start_new_session": True,
            **options,
        }
        environment = {**LOGIN_ENVIRONMENT, **SITE_ENVIRONMENT, **(env or {})}
        process = Popen(self.carry(["setsid", "env", "-C", str(cwd), *map(str, argv)]), env=environment, **options)
        process.await_program()
        return process

    def carry(self, argv: Sequence[str | Path]) -> list[Any]:
        """The command for the host that runs `argv` on this node."""
        if not self.alive:
            raise RuntimeError(f"{self.name} is down")
        return self._in_cgroup(["nsenter", "-t", str(self.init_pid), "-n", "-u", "-m", "-p", "-i", "--", *argv])

    def daemon(self, argv: Sequence[str | Path]) -> None:
        """Run a program that puts a daemon into the background; the daemon does not count as one of `processes`."""
        self.begin_daemon(argv)()

    def begin_daemon(self, argv: Sequence[str | Path]) -> Callable[[], None]:
        """Like `daemon`, but return at once; the returned function waits, and raises if the start failed."""
        log = self._files / "daemons.log"
        with log.open("a") as file:
            process = self.popen(argv, env={DAEMON: "1"}, stdout=file, stderr=file)

        def await_start() -> None:
            if process.wait(START_SECONDS) != 0:
                raise RuntimeError(f"{self.name}: {argv} failed:\n{log.read_text()}")

        return await_start

    def processes(self) -> list[NodeProcess]:
        """All but what the lab itself started, whose are also the sessions of sshd and the idle workers of Ray."""
        return [process for process, is_daemon in self._all_processes() if not is_daemon]

    def daemons(self) -> list[NodeProcess]:
        """What the lab itself started."""
        return [process for process, is_daemon in self._all_processes() if is_daemon]

    def _all_processes(self) -> list[tuple[NodeProcess, bool]]:
        if not self.alive:
            return []
        namespace = Path(f"/proc/{self.init_pid}/ns/pid").readlink()
        found = []
        for pid in map(int, (self._cgroup / "cgroup.procs").read_text().split()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                argv = _argv(pid)
                is_inside = Path(f"/proc/{pid}/ns/pid").readlink() == namespace
                if is_inside and argv:  # a zombie has no argv
                    found.append((NodeProcess(pid, argv), _is_daemon(pid, argv)))
        return found

    def write(self, path: str | Path, text: str) -> None:
        """Write a file on this node alone, whatever the other nodes have there; undone by `Lab.restore`."""
        self.dirty = True
        self.run(["sh", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "sh", path], input=text, check=True)

    def rename(self, name: str) -> None:
        """Give it another host name, which no other node knows; undone by `Lab.restore`."""
        self.dirty = True
        self.run(["hostname", name], check=True)

    def fill_disk(self) -> None:
        """Leave no free byte on the node's own disk (its root and /tmp; not the shared folder)."""
        self.dirty = True
        used = self.run(["df", "--output=used", "--block-size=4096", "/tmp"], check=True).stdout.split()[-1]
        self.run(["mount", "-o", f"remount,size={int(used) * 4096}", "/tmp"], check=True)

    def free_disk(self, size: str = "2g") -> None:
        self.run(["mount", "-o", f"remount,size={size}", "/tmp"], check=True)

    def limit_cpu(self, cores: float | None) -> None:
        """Let its processes have so much CPU time together, and have it before others on this machine; None lets them
        have what there is, as does `Lab.restore`. Errors: NotImplementedError where the kernel's cgroups cannot."""
        if cores is not None or "cpu" in self._limited:
            limit_cpu(self._join("cpu"), cores)

    def limit_memory(self, num_bytes: int | None) -> None:
        """Let its processes have so much memory together, what they have by now not counted: the kernel kills one of
        them for more. None lifts that, as does `Lab.restore`. Errors: NotImplementedError where the kernel's cgroups
        cannot."""
        if num_bytes is not None or "memory" in self._limited:
            limit_memory(self._join("memory"), num_bytes)

    def _join(self, controller: str) -> Path:
        cgroup = self._limited[controller] = limited_by(controller, self._cgroup)
        cgroup.mkdir(parents=True, exist_ok=True)
        for number in (self._cgroup / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (cgroup / "cgroup.procs").write_text(number)
        return cgroup

    def freeze(self) -> None:
        """Stop all its processes, the kernel's side excepted: it answers ping, and nothing else."""
        self._set_frozen(True)

    def thaw(self) -> None:
        self._set_frozen(False)

    def end_processes(self) -> None:
        """SIGKILL what `processes` returns."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the node and all that runs on it, at once."""
        self.dirty = True
        kill(self._cgroup)
        self.reap()

    def reap(self) -> None:
        """Collect the exit of a node that was killed."""
        if self._carrier is not None:
            self._carrier.wait()

    def _set_frozen(self, frozen: bool) -> None:
        (self._cgroup / "cgroup.freeze").write_text(str(int(frozen)))
        deadline = time.monotonic() + 10
        while f"frozen {int(frozen)}" not in (self._cgroup / "cgroup.events").read_text():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} cannot be {'frozen' if frozen else 'thawed'}")
            time.sleep(0.005)

    def _in_cgroup(self, argv: Sequence[Any]) -> list[Any]:
        into: list[Any] = []
        for cgroup in dict.fromkeys((self._cgroup, *self._limited.values())):
            into += ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', cgroup]
        return [*into, *argv]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _argv(pid: int) -> tuple[str, ...]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return ()
    return tuple(words[:-1])


def _is_daemon(pid: int, argv: tuple[str, ...]) -> bool:
    if Path(f"/proc/{pid}/exe").readlink().name.startswith(TITLED):
        return True
    if argv[0].startswith("ray::"):  # a worker's title says what it is doing
        return argv[0].split()[0] in RAYS_OWN
    return f"\0{DAEMON}=".encode() in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
