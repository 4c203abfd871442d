"""Has every node answered, and in full?"""

from __future__ import annotations

from collections.abc import Iterator

from allranks.cluster.node_report import NodeReport
from allranks.listing import few, printable
from allranks.preflight.check import Answer, Check, Subject, found, ok, skipped
from allranks.preflight.gpus_of_ranks import visible
from allranks.preflight.looking import drift, each_node

_HANGS = "did not answer"
_MISSING = "is not installed"
_OF_GPUS = ("nvidia", "amd")
_LONGEST = 400
_SHOWN = 4


def _absent(subject: Subject) -> Iterator[Answer]:
    for node in subject.silent:
        why = printable(subject.absent.get(node) or "it gave no report", _LONGEST)
        # One that has met the others is there: what is not known of it is no fault.
        yield found(node, why, severity="warning" if subject.have_met else None)
    yield ok(*(node for node, _ in subject.reported))


def _refused(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        for text in subject.refusals.get(node, ()):
            what, _, remedy = printable(text).partition("\n")
            yield found(node, what, remedy=remedy)

    return each_node(subject, look)


def _processes(subject: Subject) -> list[Answer]:
    num_gpus = {len(visible(report)) for _, report in subject.reported}
    if len(num_gpus) > 1 and subject.wanted.device != "cpu":
        return [skipped(subject.nodes, "the nodes have different numbers of GPUs")]
    return drift(
        subject,
        "the number of processes",
        {node: str(number) if number else None for node, number in subject.num_processes.items()},
        not_known="how many processes it starts is not known",
    )


def _unanswered(subject: Subject) -> list[Answer]:
    uses_gpus = subject.wanted.device == "cuda"

    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        for source, why in sorted(report.unanswered.items()):
            name = source.partition(":")[0]
            text = f"{printable(source, _LONGEST)} {printable(why, _LONGEST)}"
            if name == "paths" or (name in _OF_GPUS and uses_gpus and not why.endswith(_MISSING)):
                yield found(node, text)
            elif _HANGS in why or name == "probe":
                yield found(node, text, severity="warning")
            else:
                yield found(node, text, severity="note")

    return each_node(subject, look)


def _unreadable(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Answer | None:
        if not report.unreadable:
            return None
        return found(node, f"its report has what no version writes: {printable(few(report.unreadable, _SHOWN))}")

    return each_node(subject, look)


def _withheld(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        for place, why in sorted(report.withheld.items()):
            yield found(node, f"{printable(place, _LONGEST)} could not be read: {printable(why, _LONGEST)}")

    return each_node(subject, look)


CHECKS = (
    Check(
        "reach.node",
        "Whether each node could be asked",
        "Without it the run would wait for its ranks until a deadline passes.",
        "Log in there by hand (`ssh NODE true`), or look whether its job step has started, and mend what that says",
        "error",
        "A node is asked again by ssh itself (its ConnectTimeout and ConnectionAttempts); it counts once it has not "
        "answered by then. One that has met the others and whose report does not come in time only warns: nothing is "
        "known of it.",
        _absent,
    ),
    Check(
        "start.refused",
        "What a node itself refuses before its ranks start",
        "It is what `allranks train` would end with on that node: an option, a file or a device that is not as asked.",
        "Do what it says on that node",
        "error",
        "The same functions as in `allranks train` say it, so nothing is refused here that starts there.",
        _refused,
    ),
    Check(
        "start.processes",
        "Whether all nodes start as many processes",
        "`--nproc-per-node 1` on one node and 2 on another join as 3 ranks without a word.",
        "Give all nodes the same --nproc-per-node, or leave it out: each then starts one for each of its GPUs",
        "error",
        "It says nothing where nodes have different numbers of GPUs. Where the numbers are meant, accept it with "
        "`preflight: {ignore: [start.processes]}`.",
        _processes,
    ),
    Check(
        "report.unanswered",
        "Sources of a node that hang or fail",
        "A driver, a mount or a resolver that does not answer now does not answer the ranks either: they hang in it "
        "without a word.",
        "Run the command or list the folder on that node by hand; if it hangs there, too, mount it anew or restart "
        "the driver or the node",
        "error",
        "Each source has a process and a deadline of its own. A path of the run, or the GPUs of a run that uses them, "
        "is an error; another source that hangs warns; one that fails, or a tool that is not installed, is a note.",
        _unanswered,
    ),
    Check(
        "report.unreadable",
        "Values in a report that no version writes",
        "They count as not known: another version of allranks, or a broken source, wrote them.",
        "Install the same version of allranks on all nodes",
        "note",
        "A note only: every check that needs such a value says that it is not known.",
        _unreadable,
    ),
    Check(
        "report.withheld",
        "What only root could read",
        "Some faults are told to root alone, such as those of GPUs in the kernel's log. Everything else was checked.",
        "Nothing need be done; run `allranks check` as root to have it looked at, too",
        "note",
        "A note only: what cannot be read is not known, and no failure.",
        _withheld,
    ),
)
