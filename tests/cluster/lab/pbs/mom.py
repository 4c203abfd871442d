"""The stand-in's MOM, one on every host: starts the tasks of jobs, and ends them.

The first host of a job starts its script as task 1. pbsdsh asks this host, which asks the others. A task has a session
of its own, and what ends a job ends these sessions: a process that leaves its session escapes, as it escapes OpenPBS
without cgroups. When the script ends, whatever the reason, all other tasks are killed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

from tests.cluster.lab.pbs import wire
from tests.cluster.lab.pbs.job import HOME, SPOOL, Job, signal_session

# From a delete's SIGTERM to SIGKILL, as OpenPBS's kill_delay.
KILL_DELAY_SECONDS = 10
EXEC_FAILED = 254
LINE_LIMIT = 1 << 24


class Mom:
    def __init__(self) -> None:
        self.name = socket.gethostname()
        self.jobs: dict[str, Job] = {}
        self.background: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        SPOOL.mkdir(exist_ok=True)
        server = await asyncio.start_server(self.receive, "0.0.0.0", wire.MOM_PORT, limit=LINE_LIMIT)
        self.do(self.report())
        await server.serve_forever()

    def do(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def report(self) -> None:
        """Stay connected to the server, and do what it says."""
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(wire.server_name(), wire.SERVER_PORT, limit=LINE_LIMIT)
                writer.write(wire.encode({"op": "register", "host": self.name}))
                self.do(self.ping(writer))
                while line := await reader.readline():
                    message = json.loads(line)
                    if message["op"] == "run":
                        self.do(self.run(Job(message["job"]), writer))
                    elif job := self.jobs.get(message["id"]):
                        self.do(self.delete(job) if message["op"] == "delete" else self.end(job))
            await asyncio.sleep(0.2)

    async def ping(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while not writer.is_closing():
                writer.write(wire.encode({"op": "ping"}))
                await writer.drain()
                await asyncio.sleep(1)

    # The first host of a job.

    async def run(self, job: Job, server: asyncio.StreamWriter) -> None:
        """Run the script to its end, end all other tasks, deliver the output, and tell the server."""
        spec = job.spec
        self.jobs[spec["id"]] = job
        nodefile, script = job.file("nodes"), job.file("SC")
        nodefile.write_text("".join(f"{host}\n" for host, _ in job.vnodes))
        script.write_text(spec["script"])
        script.chmod(0o700)
        # The script's own first line says what runs it, else the login shell does.
        shell = spec["shell"] or "/bin/bash"
        argv = (
            [shell, script]
            if spec["shell"] or not spec["script"].startswith("#!")
            else [shell, "-lc", 'exec "$0"', script]
        )
        outputs = [job.output("output").open("ab"), job.output("error").open("ab")]
        extra = {"PBS_NODEFILE": str(nodefile), "SHELL": "/bin/bash", "USER": "root", "LOGNAME": "root"}
        _, process = await self.start(job, argv, 0, outputs, extra)
        code = EXEC_FAILED if process is None else await self.wait_within_walltime(job, process)
        # PBS gives a job that a signal ended this code.
        code = 256 - code if code < 0 else code

        await asyncio.gather(*(self.end_on(job, host) for host in job.hosts))
        if job.collecting:  # what tasks printed last; a process that escaped may hold its end open
            await asyncio.wait(job.collecting, timeout=2)
        await asyncio.to_thread(self.deliver, job)
        with contextlib.suppress(OSError):
            server.write(wire.encode({"op": "ended", "id": spec["id"], "exit": code}))
            await server.drain()

    async def wait_within_walltime(self, job: Job, process: asyncio.subprocess.Process) -> int:
        try:
            return await asyncio.wait_for(process.wait(), job.spec["walltime_seconds"])
        except TimeoutError:
            limit = f"=>> PBS: job killed: walltime exceeded limit {job.spec['walltime_seconds']}\n"
            with job.output("error").open("a") as error:
                error.write(limit)
            self.do(self.delete(job))
            return await process.wait()

    async def delete(self, job: Job) -> None:
        """SIGTERM to the tasks of this host (its pbsdsh hands it on), SIGKILL after the delay."""
        job.signal(signal.SIGTERM)
        await asyncio.sleep(KILL_DELAY_SECONDS)
        job.signal(signal.SIGKILL)

    async def end_on(self, job: Job, host: str) -> None:
        if host == self.name:
            await self.end(job)
            return
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection(host, wire.MOM_PORT)
                writer.write(wire.encode({"op": "kill", "id": job.spec["id"]}))
                await reader.readline()
                writer.close()

    def deliver(self, job: Job) -> None:
        """Bring the collected output to where it was asked for, by scp where that is another host's disk."""
        for stream in ("output", "error"):
            source = job.file(stream)
            if not source.exists() or job.output(stream) != source:
                continue
            host, _, path = job.spec[stream].partition(":")
            done = False
            with contextlib.suppress(OSError):
                if host == self.name or Path(path).parent.is_mount() or _is_shared(path):
                    shutil.copy(source, path)
                    done = True
            if not done:
                os.spawnlp(os.P_WAIT, "scp", "scp", "-q", "-o", "BatchMode=yes", str(source), f"{host}:{path}")
            source.unlink()

    # Every host.

    async def start(
        self, job: Job, argv: list[Any], vnode: int, outputs: list[Any], extra: dict[str, str] | None = None
    ) -> tuple[int, asyncio.subprocess.Process | None]:
        """Start a task; its number, and its process unless it could not be started."""
        number = job.next_task
        job.next_task += 1
        environment = {**job.environment(vnode, number), **(extra or {})}
        process = None
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                env=environment,
                cwd=HOME,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=outputs[0],
                stderr=outputs[1],
                start_new_session=True,
                umask=int(job.spec["umask"], 8),
            )
            job.sessions[number] = process.pid
        except OSError as error:
            os.write(outputs[1].fileno(), f"{argv[0]}: {error.strerror}\n".encode())
        for output in outputs:
            output.close()
        return number, process

    async def end(self, job: Job) -> None:
        job.clean()
        self.jobs.pop(job.spec["id"], None)

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire.keep_alive(writer.get_extra_info("socket"))
        with contextlib.suppress(OSError):
            line = await reader.readline()
            request = json.loads(line) if line else {"op": None}
            if request["op"] == "tm":
                await self.task_manager(request, reader, writer)
            elif request["op"] == "spawn":
                await self.spawn(request, reader, writer)
            elif request["op"] == "output":
                await self.collect(request, reader)
            elif request["op"] == "kill":
                if job := self.jobs.get(str(request["id"])):
                    await self.end(job)
                writer.write(wire.encode({}))
        writer.close()

    async def spawn(self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start a task for the job's first host; tell of its start and of its end, and hand on signals."""
        spec = request["job"]
        job = self.jobs.setdefault(spec["id"], Job(spec))
        outputs = []
        for stream in ("output", "error"):
            connection = await asyncio.to_thread(wire.connect, job.hosts[0], wire.MOM_PORT)
            connection.sendall(
                wire.encode({"op": "output", "id": spec["id"], "cookie": spec["cookie"], "stream": stream})
            )
            outputs.append(connection)
        number, process = await self.start(job, request["argv"], request["vnode"], outputs)
        writer.write(wire.encode({"started": number}))

        async def signals() -> None:
            while line := await reader.readline():
                if number in job.sessions:
                    signal_session(job.sessions[number], json.loads(line)["signal"])

        listening = asyncio.create_task(signals())
        code = EXEC_FAILED if process is None else await process.wait()
        listening.cancel()
        writer.write(wire.encode({"exit": 256 - code if code < 0 else code}))
        await writer.drain()

    async def collect(self, request: dict[str, Any], reader: asyncio.StreamReader) -> None:
        """Append what a task prints to the job's output, as it comes."""
        job = self.jobs.get(request["id"])
        if job is None or request["cookie"] != job.spec["cookie"]:
            return
        this = asyncio.current_task()
        assert this is not None
        job.collecting.add(this)
        with job.output(request["stream"]).open("ab", buffering=0) as file:
            while data := await reader.read(1 << 16):
                file.write(data)
        job.collecting.discard(this)

    async def task_manager(
        self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Start what pbsdsh asks for on the job's hosts, and tell it how that goes."""
        job = self.jobs.get(str(request["job"]))
        if job is None or job.spec["cookie"] != request["cookie"] or job.hosts[0] != self.name:
            writer.write(wire.encode({"failed": "tm_init failed, rc = TM_ESYSTEM (17000)"}))
            return
        count = len(job.vnodes)
        if request["index"] is not None:
            vnodes = [request["index"] % count]
        else:
            vnodes = [copy % count for copy in range(count if request["copies"] is None else request["copies"])]
        tasks: list[asyncio.StreamWriter] = []
        started = [asyncio.Event() for _ in vnodes]

        async def one(number: int, vnode: int) -> None:
            host = job.vnodes[vnode][0]
            try:
                task_reader, task = await asyncio.open_connection(host, wire.MOM_PORT, limit=LINE_LIMIT)
            except OSError:
                writer.write(wire.encode({"spawn_error": "TM_ESYSTEM", "node": vnode}))
                started[number].set()
                return
            wire.keep_alive(task.get_extra_info("socket"))
            tasks.append(task)
            task.write(wire.encode({"op": "spawn", "job": job.spec, "vnode": vnode, "argv": request["argv"]}))
            code = 0  # of a task whose host is lost, pbsdsh hears no more than that it is over
            with contextlib.suppress(OSError):
                while line := await task_reader.readline():
                    event = json.loads(line)
                    if "started" in event:
                        writer.write(wire.encode({"started": True, "task": number, "node": vnode}))
                        started[number].set()
                    code = event.get("exit", code)
            started[number].set()
            writer.write(wire.encode({"exit": code, "task": number}))

        async def all_tasks() -> None:
            if request["one_by_one"]:
                for number, vnode in enumerate(vnodes):
                    await one(number, vnode)
            else:
                await asyncio.gather(*(one(number, vnode) for number, vnode in enumerate(vnodes)), say_when_started())

        async def say_when_started() -> None:
            for event in started:
                await event.wait()
            writer.write(wire.encode({"all_started": True}))

        async def signals() -> None:
            while line := await reader.readline():
                for task in tasks:
                    task.write(line)

        listening = asyncio.create_task(signals())
        await all_tasks()
        listening.cancel()
        await writer.drain()


def _is_shared(path: str) -> bool:
    """Whether the path is on the shared folder, which needs no copying between hosts (PBS's $usecp)."""
    parents = Path(path).resolve().parents
    return any(parent.is_mount() and parent.name == "shared" for parent in parents)


def main() -> None:
    os.environ.pop("PWD", None)
    os.umask(0o022)
    asyncio.run(Mom().serve())
