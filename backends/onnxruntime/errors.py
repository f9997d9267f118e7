"""The errors of this backend."""


class GraphError(Exception):
    """A request that the graph could not answer; the text is `CODE: FIELD: MESSAGE`."""

    def __init__(self, code: str, field: str, message: str) -> None:
        super().__init__(f"{code}: {field}: {message}")
        self.code = code


class LoadError(Exception):
    """A model that can't be served here; the message says what is wrong and what to do."""
