"""Whose option is it? `allranks train` takes its own, those of the config and, after a lone `--`, the launcher's."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from allranks.errors import UsageError
from allranks.launch.spec.launcher_options import OPTIONS, TORCHRUN, LauncherOptions


@dataclass
class SortedArguments:
    """`own` for the command's parser, `config` for the config's overrides, `launcher` to be passed on to it.

    `settings` of Accelerate, by name, are compared with the config.
    """

    own: list[str] = field(default_factory=list)
    config: list[str] = field(default_factory=list)
    launcher: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)


def sort_arguments(arguments: Sequence[str], own_options: Mapping[str, bool]) -> SortedArguments:
    """Deal out the arguments of `allranks train`.

    `own_options` maps each option of the command to whether it takes a value. `_` and `-` are equal in names. Options
    that are not the command's are config keys. After a lone `--` the launcher's options are taken too, and nothing that
    is not an option. Raises UsageError for what belongs nowhere.
    """
    found = SortedArguments()
    before, after = list(arguments), []
    if "--" in before:
        cut = before.index("--")
        before, after = before[:cut], before[cut + 1 :]
    _deal(before, own_options, found)
    launcher = _launcher([*before, *after])
    _deal_launchers(after, own_options, launcher, OPTIONS.get(launcher, TORCHRUN), found)
    return found


def _deal(arguments: list[str], own_options: Mapping[str, bool], found: SortedArguments) -> None:
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            found.own.append(word)
            # A short option of ours, such as -h, has no value; a value or the config's path is taken as it comes.
            continue
        name, equals, value = word.partition("=")
        option = name.replace("_", "-")
        if option in own_options:
            _take(found.own, option, equals, value, rest, takes_value=own_options[option])
        elif why := TORCHRUN.why_refused(option):
            raise UsageError(f"{name} is an option of torchrun that allranks does not pass on: {why}")
        elif option in TORCHRUN.passed:
            raise UsageError(f"{name} is an option of torchrun: write it after a lone `--`")
        else:
            _take_key(found, name, equals, value, rest)


def _deal_launchers(
    arguments: list[str], own_options: Mapping[str, bool], launcher: str, known: LauncherOptions, found: SortedArguments
) -> None:
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        word = known.short.get(word, word)
        if not word.startswith("--"):
            raise UsageError(
                f"{word!r} after `--` belongs to nothing: only {launcher}'s options and config keys (--key value) may "
                "follow `--`"
            )
        name, equals, value = word.partition("=")
        option = name.replace("_", "-")
        option = known.same.get(option, option)
        if (why := known.why_refused(option)) and option not in known.settings | known.flags.keys():
            raise UsageError(f"{name} is an option of {launcher} that allranks does not pass on: {why}")
        if option in own_options:
            _take(found.own, option, equals, value, rest, takes_value=own_options[option])
        elif option in known.passed:
            spelt = "--" + option[2:].replace("-", known.word)
            _take(found.launcher, spelt, equals, value, rest, takes_value=known.passed[option])
        elif option in known.settings:
            if not equals and not rest:
                raise UsageError(f"{name} needs a value")
            found.settings[option[2:].replace("-", "_")] = value if equals else rest.pop(0)
        elif option in known.flags:
            if (setting := known.flags[option]) is not None:
                found.settings[setting[0]] = setting[1]
        else:
            _take_key(found, name, equals, value, rest)


def _launcher(words: Sequence[str]) -> str:
    """The launcher that is asked for, as its options cannot be told without it."""
    for word, following in itertools.pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name == "--launcher":
            return value if equals else following
    return "torchrun"


def _take_key(found: SortedArguments, name: str, equals: str, value: str, rest: list[str]) -> None:
    # Its value may be a negative number, but not another option.
    _take(found.config, name, equals, value, rest, takes_value=bool(rest) and not rest[0].startswith("--"))


def _take(into: list[str], name: str, equals: str, value: str, rest: list[str], *, takes_value: bool) -> None:
    into.append(name + equals + value)
    if takes_value and not equals and rest:
        into.append(rest.pop(0))
