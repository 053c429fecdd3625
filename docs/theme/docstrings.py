"""How docstrings are read for the reference: their sections have the names that its parser knows."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Sections(Extension):
    """An example is one; what raises "as" another function is a sentence; names that share a line get one each."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = re.sub(r"^ *Raises:\n +As (.*)$", r"Raises as \1", text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^( +)(\w+(?:, \w+)+)(: .*(?:\n\1 +.*)*)", _apart, text, flags=re.MULTILINE)


def _apart(found: re.Match[str]) -> str:
    indent, names, description = found.groups()
    return "\n".join(indent + name + description for name in names.split(", "))
