"""How a traceback is set: as Python prints it, flattened by a web page, in a box by rich, or with arrows by IPython."""

from __future__ import annotations

import re
from dataclasses import dataclass

HEADER = "Traceback (most recent call last)"
_TYPE = r"(?:[A-Za-z_]\w{0,100}\.){0,12}[A-Z]\w{0,100}"
_FRAME = re.compile(r'\s*File "(?P<file>[^"]{1,500})", line (?P<line>\d{1,9})(?:, in (?P<function>.{1,100}))?')
_FRAME_OF_BOX = re.compile(r"[│┃|] +(?P<file>\S[^│┃|]{0,300}?):(?P<line>\d{1,9}) in (?P<function>\S{1,100})")
_FRAME_OF_IPYTHON = re.compile(r"File (?P<file>\S{1,500}):(?P<line>\d{1,9}), in (?P<function>[\w.<>]{1,100})")
_RAISED = re.compile(r"(?P<type>(?:[A-Za-z_]\w{0,100}\.){0,12}[A-Za-z_]\w{0,100})(?:: ?(?P<message>.*)|\s*$)")
# Where lines of code are not indented what is raised is told from them by its name alone.
_RAISED_FLAT = re.compile(
    r"(?P<type>(?:[A-Za-z_]\w{0,100}\.){0,12}[A-Z]\w{0,100}(?:Error|Exception|Interrupt|Timeout|Killed|Exit)"
    r"|(?:[a-z_]\w{0,100}\.){1,12}[A-Z]\w{0,100})(?:: ?(?P<message>.*)|\s*$)"
)
_IPYTHON = re.compile(rf"(?:^|(?<=\s))(?P<type>{_TYPE}(?:Error|Exception|Interrupt|Exit|Warning))\s+$")
_BOX = re.compile(r"[╭┌+][─━-]{2,}|[─━]{3,}")
# A line of the program's text, by its number in a box or behind an arrow: also where the traceback's begin is cut off.
SOURCE = re.compile(r"\s*(?:[│┃] {1,8}(?:[❱>] {0,6})?\d{1,6} |-{2,}> ?\[?\d{1,6}[\] ])")
_OF_BOX = ("│", "┃", "╭", "╰", "┌", "└", "|", "+-")
_CODE_OF_FRAME = 4  # lines that may follow a frame that is not indented


def prefix_of(header: str) -> str:
    """What stands before all lines of a traceback, by the one that it begins with."""
    lead = header[: header.index(HEADER)]
    found = _BOX.search(lead) or _IPYTHON.search(lead)
    return lead[: found.start()] if found else lead


@dataclass
class Shape:
    """One traceback's: in a box, ended by the name `ends_with` of what was raised, or as Python prints it."""

    is_box: bool = False
    ends_with: str = ""
    is_flat: bool = False
    since_frame: int = 0

    @classmethod
    def of(cls, header: str) -> Shape:
        """By the line that it begins with."""
        lead = header[: header.index(HEADER)]
        if _BOX.search(lead):
            return cls(is_box=True)
        named = _IPYTHON.search(lead)
        return cls(ends_with=named["type"].rpartition(".")[2] if named else "")

    def shows_code(self, text: str) -> bool:
        """Whether the line is a frame or shows the program's text, and not what was raised."""
        if not text.strip():
            return True
        if self.is_box:
            return text.lstrip().startswith(_OF_BOX)
        if self.ends_with:
            return not re.match(rf"(?:[\w.]+\.)?{re.escape(self.ends_with)}(?::|\s*$)", text)
        if text.startswith('File "') and _FRAME.match(text):
            self.is_flat, self.since_frame = True, 0
            return True
        if text.startswith((" ", "\ufffd")):
            return True
        self.since_frame += 1
        return self.is_flat and self.since_frame <= _CODE_OF_FRAME and not _RAISED_FLAT.match(text)

    def frame(self, text: str) -> re.Match[str] | None:
        if self.is_box:
            return _FRAME_OF_BOX.match(text)
        return _FRAME_OF_IPYTHON.match(text) if self.ends_with else _FRAME.match(text)

    def raised(self, text: str) -> re.Match[str] | None:
        return (_RAISED_FLAT if self.is_flat else _RAISED).match(text)
