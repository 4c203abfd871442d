"""What all sections share: strict types, no unknown keys, nothing changes after loading."""

import ast
import inspect
import os.path
import textwrap
from functools import cache
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
# Every so many steps, or after every such part of the run.
Interval = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]

# A file or folder: `~` is a home, as in a shell. Also of keys that may hold a name of the Hub, which never begins so.
FilePath = Annotated[str, AfterValidator(os.path.expanduser)]


class Section(BaseModel):
    """A group of keys. Strict, because `lora_r: true` or `sequence_len: "512"` is a mistake and not a number."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        # Validators are built at first use: the command line must answer at once.
        defer_build=True,
    )


@cache
def key_help(section: type) -> dict[str, str]:
    """Key, or field of a dataclass -> the sentence below it in the source.

    (Pydantic can read these too, but at import, in every start.)
    """
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    sentences = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(sentence))):
                    sentences[statement.target.id] = sentence
    return sentences
