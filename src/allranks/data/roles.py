"""The names of roles: what each is to a chat template, and which are trained."""

from difflib import get_close_matches
from typing import Any

from allranks.errors import DataError

FUNCTION_CALL = "function_call"
"""The role of messages that are calls (ShareGPT): to a template, an assistant's message."""
_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
    FUNCTION_CALL: FUNCTION_CALL,
}


def role_map(spec: Any) -> dict[str, str]:
    """Name in the data -> role, by a `DatasetSpec`'s `roles` and the names that are known anyway."""
    own = {name: role for role, names in (spec.roles or {}).items() for name in names}
    return _ROLES | {role: role for role in spec.roles or {}} | own


def roles_to_train(spec: Any, data: Any) -> set[str]:
    """The roles whose turns are trained, for one data set of `cfg.data`.

    Names go through the data set's own map. Errors: `DataError` for a name that no role has, with the nearest; for an
    empty list where nothing else says what is trained.
    """
    names = spec.roles_to_train if spec.roles_to_train is not None else data.roles_to_train
    if names is None:
        return {"assistant"}
    known = role_map(spec)
    # What the config says is for all data sets: a name may be another one's.
    others = [] if spec.roles_to_train is not None else [*data.datasets, *(data.test_datasets or [])]
    elsewhere = {name for other in others if other.type == "chat_template" for name in role_map(other)}
    for name in names:
        if name not in known and name not in elsewhere:
            near = get_close_matches(name, known, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise DataError(
                f"data set {spec.path}: roles_to_train: {name!r} is no role.{meant} Known are {', '.join(known)}; "
                "roles: {assistant: [NAME]} adds a name"
            )
    roles = {known[name] for name in names if name in known}
    told = spec.message_field_training or spec.message_field_training_detail or data.train_on_inputs
    if not roles and not told:
        raise DataError(
            f"data set {spec.path}: roles_to_train: {names} trains no role of it; name one, such as assistant, or the "
            "property of the messages that says what is trained, with message_field_training"
        )
    return roles
