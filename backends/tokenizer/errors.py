"""The errors of this backend, in the contract's form."""


class PromptError(ValueError):
    """No prompt can be made; the text is `CODE: FIELD: MESSAGE`, the code `invalid` or `internal`."""

    def __init__(self, field: str, message: str, *, code: str = "invalid") -> None:
        super().__init__(f"{code}: {field}: {message}")
        self.code = code
        self.field = field
