"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: what was wrong, the value received, and what to do about it. The command line prints
    it on stderr and exits with 2; from Python it is an ordinary ``ValueError``.
    """
