"""Commands as they are typed, run in this process, which has PyTorch imported already."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

import aecnn.cli


@dataclass(frozen=True)
class Said:
    """What a command wrote."""

    stdout: str
    stderr: str


def aecnn_typed(*arguments: object, code: int = 0) -> Said:
    """Types an ``aecnn`` command; fails where it ends with another code."""
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(stdout), redirect_stderr(stderr), patch.object(sys, "argv", ["aecnn", *map(str, arguments)]):
        try:
            aecnn.cli.main()
        except SystemExit as end:
            status = end.code or 0
    assert status == code, stdout.getvalue() + stderr.getvalue()
    return Said(stdout.getvalue(), stderr.getvalue())
