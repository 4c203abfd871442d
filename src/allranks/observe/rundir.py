"""Where everything of a run lies."""

from pathlib import Path


class RunDir:
    """The paths inside a run's directory (the config's `output_dir`). Makes nothing by itself."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def manifest(self) -> Path:
        """What was started: argv, config, versions, environment, launch command."""
        return self.path / "manifest.json"

    @property
    def preflight(self) -> Path:
        """What the checks of the nodes found when the run started."""
        return self.path / "preflight.json"

    @property
    def live(self) -> Path:
        """What every rank does now, or did last; node 0 writes it while the run goes on."""
        return self.path / "live.json"

    @property
    def smoke(self) -> Path:
        """The run directory of the smoke run of the same config."""
        return self.path / "smoke"

    @property
    def scaling(self) -> Path:
        """The run directories of `allranks bench-scaling`, one a number of nodes; it removes them."""
        return self.path / "bench-scaling"

    @property
    def certificate(self) -> Path:
        """What the last smoke run that ended well proved."""
        return self.path / "certificate.json"

    @property
    def proof(self) -> Path:
        """What every rank said of itself after the first step of the last start."""
        return self.path / "proof.json"

    @property
    def failures(self) -> Path:
        """Why each start that failed did, a JSON object a line, and whether one before it had failed alike."""
        return self.path / "failures.jsonl"

    @property
    def evidence(self) -> Path:
        """What each rank did while the run hung, a folder each time: of each node, and diagnosis.json on node 0."""
        return self.path / "evidence"

    @property
    def profiles(self) -> Path:
        """What `profiler_steps` recorded, a file a rank."""
        return self.path / "profiles"

    @property
    def trackers(self) -> Path:
        """What trackers keep on this disk (TensorBoard's events, MLflow's store, …)."""
        return self.path / "trackers"

    def events(self, rank: int) -> Path:
        """What a rank did and when, one JSON object a line."""
        return self.path / "events" / f"rank-{rank:05d}.jsonl"

    def all_events(self) -> list[Path]:
        """The event files of all ranks that have written one here, by rank."""
        return sorted(path for path in (self.path / "events").glob("rank-*.jsonl") if path.is_file())

    def logs(self, node_rank: int | str) -> Path:
        """The folder of a node: by its rank, or by its host name where the rendezvous deals ranks out."""
        return self.path / "logs" / f"node-{node_rank}"

    def log(self, node_rank: int | str, rank: int) -> Path:
        """The output of a rank; of rank 0 its tracebacks and what libraries print."""
        return self.logs(node_rank) / f"rank-{rank:05d}.log"

    def agent_log(self, node_rank: int | str) -> Path:
        """What the launcher's own process (torchrun's agent) printed."""
        return self.logs(node_rank) / "agent.log"

    def entered(self, node_rank: int | str, rank: int) -> Path:
        """Of a rank of anyone's program that an error in a collective ended: which one it had entered last."""
        return self.logs(node_rank) / f"rank-{rank:05d}.entered.json"

    def started(self, node_rank: int | str) -> Path:
        """What this node started last: its command, environment and files; the manifest has all nodes that met."""
        return self.logs(node_rank) / "launch.json"

    def lock(self, node_rank: int | str) -> Path:
        """Held while this node takes part in a run, and by whom; a file that nobody holds is left and does no harm."""
        return lock_of(self.logs(node_rank))

    def end(self, node_rank: int | str) -> Path:
        """Why this node's part of the newest start that failed did; live.json has the answer of all nodes together."""
        return self.logs(node_rank) / "ended.json"

    def all_ends(self) -> list[Path]:
        """Those of all nodes that have written one here."""
        return sorted((self.path / "logs").glob("node-*/ended.json"))

    def config(self, node_rank: int | str) -> Path:
        """The resolved config that the ranks of this node read."""
        return self.logs(node_rank) / "config.yaml"

    @property
    def launch(self) -> Path:
        """Files that a launcher reads: Accelerate's of each node, DeepSpeed's host file."""
        return self.path / "launch"

    @property
    def deepspeed(self) -> Path:
        """DeepSpeed's settings as its engine got them."""
        return self.path / "deepspeed.json"

    @property
    def checkpoints(self) -> Path:
        """A folder for each checkpoint."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after so many steps; it counts once the file COMPLETE is in it."""
        return self.checkpoints / f"step-{step:08d}"

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"


def lock_of(logs: Path) -> Path:
    """The lock in the folder of a node."""
    return logs / "lock"


def has_a_record(run: RunDir) -> bool:
    """Whether a run has written anything of itself there."""
    return run.manifest.exists() or run.live.exists() or (run.path / "logs").is_dir() or bool(run.all_events())
