"""What launchers, containers and log libraries put before a line: who wrote it, and when."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_NAMES_OF_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec"
_MONTHS = {name: number for number, name in enumerate(_NAMES_OF_MONTHS.split(), 1)}
_DAYS_BEFORE = [0, 31, 60, 91, 121, 152, 182, 213, 244, 274, 305, 335]  # of a leap year
_MOST = 8  # prefixes of one line: docker's, srun's, torchrun's, the library's own, …

_CLOCK = r"(?P<clock>\d\d:\d\d:\d\d(?:[.,]\d{1,9})?)"
# What journald and syslog put between the time and the words: the node, and the process.
_OF_JOURNAL = r"(?P<node>[\w.-]{1,100}) (?:(?P<stream>[\w./()@-]{1,100}\[\d{1,9}\]): ?|(?=kernel: ))"
# `aws logs tail`: the log's stream, which has slashes in it where a machine's name does not stand alone.
_STREAM_OF_AWS = r"(?P<aws>[\w.=-]{1,200}(?:/[\w.=-]{1,200}){1,5})"
_LEVEL = r"(?P<level>DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)"
# By what a line begins with: "[" and "(", a digit, a letter, all else.
_BRACKET, _DIGIT, _LETTER, _OTHER = range(4)
_PREFIXES: tuple[list[re.Pattern[str]], ...] = ([], [], [], [])
for _kinds, _text in (
    # torchrun's --tee and torch's own excepthook: [rank3]: [default3]: [trainer3]: [Rank 3]:
    ((_BRACKET,), r"\[(?:rank|Rank|RANK)(?:: ?| )?(?P<rank>\d{1,6})\]:? ?"),
    ((_BRACKET,), r"\[[A-Za-z_]{1,40}(?P<local>\d{1,5})\]: ?"),
    ((_LETTER,), r"(?:rank|Rank|RANK) ?(?P<rank>\d{1,6}): "),
    # mpirun --tag-output, of Open MPI 4 and 5, and as SageMaker writes it.
    (
        (_BRACKET,),
        r"\[(?:[^\s\]@]{1,100}@)?\d{1,9},(?:mpirank:)?(?P<rank>\d{1,6})(?:,(?P<node>[\w.-]{1,100}))?\]"
        r"(?:\[[^\s\]]{1,100}\])?<std(?:out|err|diag)>:? ?",
    ),
    # Colours whose escape was spelled out, or lost, on the way through another log or a web page.
    ((_BRACKET, _OTHER), r"(?:\^\[|#033|\\(?:x1b|033|u001b|e))?\[\d{1,3}(?:;\d{1,3}){0,4}m"),
    # kubectl logs --prefix
    ((_BRACKET,), r"\[pod/(?P<node>[\w.-]{1,253})/[\w.-]{0,63}\] ?"),
    # docker compose
    (
        (_LETTER,),
        r"(?!(?:step|epoch|iter))(?P<node>[A-Za-z][\w.-]{0,100}[-_]\d{1,4}) {1,40}\| ?",
    ),
    # logcli, of Loki
    (
        (_OTHER,),
        r"\{(?:(?=[^}]{0,500}\b(?:pod|host(?:name)?|node|instance)=\"(?P<node>[\w.:-]{1,253})\"))?"
        r"[A-Za-z_]\w{0,100}=\"[^}]{0,2000}\"\} ?",
    ),
    # loguru, after its time
    (
        (_OTHER,),
        r"\| (?P<level>TRACE|DEBUG|INFO|SUCCESS|WARNING|ERROR|CRITICAL) {1,5}\| "
        r"[\w.<>-]{1,200}:[\w.<>]{1,100}:\d{1,6} - ",
    ),
    # What shows a subprocess's output: accelerate test, some schedulers
    ((_LETTER,), r"std(?:err|out): "),
    # Quoted, as in a mail; transformers' logging between its time and its words
    ((_OTHER,), r"> (?!>)"),
    ((_OTHER,), r">> (?=\S)"),
    # Composer, before its level; other launchers' (worker_7) :
    ((_LETTER,), r"rank(?P<rank>\d{1,6})\[\d{1,9}\]\[\w{1,40}\]: "),
    ((_BRACKET,), r"\([A-Za-z]{1,40}[_-](?P<local>\d{1,5})\) ?: "),
    # SageMaker on one's own machine
    ((_LETTER,), r"(?P<node>algo-\d{1,4}-\w{1,20}) {1,8}\| "),
    # torchx, and what follows its form: role/replica
    ((_LETTER,), r"[A-Za-z][\w.-]{0,60}/(?P<local>\d{1,5}) (?=\[|Traceback|  )"),
    # What a terminal shows of a key that was pressed
    ((_OTHER,), r"\^[CZ\\] ?"),
    # srun -l
    ((_DIGIT, _OTHER), r" {0,5}(?P<rank>\d{1,6}): "),
    # Ray
    (
        (_BRACKET,),
        r"\((?P<stream>[\w.<>]{1,100}(?: ?[\w.()]{1,60})? pid=\d{1,9})(?:, ip=(?P<node>[\w.:-]{1,60}))?\)(?:\[0m)? ",
    ),
    # NCCL: host:pid:tid [device], newer ones with a time before it
    ((_DIGIT, _LETTER), r"(?P<node>[\w.-]{1,100}):(?P<stream>\d{1,9}):\d{1,9} \[(?P<local>\d{1,3})\] "),
    # glog of torch's C++ (month without a zero) and of torch.distributed's Python, with and without brackets
    (
        (_BRACKET, _LETTER),
        rf"\[?[EWIF](?P<mmdd>\d{{3,4}}) {_CLOCK}(?: +\d{{1,9}})? [\w./<>-]{{1,200}}:\d{{1,6}}\] ?",
    ),
    (
        (_BRACKET,),
        rf"\[[EWIFCD] (?P<y>\d{{4}})-(?P<mo>\d\d)-(?P<d>\d\d) {_CLOCK} [\w./-]{{1,200}}:\d{{1,6}}\] ?",
    ),
    ((_BRACKET,), r"\[[EWIF] [\w./-]{1,100}\.(?:cpp|cc|h|hpp|cu):\d{1,6}\] ?"),
    # ISO times: Python's logging, docker, Kubernetes (stdout F), NCCL, DeepSpeed, journald
    (
        (_BRACKET, _DIGIT),
        rf"[\[(]?(?P<y>\d{{4}})[-/](?P<mo>\d\d)[-/](?P<d>\d\d)[T ]{_CLOCK}(?P<zone>Z|[+-]\d\d:?\d\d)?[\])]?:?"
        rf"(?: (?:stdout|stderr) [FP]| {_OF_JOURNAL}| {_STREAM_OF_AWS}(?= ))? ?(?:- )?",
    ),
    # mmengine, and Python's logging as many set it: month first; NeMo
    (
        (_BRACKET, _DIGIT),
        rf"\[?(?P<mo>\d\d)/(?P<d>\d\d)(?:/\d\d(?:\d\d)?)? {_CLOCK}(?: ?[AP]M)?\]? {{0,8}}(?:- )?",
    ),
    (
        (_BRACKET,),
        rf"\[NeMo [EWID] (?P<y>\d{{4}})-(?P<mo>\d\d)-(?P<d>\d\d) {_CLOCK} [\w.]{{1,100}}:\d{{1,6}}\] ?",
    ),
    # dmesg, plain and with -T, and syslog
    ((_BRACKET, _OTHER), r"(?:<\d{1,3}>)?\[ {0,6}\d{1,9}\.\d{6}\] ?"),
    ((_BRACKET,), rf"\[\w{{3}} (?P<month>[A-Z][a-z]{{2}}) +(?P<d>\d{{1,2}}) {_CLOCK} \d{{4}}\] ?"),
    (
        (_LETTER,),
        rf"(?P<month>{_NAMES_OF_MONTHS.replace(' ', '|')}) +(?P<d>\d{{1,2}}) {_CLOCK} "
        rf"(?:{_OF_JOURNAL}|(?P<host>[\w.-]{{1,100}}) (?=[\w./-]+: ))?",
    ),
    ((_BRACKET, _DIGIT), rf"\[?{_CLOCK}\]? ?(?:- )?"),
    # Python's logging as it is without a format: ERROR:root:
    ((_LETTER,), r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL):[\w.-]{1,100}:(?=\S)"),
    # Python's logging after the time, with the logger's name: name - INFO - , - INFO - name - , [INFO|trainer.py:607]
    ((_LETTER,), rf"[A-Za-z_][\w.]{{0,100}} - {_LEVEL} - "),
    ((_LETTER, _OTHER), rf"(?:- )?{_LEVEL} - [A-Za-z_][\w.]{{0,100}} - "),
    ((_BRACKET,), rf"\[{_LEVEL}\|[\w.]{{1,60}}:\d{{1,6}}\] "),
    # fairseq's: | INFO | module |
    ((_OTHER,), rf"\| {_LEVEL} {{1,8}}\| (?:[\w.]{{1,100}} \| )?"),
    # Python's logging after the time: - INFO - module - / [INFO] [axolotl.train:120] [PID:1] [RANK:3]
    (
        (_BRACKET, _LETTER, _OTHER),
        rf"(?:- )?\[?{_LEVEL}\]?(?::? ?| {{2,8}})(?:- )?(?=[^\s:])",
    ),
    ((_BRACKET,), r"\[[\w.]{1,100}:\d{1,6}(?::\w{1,60})?\] (?:\[PID:\d{1,9}\] )?\[RANK:(?P<rank>\d{1,6})\] ?"),
    ((_BRACKET,), r"\[[\w.]{1,100}:\d{1,6}:\w{1,60}\] \[Rank (?P<rank>-?\d{1,6})\] ?"),
    # pdsh, DeepSpeed, clush: a host's name with a digit in it, or an address
    (
        (_DIGIT, _LETTER),
        r"(?P<node>(?=[\w.-]*\d)(?![\w.-]*(?:Error|Exception|Warning|Exit|Errno)\b)[A-Za-z\d][\w.-]{1,100}): (?=\S)",
    ),
):
    for _kind in _kinds:
        _PREFIXES[_kind].append(re.compile(_text))
# Within the line, of torch's C++: [Rank 3], [PG ID 0 PG GUID 0(default_pg) Rank 1], [rank: 3]
_RANK_WITHIN = re.compile(r"\[(?:PG [^\]]{0,120} )?[Rr]ank:? ?(\d{1,6})\]")


# Lines: several wordings are looked for in each, and those before it are looked at for their time.
_REMEMBERED = 2048


@dataclass(frozen=True)
class Prefixed:
    """A line's words, and what stood before them.

    `seconds` are of the year, by the writer's own clock: in UTC where the line tells its zone, else in that zone.
    """

    text: str
    rank: int | None = None
    local_rank: int | None = None
    node: str | None = None
    seconds: float | None = None
    stream: str = ""
    level: str = ""
    """Of Python's logging, as it stands there."""
    is_utc: bool = False
    """Whether `seconds` are in UTC."""


@lru_cache(_REMEMBERED)
def without_prefixes(text: str) -> Prefixed:
    """`text` without all that was put before it."""
    rank: int | None = None
    local: int | None = None
    node: str | None = None
    seconds: float | None = None
    stream, level, at, is_utc = "", "", 0, False
    for _ in range(_MOST):
        for prefix in _PREFIXES[_kind_of(text[at : at + 1])]:
            if (found := prefix.match(text, at)) is not None and found.end() > at:
                break
        else:
            break
        told = found.groupdict()
        if (value := told.get("rank")) is not None and rank is None and value[0] != "-":
            rank = int(value)
        if (value := told.get("local")) is not None and local is None:
            local = int(value)
        node = told.get("node") or told.get("host") or told.get("aws") or node
        stream = told.get("stream") or stream
        # What torch puts before a rank's line is of the program that another one logs.
        level = "" if text.startswith("[rank", at) else level or told.get("level") or ""
        if seconds is None:
            seconds = _seconds(told)
            is_utc = seconds is not None and told.get("zone") is not None
        at = found.end()
    if rank is None and (within := _RANK_WITHIN.search(text, at, at + 200)):
        rank = int(within[1])
    return Prefixed(text[at:], rank, local, node, seconds, stream, level, is_utc)


def _kind_of(char: str) -> int:
    if char in ("[", "("):
        return _BRACKET
    if char.isdigit():
        return _DIGIT
    return _LETTER if char.isalpha() else _OTHER


def _seconds(told: dict[str, str | None]) -> float | None:
    clock = told.get("clock")
    if clock is None:  # dmesg's seconds since the boot are of another clock than all others
        return None
    hours, minutes, rest = clock.replace(",", ".").split(":")
    seconds = int(hours) * 3600 + int(minutes) * 60 + float(rest)
    day = told.get("d")
    month = told.get("mo") or _MONTHS.get(told.get("month") or "")
    if (mmdd := told.get("mmdd")) is not None:
        month, day = mmdd[:-2], mmdd[-2:]
    if month is None or day is None or not 1 <= int(month) <= 12:
        return None  # a clock without a day: of a run of two days it says nothing
    return (_DAYS_BEFORE[int(month) - 1] + int(day) - 1) * 86_400 + seconds - _east_of_utc(told.get("zone") or "Z")


def _east_of_utc(zone: str) -> int:
    """Seconds; `zone` is Z, +0100 or +01:00."""
    if zone == "Z":
        return 0
    minutes = int(zone[1:3]) * 60 + int(zone[-2:])
    return 60 * (-minutes if zone[0] == "-" else minutes)
