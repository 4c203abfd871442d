"""A plain trainer: DDP on gloo, torch's DataLoader, checkpoints by torch.save; and a fault of rank 1, by its name."""

import datetime
import os
import sys
import threading
import time
from pathlib import Path

loaded = threading.Event()


def tells_that_it_loads():
    while not loaded.wait(3):
        print("loading", flush=True)  # on a busy machine that takes longer than a hang may


threading.Thread(target=tells_that_it_loads, daemon=True).start()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from tests.cluster.rank_faults import deadlock, eats_memory, tokenizes  # noqa: E402

FAULT, RANK = sys.argv[1], int(os.environ["RANK"])
HERE = RANK == 1
AT = 4


def now():
    Path("injected").write_text(f"{time.time()}")


class Squares(Dataset):
    def __len__(self):
        return 100_000

    def __getitem__(self, index):
        if FAULT == "blocked loader" and HERE and index >= 8 * AT:
            now()
            threading.Event().wait()  # as on a dead mount
        return torch.full((4,), float(index % 7))


def fault(step):
    if HERE and FAULT not in ("waits", "blocked loader", "flood"):
        now()
    if FAULT == "exception" and HERE:
        raise ValueError("bad batch 17")
    if FAULT == "ends early" and HERE:
        sys.exit()  # as where it has fewer batches
    if FAULT == "exits with 3" and HERE:
        sys.exit(3)
    if FAULT == "exits with 7" and HERE:
        os._exit(7)
    if FAULT == "exits with 0" and HERE:
        os._exit(0)
    if FAULT == "flood":
        floods(HERE)
    if FAULT == "killed" and HERE:
        os.kill(os.getpid(), 9)
    if FAULT == "eats memory" and HERE:
        eats_memory()
    if FAULT == "tokenizes" and HERE:
        tokenizes()
    if FAULT == "deadlock" and HERE:
        deadlock()
    if FAULT == "other collective" and HERE:
        dist.broadcast(torch.zeros(8), 0)
    if FAULT == "cuda memory" and HERE:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.21 GiB "
            "is free. Including non-PyTorch memory, this process has 77.93 GiB memory in use. Of the allocated memory "
            "76.10 GiB is allocated by PyTorch, and 1.02 GiB is reserved by PyTorch but unallocated."
        )
    if FAULT == "not a number" and HERE:
        raise FloatingPointError(f"loss is nan at step {step}")


def floods(dies):
    """100 MB of one rank, in the midst of which the other one dies."""
    if dies:
        while not Path("flooding").exists():
            time.sleep(0.01)
        now()
        raise ValueError("bad batch 17")
    for line in range(100_000):
        print(f"{line} " + "all is well; " * 75)
        if line == 20_000:
            Path("flooding").touch()


def main():
    timeout = datetime.timedelta(seconds=8 if FAULT == "tokenizes" else 600)
    dist.init_process_group("gloo", timeout=timeout)
    model = DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    workers = 1 if FAULT == "blocked loader" else 0
    loader = DataLoader(Squares(), batch_size=8, num_workers=workers)
    for step, batch in enumerate(loader, 1):
        optimizer.zero_grad()
        loss = (model(batch) ** 2).mean()
        if FAULT == "ends with nan" and HERE and step == AT:
            loss = loss * float("nan")
        loss.backward()
        optimizer.step()
        loaded.set()
        if step == AT:
            fault(step)
        total, own = loss.detach().clone(), loss.item()
        if not (FAULT == "skipped" and HERE and step == AT):
            dist.all_reduce(torch.zeros(9) if FAULT == "other shape" and HERE and step == AT else total)
        if FAULT == "full disk" and step == AT:
            torch.save({"state": model.state_dict(), "pad": torch.zeros(4 * 2**20)}, f"/tmp/rank-{RANK}.pt")
        print(f"step {step} loss {own if FAULT == 'ends with nan' else total.item():.4f}", flush=True)
        time.sleep(0.2)
        if FAULT == "ends with nan" and step == 2 * AT:
            break


if __name__ == "__main__":
    main()
