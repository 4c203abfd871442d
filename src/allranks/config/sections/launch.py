"""Keys of how a run is started, where the config and not the command line says it."""

from typing import Annotated

from pydantic import Field

from allranks.config.sections.section import Section

Amount = Annotated[float, Field(ge=0)]
# It becomes the name of a folder.
FolderName = Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]


class LaunchConfig(Section):
    """Starting the ranks with Ray Train."""

    use_ray: bool = False
    """Start the ranks with Ray Train; the same as `--launcher ray`."""
    ray_address: str | None = Field(None, min_length=1)
    """The Ray cluster: HOST:PORT, `auto` (the one this machine is part of) or `local` (one of its own, here); else \
RAY_ADDRESS, else the one this machine is part of, else `local`."""
    ray_num_workers: int | None = Field(None, ge=1)
    """Ranks; if not given, one for each GPU of the cluster, or one for each node of a cluster without any."""
    resources_per_worker: dict[str, Amount] | None = None
    """What Ray reserves for each rank: `CPU`, `GPU` (0 or 1), `memory` (bytes) or names of your own."""
    ray_run_name: FolderName | None = None
    """What Ray calls the run; its own files are in `OUTPUT_DIR/ray/RUN_ID/NAME`."""
    ray_max_failures: int = Field(3, ge=-1)
    """Restart the ranks from the newest checkpoint after this many failures at most; -1 for any number."""
    ray_start_timeout: int = Field(300, ge=1)
    """Seconds in which all ranks must have been given their resources, or the run ends and says what was missing."""
