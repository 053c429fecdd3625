"""How docstrings are read for the reference: their sections have the names that its parser knows."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Sections(Extension):
    """An example is one; what raises "as" another function is a sentence; several names of one line stay together."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = re.sub(r"^ *Raises:\n +As (.*)$", r"Raises as \1", text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^ +\w+(, \w+)+(?=: )", _unbroken, text, flags=re.MULTILINE)


def _unbroken(names: re.Match[str]) -> str:
    return names[0].replace(", ", ",\N{NO-BREAK SPACE}")
