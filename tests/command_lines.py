"""How command lines fail."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def fails(capsys: pytest.CaptureFixture, message: str, status: int = 1) -> Iterator[None]:
    """The command in this block ends with that status, and the last thing on stderr is one line with the message."""
    with pytest.raises(SystemExit) as stopped:
        yield
    assert stopped.value.code == status
    last = re.split("[\\r\\n]", capsys.readouterr().err.rstrip("\n"))[-1]
    assert re.search(message, last), last
