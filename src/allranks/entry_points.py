"""Which of our modules are programs: `python -m` of any other would import it, do nothing and exit with 0.

That is how a whole multi-node launch can "succeed" without having trained, so all others are refused."""

from __future__ import annotations

import sys

from allranks import interrupt

# Imported before Ctrl-C is answered: nothing that takes time.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_OF_USERS = frozenset(
    [
        "allranks",
        # One rank, under a launcher of the user's own.
        "allranks.train",
        "allranks.train.__main__",
        "allranks.compat.qwen",
        # The commands, by the names of Axolotl's older form: `torchrun … -m axolotl.cli.train c.yaml`.
        "allranks.__main__",
        "allranks.cli.bench_scaling",
        "allranks.cli.bundle",
        "allranks.cli.chat",
        "allranks.cli.check",
        "allranks.cli.config",
        "allranks.cli.demo",
        "allranks.cli.doctor",
        "allranks.cli.evaluate",
        "allranks.cli.export",
        "allranks.cli.generate",
        "allranks.cli.init",
        "allranks.cli.main",
        "allranks.cli.merge_lora",
        "allranks.cli.merge_sharded_fsdp_weights",
        "allranks.cli.plan",
        "allranks.cli.preprocess",
        "allranks.cli.qwen",
        "allranks.cli.rehearse",
        "allranks.cli.run",
        "allranks.cli.stacks",
        "allranks.cli.submit",
        "allranks.cli.top",
        "allranks.cli.status",
        "allranks.cli.verify",
        "allranks.cli.train",
        # They write docs/config.md and docs/checks.md.
        "allranks.config.reference",
        "allranks.reference",
        "allranks.preflight.reference",
    ]
)
# What allranks starts by itself; each answers signals in its own way.
_OF_OURS = frozenset(
    [
        "allranks.cluster.agent",
        "allranks.cluster.measure.child",
        "allranks.bundle.of_node",
        "allranks.evidence.node",
        "allranks.launch.node.rank",
        "allranks.launch.node.subreaper",
        "allranks.observe.trackers",
        "allranks.observe.trackers.__main__",
        "allranks.submit.lost_node",
    ]
)
ENTRY_POINTS = _OF_USERS | _OF_OURS

_TRAIN = "`allranks train CONFIG`, or `-m allranks.train CONFIG` under a launcher of your own"
# What somebody meant who started a part of it; the longest name that fits counts.
_MEANT = {
    "allranks": _TRAIN,
    "allranks.compat": "`-m allranks.compat.qwen` under a launcher of your own, or `allranks qwen`",
    "allranks.config": "`allranks config show CONFIG`",
    "allranks.data": "`allranks preprocess CONFIG`",
    "allranks.demo": "`allranks demo`",
    "allranks.export": "`allranks export RUN`",
    "allranks.launch.spec.program": "`allranks run -- PROGRAM`",
    "allranks.launch.run": "`allranks run -- PROGRAM`",
    "allranks.submit": "`allranks submit CONFIG`",
}


def begin_as_program(argv: Sequence[str], orig_argv: Sequence[str]) -> None:
    """Exits with 2, and says what to start instead, where `python -m` names a module of ours that is no program. In
    others Ctrl-C is answered from now on.

    `argv` as it is while Python looks for that module: `-m` in place of its path, then its arguments.
    """
    word = orig_argv[-len(argv)]
    module = word.partition("m")[2] if word.startswith("-") else word  # `-m NAME`, or `-mNAME`
    if module.split(".")[0] != "allranks":
        return
    if module in _OF_USERS:
        interrupt.end_at_once()
    if module in ENTRY_POINTS:
        from allranks.quick_imports import import_quickly  # not before Ctrl-C is answered

        import_quickly()
        return
    parents = [module.rsplit(".", cut)[0] for cut in range(module.count(".") + 1)]
    meant = next(_MEANT[name] for name in parents if name in _MEANT)
    print(
        f"error: python -m {module}: this is not a program of allranks; start {meant} (`allranks --help` lists all "
        "commands)",
        file=sys.stderr,
    )
    from allranks.exit_codes import USAGE  # not before Ctrl-C is answered

    sys.exit(USAGE)


def refuse_by_hand(module: str, started_by: str) -> None:
    """Exits with 2: a program that allranks starts by itself was started without what it is told then."""
    print(
        f"error: python -m {module}: {started_by} starts this by itself, there is nothing in it to start by hand; see "
        "`allranks --help`",
        file=sys.stderr,
    )
    from allranks.exit_codes import USAGE  # not before Ctrl-C is answered

    sys.exit(USAGE)
