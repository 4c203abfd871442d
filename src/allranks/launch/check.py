"""`allranks check`: what can be known of all nodes before a run, and nothing is started."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from allranks.checkpoint.commit import complete_checkpoints, refuse_earlier_run
from allranks.cluster.account import NodeAccount
from allranks.cluster.environments import network_settings
from allranks.cluster.node_report import NodeReport
from allranks.config import RunConfig, load_config
from allranks.errors import UsageError
from allranks.exit_codes import DONE, REFUSED
from allranks.launch.describe import speaks_for_all
from allranks.launch.joining import join_to_compare, refusals_told
from allranks.launch.must_match import refuse_unreadable, what_must_be_equal
from allranks.launch.node.this_node import Node, unlocked_node
from allranks.launch.place import refuse_nested_launch, where_to_start
from allranks.launch.preflight.asked import policy_of, probe_request, sizes_of, wanted_of
from allranks.launch.preflight.deadline import Beside
from allranks.launch.preflight.hosts import write_host_lists
from allranks.launch.preflight.refusals import Refusals, refused_here
from allranks.launch.preflight.text import in_full
from allranks.launch.preflight.together import Judged, Preflight
from allranks.launch.run_token import take_token
from allranks.launch.spec.from_environment import tell
from allranks.launch.spec.options import Launch, LaunchOptions
from allranks.launch.spec.where import NodeOptions
from allranks.model.files import model_files
from allranks.observe import RunDir, libraries_aside, say
from allranks.preflight.judge import Policy


@dataclass(frozen=True)
class CheckOptions:
    """`quick`: what every start of several nodes does, and no more. `deep`: every byte of the model's weights is
    compared. `hosts_folder`: for lists of the nodes that pass and fail."""

    quick: bool = False
    deep: bool = False
    as_json: bool = False
    hosts_folder: Path | None = None


def check(
    config: str | Path,
    overrides: Mapping[str, str],
    options: LaunchOptions,
    nodes: NodeOptions,
    asked: CheckOptions,
    *,
    argv: Sequence[str] = (),
    ignore_unsupported: bool = False,
) -> int:
    """Check the nodes that `train` with the same options would start on: this one, or all from here.

    Returns 0 where the run could start, 3 where a check fails. Raises UsageError, and RefusedError where the nodes do
    not meet.
    """
    if asked.quick and asked.deep:
        raise UsageError("--quick and --deep exclude each other: one leaves out what takes long, one adds to it")
    if options.launcher == "ray":
        raise UsageError(_NOT_RAY)
    token = take_token()
    everywhere, launch, notes = where_to_start(nodes, options, argv, token)
    with _stdout_for_a_program(asked.as_json):
        with refusals_told(launch):
            cfg = load_config(config, overrides, ignore_unsupported=ignore_unsupported)
            if cfg.launch.use_ray:
                raise UsageError(_NOT_RAY)
            policy = policy_of(cfg, quick=asked.quick)
            tell(notes)
            if launch is not None:
                refuse_nested_launch(launch, "`python -m allranks.train CONFIG`; `allranks check`")
        if everywhere is not None:
            from allranks.launch.all_nodes.check import check_all_nodes  # for one of the nodes' checks only

            judged = check_all_nodes(everywhere, token, cfg, policy, options.join_seconds)
        else:
            assert launch is not None
            judged = _check_this_node(_for_all_to_meet(launch), cfg, policy, asked)
    if asked.hosts_folder is not None:
        write_host_lists(asked.hosts_folder, judged, everywhere.hosts if everywhere else ())
    if asked.as_json:
        say(json.dumps(judged.to_message()))
    elif launch is None or speaks_for_all(launch):
        say(in_full(judged))
    return REFUSED if judged.is_refused else DONE


_LOOK_SECONDS = 5.0
_NOT_RAY = (
    "allranks check looks at nodes that it reaches itself, and not at Ray's: give them with --hosts or --hostfile"
)


def _check_this_node(launch: Launch, cfg: RunConfig, policy: Policy, asked: CheckOptions) -> Judged:
    node, refusals = unlocked_node(cfg.checkpoint.output_dir, launch), Refusals()
    with refusals_told(launch):
        preflight = Preflight(
            probe_request(cfg, launch), wanted_of(cfg, launch), policy, refusals, sizes_of(cfg, launch)
        )
        account, variables = _account(launch, cfg, node, preflight, refusals, asked)
    if launch.max_nodes == 1:
        judged = preflight.alone(account)
    else:
        with join_to_compare(launch, node, variables, preflight.take_pairs) as rendezvous:
            measured = None
            if not asked.quick:
                from allranks.launch.preflight.measuring import measured_together

                measured = partial(measured_together, rendezvous, launch, variables, preflight, node.run)
            judged = preflight.together(rendezvous, account, measured)
    judged.keep(node.run)
    return judged


def _account(
    launch: Launch, cfg: RunConfig, node: Node, preflight: Preflight, refusals: Refusals, asked: CheckOptions
) -> tuple[NodeAccount, Mapping[str, str]]:
    """What this node says about itself, and the variables that its ranks would get for the network."""
    # By a thread of its own: what this node has, and would refuse, is looked for on mounts that may not answer.
    same: dict[str, str] = {}
    variables: dict[str, str] = {}

    def look() -> None:
        same.update(what_must_be_equal(cfg))
        refusals.keep(lambda: refuse_unreadable(same))
        variables.update(refused_here(cfg, launch, refusals))
        _keep_earlier_run(cfg, node.run, refusals)

    Beside(look).result(_LOOK_SECONDS)
    # Else what it has is not known, and no part of it is compared. The data too is looked for only where it answers.
    if same and not asked.quick and (report := preflight.report()) is not None and _data_answers(report):
        same |= _data(cfg, refusals)
        if asked.deep:
            same |= model_files(cfg, every_byte=True)
    return NodeAccount(must_match=dict(same), network=network_settings({**os.environ, **variables})), variables


def _data_answers(report: NodeReport) -> bool:
    """Whether the data lies where the probe got an answer: reading it would else never end."""
    return not any(source.startswith("paths: data") for source in report.unanswered)


def _data(cfg: RunConfig, refusals: Refusals) -> dict[str, str]:
    """What the data is, by content: all of it is read once. A start compares what has been prepared from it."""
    found: dict[str, str] = {}

    def read() -> None:
        from allranks.data.fingerprint import data_files

        with libraries_aside():
            found.update(data_files(cfg))

    refusals.keep(read)
    return found


def _keep_earlier_run(cfg: RunConfig, run: RunDir, refusals: Refusals) -> None:
    settings = cfg.checkpoint
    if not settings.resume_from_checkpoint and not settings.auto_resume_from_checkpoints:
        refusals.keep(
            lambda: refuse_earlier_run(run.path, [path.name for path in complete_checkpoints(run.checkpoints)])
        )


def _for_all_to_meet(launch: Launch) -> Launch:
    """Of a launch whose nodes may come and go, as many as there may be."""
    return replace(launch, min_nodes=launch.max_nodes, max_restarts=0)


def _stdout_for_a_program(wanted: bool) -> contextlib.AbstractContextManager[object]:
    """Within, what is told on the way goes to stderr, if stdout is for a program."""
    return contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext()
