"""How the memory allocator of a rank that computes on CPUs is set."""

import os
from collections.abc import Mapping
from pathlib import Path

# FSDP gathers and frees every layer at every step. glibc raises by itself, up to 32 MiB, the size from which freed
# blocks go back to the system, and what is smaller stays in an arena of the thread that made it. Measured by
# benchmarks/malloc.py: so a rank holds two thirds for 18 % of its tokens a second, and for 3 % on huge pages. To give
# the end of an arena back as early costs as much again and frees nothing more; from 4 MiB on costs more, and frees 5 %.
_THRESHOLDS = {"MALLOC_MMAP_THRESHOLD_": str(16 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20)}

# Where the kernel gives huge pages to those who ask (`madvise`, as Ubuntu has it), glibc 2.35 and later asks. A step
# goes through all of a model's memory, which is far more than the processor knows the pages of: on a virtual machine,
# where each page is looked up twice, steps took a third longer without, and as long as they liked.
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def allocator_variables(num_gpus: int, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """glibc's settings for our ranks on a node without GPUs; none where the user has set anything of the allocator.

    The allocator reads them when a process starts. Other C libraries do not know them.
    """
    tunables = env.get("GLIBC_TUNABLES", "")
    if num_gpus or any(name.startswith("MALLOC_") for name in env) or "glibc.malloc" in tunables:
        return {}
    return {**_THRESHOLDS, "GLIBC_TUNABLES": ":".join(filter(None, (tunables, _HUGE_PAGES)))}


def gives_huge_pages_on_request() -> bool:
    """Whether this kernel does, to those alone who ask."""
    try:
        return "[madvise]" in _MODE.read_text()
    except OSError:
        return False
