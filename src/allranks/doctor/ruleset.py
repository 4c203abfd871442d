"""The rules of the doctor: data in rules/*.toml, loaded, checked and compiled once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from allranks.doctor.literals import literals, problem_of
from allranks.errors import ConfigError

RULES = Path(__file__).parent / "rules"
CAUSE, RETRIED, SYMPTOM, CONSEQUENCE = "cause", "retried", "symptom", "consequence"
SURE, LIKELY = "sure", "likely"
HOPELESS, MAY_PASS, OTHER_NODE = "hopeless", "may-pass", "other-node"

_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_TEXTS = ("id", "cause", "kind", "title", "certainty", "meaning", "remedy", "not_proven", "look_at", "restart")
_PATTERNS = ("patterns", "broad", "unless", "context", "contradicted_by")
_LISTS = (*_PATTERNS, "explains", "sources", "cases", "near_misses")
_REQUIRED = ("id", "kind", "title", "patterns", "meaning", "sources", "cases", "near_misses")
_OF_CAUSES = ("remedy", "not_proven", "look_at", "restart")  # what a user is told who has one
_WITHIN = 50  # lines, in which a context is looked for
_CHOICES = {
    "kind": (CAUSE, RETRIED, SYMPTOM, CONSEQUENCE),
    "certainty": (SURE, LIKELY),
    "restart": (HOPELESS, MAY_PASS, OTHER_NODE),
}


@dataclass(frozen=True)
class Pattern:
    """`needles`: lower-case strings, one of which is in every line that `text`, a regular expression, matches."""

    text: str
    needles: frozenset[str]

    @cached_property
    def regex(self) -> re.Pattern[str]:
        """Compiled when a line has a needle: of a thousand wordings a log has few."""
        return re.compile(self.text)


@dataclass(frozen=True)
class Rule:
    """One kind of failure: how logs word it, what it means, what to do. The keys are those of rules/*.toml.

    What is RETRIED is harmless where anything follows, and the cause where the logs end with it. `broad` are wordings
    that only speak of it, in any case: tried where no rule knows a failure.
    """

    id: str
    kind: str
    title: str
    patterns: tuple[Pattern, ...]
    broad: tuple[Pattern, ...] = ()
    unless: tuple[re.Pattern[str], ...] = ()
    context: tuple[Pattern, ...] = ()
    within: int = _WITHIN
    contradicted_by: tuple[Pattern, ...] = ()
    certainty: str = SURE
    meaning: str = ""
    remedy: str = ""
    not_proven: str = ""
    look_at: str = ""
    restart: str = MAY_PASS
    explains: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    near_misses: tuple[str, ...] = ()
    family: str = ""
    cause: str = ""
    """The id that is answered, where another rule words the same failure: `id` is left to that one."""

    @property
    def answer(self) -> str:
        return self.cause or self.id

    def match(self, line: str) -> re.Match[str] | None:
        """Where `line` (without its prefix) words this."""
        for pattern in self.patterns:
            if (found := pattern.regex.search(line)) is not None:
                return None if self.is_excepted(line) else found
        return None

    def is_excepted(self, line: str) -> bool:
        """Whether `line` says otherwise, by the wordings of `unless`."""
        return any(other.search(line) for other in self.unless)

    def speaks_of(self, line: str) -> int:
        """How many characters of `line` do, by its broad wordings."""
        return max((len(found[0]) for one in self.broad if (found := one.regex.search(line))), default=0)


_added: dict[str, Rule] = {}  # users' own, by id


@cache
def all_rules() -> tuple[Rule, ...]:
    """Those that come with allranks, and what `add_rules` has added. Ours a test has checked: that takes longer than to
    read most logs."""
    ours = (_rule(entry, file.stem) for file in rule_files() for entry in _read(file)[0])
    return (*(rule for rule in ours if rule.id not in _added), *_added.values())


def add_rules(files: Sequence[Path]) -> None:
    """Before the first log is read: have all judged by the rules of these files, too, which take the place of ours of
    the same id. Raises ConfigError, which lists all that is wrong with them."""
    if problems := problems_of_files(files):
        raise ConfigError("\n".join(problems))
    _added.update((rule.id, rule) for file in files for rule in load_rules(file))
    all_rules.cache_clear()


def rule_files() -> list[Path]:
    return sorted(RULES.glob("*.toml"))


def load_rules(file: Path) -> list[Rule]:
    """The rules of one file. Raises ConfigError, which lists all that is wrong with it."""
    entries, problems = _read(file)
    problems += [problem for number, entry in enumerate(entries, 1) for problem in _problems(file, number, entry)]
    if problems:
        raise ConfigError("\n".join(problems))
    return [_rule(entry, file.stem) for entry in entries]


def problems_of_files(files: Sequence[Path]) -> list[str]:
    """All that is wrong with these files as data: `FILE: rule ID: what`. What the rules diagnose is not tried."""
    problems, where = [], dict[str, Path]()
    for file in files:
        entries, found = _read(file)
        problems += found
        for number, entry in enumerate(entries, 1):
            problems += _problems(file, number, entry)
            name = entry.get("id")
            if isinstance(name, str) and where.setdefault(name, file) is not file:
                problems.append(f"{file}: rule {name}: the id is taken by a rule of {where[name]}")
        names = [entry.get("id") for entry in entries]
        problems += [
            f"{file}: rule {name}: the id is there twice" for name in {*names} if name and names.count(name) > 1
        ]
    return problems


def _read(file: Path) -> tuple[list[dict[str, object]], list[str]]:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as why:
        said = why.strerror if isinstance(why, OSError) else why
        return [], [f"{file}: cannot be read: {said}"]
    rules = data.get("rule")
    if set(data) - {"rule"} or not isinstance(rules, list) or not all(isinstance(one, dict) for one in rules):
        return [], [f"{file}: holds [[rule]] tables and nothing else"]
    return rules, []


def _problems(file: Path, number: int, entry: Mapping[str, object]) -> Iterable[str]:
    name = entry.get("id")
    where = f"{file}: rule {name if isinstance(name, str) else f'number {number}'}"
    for key in entry:
        if key not in _TEXTS + _LISTS + ("within",):
            yield f"{where}: {key}: no key of a rule"
    needed = _REQUIRED if entry.get("kind") == CONSEQUENCE else _REQUIRED + _OF_CAUSES
    for key in needed:
        if not entry.get(key):
            yield f"{where}: {key} is missing"
    for key in _TEXTS:
        value = entry.get(key, "")
        if not isinstance(value, str):
            yield f"{where}: {key} is no text"
        elif value and key in _CHOICES and value not in _CHOICES[key]:
            yield f"{where}: {key} is {value!r}: {', '.join(_CHOICES[key])} are known"
    if isinstance(name, str) and not _ID.fullmatch(name):
        yield f"{where}: the id is words of a-z and 0-9 with - between"
    within = entry.get("within", _WITHIN)
    if not isinstance(within, int) or isinstance(within, bool) or not 0 <= within <= 1000:
        yield f"{where}: within is a number of lines up to 1000"
    for key in _LISTS:
        texts = entry.get(key, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            yield f"{where}: {key} is a list of texts"
            continue
        if key in _PATTERNS:
            yield from (f"{where}: {key}: {text!r} {why}" for text in texts if (why := _problem_of(key, text)))


def _problem_of(key: str, pattern: str) -> str:
    why = problem_of(pattern)
    # Not looked for in all that is read, but tried on single lines: they may be short.
    return "" if key in ("unless", "broad") and why.startswith("has no literal") else why


def _rule(entry: Mapping[str, object], family: str) -> Rule:
    texts = {key: value.strip() for key in _TEXTS if isinstance(value := entry.get(key), str)}
    lists = {key: tuple(value) for key in _LISTS if isinstance(value := entry.get(key), list)}
    within = entry.get("within", _WITHIN)
    assert isinstance(within, int)
    return Rule(
        **texts,
        family=family,
        within=within,
        patterns=_compiled(lists["patterns"]),
        broad=tuple(Pattern(f"(?i){text}", frozenset()) for text in lists.get("broad", ())),
        unless=tuple(re.compile(text) for text in lists.get("unless", ())),
        context=_compiled(lists.get("context", ())),
        contradicted_by=_compiled(lists.get("contradicted_by", ())),
        explains=lists.get("explains", ()),
        sources=lists["sources"],
        cases=lists["cases"],
        near_misses=lists["near_misses"],
    )


def _compiled(texts: Iterable[str]) -> tuple[Pattern, ...]:
    return tuple(Pattern(text, literals(text)) for text in texts)
