"""What the driver asks Ray Train for, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """`resources` are those of one worker; `placement_strategy` is Ray's word; `storage_path` is absolute."""

    run_id: str
    name: str
    num_workers: int
    resources: Mapping[str, float]
    placement_strategy: str
    max_failures: int
    storage_path: str
    master_port: int | None = None


@dataclass(frozen=True)
class Fitted:
    """What Ray Train made of it. `error` is Ray's own text, where it gave up."""

    error: str | None = None
    metrics: Mapping[str, Any] | None = None
    checkpoint: str | None = None
