"""What a person at a terminal sees of a wait; it never reaches a file or a pipe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show a text on a terminal for a while: on stderr, so that it is no part of the output."""
    is_shown = sys.stderr.isatty()
    if is_shown:
        print(text, end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if is_shown:
            print(" " * len(text), end="\r", file=sys.stderr, flush=True)
