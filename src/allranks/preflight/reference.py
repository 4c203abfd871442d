"""The page docs/checks.md, made from the checks (`python -m allranks.preflight.reference`)."""

from __future__ import annotations

from allranks.preflight.catalogue import CHECKS, FAMILIES
from allranks.preflight.check import Check

INTRODUCTION = """\
# The checks of nodes before a run

`allranks check CONFIG` makes all of these on every node; `allranks train` on several nodes makes those that are quick
by itself ([how to use them](preflight.md)). This page is made from the code, by
`python -m allranks.preflight.reference > docs/checks.md`.

- An **error** makes a run wrong, hang or die, and refuses it. A **warning** makes it slow or fragile. A **note** is
  worth knowing. Of a check that can find both, the worst is told here.
- *Not known* is not ok: the check applies, and what it needs could not be seen. *Skipped* is no failure: the check does
  not apply to this run or node.
- With more than two nodes, those are named that deviate from more than half. With two, or a tie, both values are shown
  and nobody is to blame more; `(here)` is the node at whose terminal you read.
- `preflight:` in the config takes ids and families, to [accept, sharpen or leave out](preflight.md) checks.
- `certificate.differs` is not among them: it compares a start with the last [smoke run](smoke.md), once the data is
  prepared. `preflight:` takes its name, too.
- Checks marked *recorded* are tested on recorded and simulated input of such hardware, not on the hardware itself.
"""

_BY_HAND = (
    (
        "compare `git rev-parse HEAD`",
        "`parity.code`, by the content of the sources",
    ),
    (
        "`md5sum` or `diff` of the config",
        "`parity.config`, key by key; the nodes compare it at every start, too",
    ),
    (
        "`md5sum` of the data",
        "`parity.data`; the prepared data is compared at every start, too",
    ),
    (
        "compare Python's and torch's versions, CUDA and driver",
        "`parity.python`, `parity.packages`, `parity.nccl`, `parity.driver`",
    ),
    (
        "see that every node has the same model",
        "`parity.model`, `parity.tokenizer`",
    ),
    (
        "`nc -zv NODE0 29500`, `telnet`, from each node",
        "the nodes meet on that port when `allranks check` starts: a node that does not reach it says so",
    ),
    (
        "open 1024 to 65535 in the firewall",
        "`reach.pairs` tries each node with each other, and names the ports to open",
    ),
    (
        "`ping NODE0`",
        "`reach.name-unknown`, `reach.name-loopback`, `reach.name-of-another`",
    ),
    (
        "`ssh NODE hostname`, without a password",
        "`reach.node`, with `--hosts`, by the same ssh; not needed otherwise",
    ),
    (
        "`nvidia-smi -L \\| wc -l`",
        "`start.refused` and the checks of `gpus`",
    ),
    (
        "`nvidia-smi`: is anyone else on the GPUs?",
        "the checks of `gpus`, and `environment.leftovers`",
    ),
    (
        "`ip link show`, to choose NCCL_SOCKET_IFNAME",
        "`reach.interface`, `reach.interface-kind`: what it chooses, on each node",
    ),
    (
        "`ibstat \\| grep State`",
        "the checks of `fabric`",
    ),
    (
        "set NCCL_IB_GID_INDEX, NCCL_IB_DISABLE and others alike",
        "`environment.must-match`, `environment.doubts`, `environment.unreadable`",
    ),
    (
        "see that the same GPUs are on all nodes",
        "the checks of `gpus`",
    ),
    (
        "mount the shared disk, or copy the data to every node",
        "`disks.readable`, `disks.mounts`, `disks.writable`",
    ),
    (
        "see that there is room for the checkpoints",
        "`disks.output-space`, `disks.inodes`",
    ),
    (
        "find the right node rank of every node",
        "not needed with `--hosts`, Slurm or PBS; by hand, two nodes of one rank are refused by name",
    ),
    (
        "a short run first",
        "`allranks train CONFIG … --smoke`: the same checks, then two steps, judged ([smoke](smoke.md))",
    ),
    (
        "`iperf3` between the nodes",
        "`measured.bandwidth` and `measured.latency`, in both directions; `measured.networks` and "
        "`measured.faster-network` over other interfaces; `reach.speed`, `reach.interface-slow`",
    ),
    (
        "`ib_send_bw`, `ib_write_bw` between the nodes",
        "`measured.infiniband`, for each adapter in both directions",
    ),
    (
        "write down the command, the commit, the config and `env \\| grep NCCL`",
        "`OUTPUT_DIR/manifest.json` and `preflight.json` have them, without secrets",
    ),
)
"""What guides to training on several nodes ask for by hand, and what does it here."""

CHECKLISTS = """\
## The usual checklists, and what replaces them

Guides to fine-tuning on several nodes with Axolotl and with Qwen's scripts ask for these steps by hand.

| by hand, on each node | here |
|---|---|
""" + "\n".join(f"| {step} | {here} |" for step, here in _BY_HAND)


def markdown() -> str:
    """The page of all checks."""
    parts = [INTRODUCTION, _overview()]
    for family in FAMILIES:
        parts.append(f"## {family}")
        parts += [_section(check) for check in CHECKS if check.family == family]
    return "\n\n".join(part.strip("\n") for part in [*parts, CHECKLISTS]) + "\n"


def _overview() -> str:
    rows = [
        f"| [{check.id}](#{_anchor(check)}) | {check.severity} | {check.what.replace('|', '/')} |" for check in CHECKS
    ]
    return "| check | worst | looks at |\n|---|---|---|\n" + "\n".join(rows)


def _anchor(check: Check) -> str:
    """As GitHub makes it of a heading."""
    return check.id.replace(".", "")


def _section(check: Check) -> str:
    marks = [check.severity] + ["recorded"] * check.recorded + ["not quick"] * (not check.quick)
    return (
        f"### {check.id}\n\n{check.what}. *{', '.join(marks)}*\n\n"
        f"- Why: {check.why}\n- What to do: {check.remedy.rstrip('.')}.\n- What it does not count: {check.false_alarm}"
    )


if __name__ == "__main__":
    print(markdown(), end="")
