"""A launcher's options for nodes that are all on this machine."""

from allranks.errors import UsageError
from allranks.launch.spec.options import LAUNCHERS


def words_for_local_nodes(launcher: str | None, rdzv_backend: str | None) -> tuple[str, ...]:
    """The words of `allranks train` for them. Raises UsageError."""
    if launcher == "ray":
        raise UsageError("--launcher ray: Ray's cluster says which nodes there are; rehearse with torchrun")
    if launcher is not None and launcher not in LAUNCHERS:
        raise UsageError(f"--launcher {launcher}: expected one of {', '.join(LAUNCHERS)}")
    if rdzv_backend not in (None, "static", "c10d"):
        raise UsageError(f"--rdzv-backend {rdzv_backend}: expected static or c10d")
    by_c10d = ("--rdzv-backend", "c10d") if rdzv_backend == "c10d" else ()
    return (*(("--launcher", launcher) if launcher else ()), *by_c10d)
