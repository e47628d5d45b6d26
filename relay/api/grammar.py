"""A body that is JSON by its grammar (RFC 8259), though the fast parser of pydantic gives it up as a whole.

Half a surrogate pair (§8.2), a number beyond any float (§6) and a value that is nested deeply are JSON, and wrong where they
stand: read so, the models name the field, and in a batch the one message that is wrong. Asked only once the fast parser has
said no, so that it costs nothing where all is well.
"""

from __future__ import annotations

import json
from math import inf
from typing import Any, Self

from pydantic import ValidationError

from relay.api.route import Model

_MAX_DIGITS = 4000  # int() of a longer text is refused, and no field takes one


class Forgiving(Model):
    """Of a bad value it names the field, whatever is wrong with it."""

    @classmethod
    def of_json(cls, data: bytes) -> Self:
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            if error.errors(include_url=False, include_input=False)[0]["type"] != "json_invalid":
                raise
            try:
                found = by_grammar(data)
            except ValueError:
                raise error from None
            return cls.model_validate(found)


def by_grammar(data: bytes) -> Any:
    """Raises ValueError: it is no JSON, or nested deeper than anything is."""
    try:
        return json.loads(data.decode(), parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= _MAX_DIGITS else inf
