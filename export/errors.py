"""The one exception that a user of `python -m export` is meant to read."""


class ExportError(Exception):
    """What was given, what is allowed, how to fix it, in one sentence."""
