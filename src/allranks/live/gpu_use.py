"""How busy this node's GPUs are, asked of NVML by a thread of its own: a driver that hangs must hold nobody."""

from __future__ import annotations

import threading
from collections.abc import Mapping

_EVERY_SECONDS = 1.0


class GpuUse:
    """`of_processes` is what was seen last; use `close` at the end. Where there is no GPU, nothing is ever seen."""

    def __init__(self) -> None:
        self.warnings: tuple[str, ...] = ()
        self._seen: dict[int, tuple[float | None, int | None]] = {}
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="gpu use", daemon=True).start()

    def of_processes(self) -> Mapping[int, tuple[float | None, int | None]]:
        """Process id -> the use of its GPU from 0 to 1, and the bytes that it holds there."""
        return self._seen

    def close(self) -> None:
        """Stop looking; does not wait for it."""
        self._over.set()

    def _watch(self) -> None:
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return
        try:
            devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            while not self._over.wait(_EVERY_SECONDS):
                self._seen = _look(pynvml, devices)
        except pynvml.NVMLError as error:
            self._seen = {}
            self.warnings = (f"the use of its GPUs is not known any more: {error}",)


def _look(pynvml: object, devices: list[object]) -> dict[int, tuple[float | None, int | None]]:
    found = {}
    for device in devices:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(device)  # type: ignore[attr-defined]
        if processes:
            busy = pynvml.nvmlDeviceGetUtilizationRates(device).gpu / 100  # type: ignore[attr-defined]
            found.update({one.pid: (busy, one.usedGpuMemory) for one in processes})
    return found
