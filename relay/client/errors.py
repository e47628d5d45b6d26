"""What can go wrong, in three kinds: the relay says no, the relay is not there, or what answers is no relay.

All of them can be pickled, for task queues that carry an exception to another process.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    field: str  # such as `to[0]`; empty: the whole
    message: str


class RelayError(Exception):
    """Whatever this library raises of its own. As it stands: something answered that is no relay, or none may be asked."""

    detail: str
    key: str = ""  # the idempotency key of the message, where one was being submitted

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Refused(RelayError):
    """The relay said no; the same again gets the same answer."""

    def __init__(
        self,
        detail: str,
        status: int = 400,
        errors: tuple[FieldError, ...] = (),
        code: int | None = None,
        enhanced: str = "",
        request_id: str = "",
    ) -> None:
        """`code`, `enhanced`: what SMTP would have said of a message, such as 550 and 5.7.1."""
        super().__init__(detail)
        self.status, self.errors, self.code, self.enhanced = status, errors, code, enhanced
        self.request_id = request_id


class Unauthorized(Refused):
    """No token, or none that is valid (401)."""


class Forbidden(Refused):
    """The token has not the scope for this (403)."""


class NotFound(Refused):
    """There is no such thing, or it is another tenant's (404)."""


class Unavailable(RelayError):
    """The relay cannot be reached, or takes nothing now. Later it may.

    `safe`: the same call again does nothing twice. A message is safe to send again with the `key` that stands here, and with
    no other: whether the relay had taken it already is known to the relay alone.
    """

    safe: bool = False

    def __init__(
        self, detail: str, *, sent: bool = True, status: int = 0, retry_after: float | None = None, code: int | None = None,
        enhanced: str = "", request_id: str = "",
    ) -> None:  # fmt: skip
        """`sent`: the request may have arrived. `status` 0: there was no answer."""
        super().__init__(detail)
        self.sent, self.status, self.retry_after = sent, status, retry_after
        self.code, self.enhanced, self.request_id = code, enhanced, request_id
