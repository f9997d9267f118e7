"""The form of an answer as it is given on the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence

from client.evidence import text_of
from client.wire import WireError

KINDS = {"--json-schema": "json_schema", "--regex": "regex", "--choice": "choice", "--grammar": "grammar"}


def guide_fields(
    *, json_schema: str | None, regex: str | None, choices: Sequence[str] | None, grammar: str | None
) -> dict[str, str]:
    """Return the fields of GenerateRequest for the one form that is given, none for none; raises WireError.

    Schema and grammar may be @FILE.
    """
    values = (json_schema, regex, json.dumps(choices) if choices else None, grammar)
    given = {option: value for option, value in zip(KINDS, values, strict=True) if value is not None}
    if len(given) > 1:
        raise WireError("invalid", " and ".join(given), "an answer has one form; give one of them")
    for option, value in given.items():
        text = value if option in ("--regex", "--choice") else text_of(value, option)
        return {"guided_decoding_guide_type": KINDS[option], "guided_decoding_guide": text}
    return {}
