"""The stand-in's server and scheduler: a queue, first come first served, and the hosts that have reported."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import time
from typing import Any

from tests.cluster.lab.pbs import wire
from tests.cluster.lab.pbs.resources import NCPUS, NGPUS, BadRequest, Chunk, allocate, parse_nodes, parse_select

QUEUES = ("workq", "long")
# A host that says nothing for so long is down. OpenPBS takes longer.
SILENCE_SECONDS = 6


class Job:
    def __init__(self, number: int, server: str, given: dict[str, Any]):
        self.given = given
        self.id = f"{number}.{server}"
        self.number = number
        self.queue = given.get("queue") or QUEUES[0]
        self.state = "Q"
        self.hosts: list[str] = []  # a host for every chunk
        self.exit: int | None = None
        self.run_count = 0
        self.rerun = False  # asked for, not done yet
        self.ended = asyncio.Event()
        resources = given["resources"]
        if "nodes" in resources and ("select" in resources or "place" in resources):
            raise BadRequest('"-lresource=" cannot be used with "select" or "place", resource is: nodes')
        self.chunks: list[Chunk] = (
            parse_nodes(resources["nodes"])
            if "nodes" in resources
            else parse_select(resources.get("select", "1:ncpus=1"))
        )
        self.scatter = "nodes" in resources or "scatter" in resources.get("place", "free").split(":")
        self.walltime_seconds = _seconds(resources.get("walltime"))

    def path(self, stream: str, letter: str) -> str:
        """host:path of an output file."""
        given = self.given.get(stream) or ""
        host, colon, path = given.partition(":")
        if not colon:
            host, path = self.given["host"], given
        if not path.startswith("/"):
            path = f"{self.given['directory']}/{path}"
        if path.endswith("/"):
            path += (
                f"{self.id}.{'OU' if letter == 'o' else 'ER'}"
                if given
                else f"{self.given['name']}.{letter}{self.number}"
            )
        return f"{host}:{path}"

    def for_mom(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "cookie": secrets.token_hex(8),
            "queue": self.queue,
            "hosts": self.hosts,
            "chunks": [[chunk.num_processes, chunk.threads] for chunk in self.chunks],
            "walltime_seconds": self.walltime_seconds,
            **{key: self.given.get(key) for key in ("name", "script", "variables", "join", "keep", "shell", "account")},
            "umask": self.given["attributes"].get("umask", "077"),
            "output": self.path("output", "o"),
            "error": self.path("error", "e"),
        }

    def shown(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("id", "state", "queue", "hosts", "exit", "run_count")}
        return {**own, "name": self.given["name"], "output": self.path("output", "o"), "error": self.path("error", "e")}


class Server:
    def __init__(self) -> None:
        self.name = socket.gethostname()
        self.jobs: dict[str, Job] = {}
        self.moms: dict[str, asyncio.StreamWriter] = {}
        self.heard: dict[str, float] = {}

    async def serve(self) -> None:
        server = await asyncio.start_server(self.receive, "0.0.0.0", wire.SERVER_PORT, limit=1 << 24)
        asyncio.create_task(self.watch())  # noqa: RUF006
        await server.serve_forever()

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if line:
            request = json.loads(line)
            if request["op"] == "register":
                await self.mom(request["host"], reader, writer)
                return
            writer.write(wire.encode(await self.answer(request)))
        writer.close()

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] == "stat":
            return {"jobs": [job.shown() for job in self.jobs.values()]}
        if request["op"] == "hosts":
            return {"hosts": {host: "free" if host in self.moms else "down" for host in sorted(self.heard)}}
        if request["op"] == "submit":
            return self.submit(request["job"])
        job = self.jobs.get(request["id"]) or self.jobs.get(f"{request['id']}.{self.name}")
        if job is None:
            return {"error": f"Unknown Job Id {request['id']}", "code": 153}
        if request["op"] == "wait":
            await job.ended.wait()
            return {"exit": job.exit}
        if request["op"] == "rerun":
            return self.rerun(job)
        if job.state == "F":
            return {"error": f"Job has finished {job.id}", "code": 35}
        self.delete(job)
        return {}

    def submit(self, given: dict[str, Any]) -> dict[str, Any]:
        try:
            job = Job(len(self.jobs) + 1, self.name, given)
        except BadRequest as error:
            return {"error": str(error), "code": 170}
        if job.queue not in QUEUES:
            return {"error": "Unknown queue", "code": 171}
        job.given["variables"]["PBS_O_QUEUE"] = job.queue
        self.jobs[job.id] = job
        self.schedule()
        return {"id": job.id}

    def rerun(self, job: Job) -> dict[str, Any]:
        """Kill it; once its first host says that it is over, it waits in the queue again."""
        if job.state != "R":
            return {"error": f"Request invalid for state of job {job.id}", "code": 159}
        if not job.given.get("rerunnable", True):
            return {"error": f"Job Not Rerunable {job.id}", "code": 163}
        job.rerun = True
        self.tell(job.hosts[0], {"op": "kill", "id": job.id})
        return {}

    def delete(self, job: Job) -> None:
        if job.state == "Q":
            self.finish(job, None)
        else:
            job.state = "E"
            self.tell(job.hosts[0], {"op": "delete", "id": job.id})

    def schedule(self) -> None:
        for job in self.jobs.values():
            if job.state != "Q":
                continue
            hosts = allocate(job.chunks, job.scatter, self.free())
            if hosts is None:
                return  # strictly in order
            job.hosts, job.state = hosts, "R"
            job.run_count += 1
            self.tell(hosts[0], {"op": "run", "job": job.for_mom()})

    def free(self) -> dict[str, tuple[int, int]]:
        left = dict.fromkeys(sorted(self.moms), (NCPUS, NGPUS))
        for job in self.jobs.values():
            if job.state in "RE":
                for host, chunk in zip(job.hosts, job.chunks, strict=True):
                    if host in left:
                        left[host] = (left[host][0] - chunk.ncpus, left[host][1] - chunk.ngpus)
        return left

    def tell(self, host: str, message: dict[str, Any]) -> None:
        if host in self.moms:
            self.moms[host].write(wire.encode(message))

    async def mom(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """All that a host says, until it falls silent."""
        self.lose(host)
        self.moms[host], self.heard[host] = writer, time.monotonic()
        self.schedule()
        try:
            while line := await reader.readline():
                self.heard[host] = time.monotonic()
                message = json.loads(line)
                job = self.jobs.get(message.get("id", ""))
                if message["op"] == "ended" and job is not None and job.state in "RE" and job.hosts[0] == host:
                    self.finish(job, message["exit"])
        except ConnectionError:
            pass
        if self.moms.get(host) is writer:
            self.lose(host)

    def lose(self, host: str) -> None:
        """A host is down: a job whose first host it was is put back into the queue; others go on without it."""
        writer = self.moms.pop(host, None)
        if writer is None:
            return
        writer.close()
        for job in self.jobs.values():
            if job.state in "RE" and job.hosts[0] == host:
                for other in set(job.hosts[1:]):
                    self.tell(other, {"op": "kill", "id": job.id})
                if job.state == "R" and job.given.get("rerunnable", True):
                    job.state, job.hosts = "Q", []
                else:
                    self.finish(job, None)
        self.schedule()

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(1)
            for host, heard in list(self.heard.items()):
                if host in self.moms and time.monotonic() - heard > SILENCE_SECONDS:
                    self.lose(host)

    def finish(self, job: Job, code: int | None) -> None:
        if job.rerun:
            job.state, job.hosts, job.rerun = "Q", [], False
            self.schedule()
            return
        job.state, job.exit = "F", code
        job.ended.set()
        self.schedule()


def _seconds(walltime: str | None) -> int | None:
    if walltime is None:
        return None
    seconds = 0
    for part in walltime.split(":"):
        if not part.isdigit():
            raise BadRequest("Illegal attribute or resource value Resource_List.walltime")
        seconds = seconds * 60 + int(part)
    return seconds


def main() -> None:
    asyncio.run(Server().serve())
