"""Everything that can go wrong, with the HTTP status it is answered with.

StackError                500
├── BadRequest            400  the caller must change the request
│   ├── ContextTooLong
│   └── AlreadyRegistered      (400, since the client library retries a 409)
├── Unauthorized          401
├── NotFound              404
├── TooLarge              413
├── Overloaded            429  carries Retry-After
├── UpstreamError         502  a server that this one called failed
├── NotReady              503  carries Retry-After
└── Timeout               504

Errors cross process boundaries by pickle, so `args` are always the constructor's parameters. A subclass
with other parameters than a message formats them in `__str__`.
"""

from __future__ import annotations


class StackError(Exception):
    """Base of all errors that are told to a caller: `str(error)` is the response's `detail`."""

    status = 500
    title = "Internal Server Error"


class BadRequest(StackError):
    status = 400
    title = "Bad Request"


class ContextTooLong(BadRequest):
    title = "Context Too Long"

    def __init__(self, prompt_tokens: int, limit: int) -> None:
        super().__init__(prompt_tokens, limit)

    def __str__(self) -> str:
        return "the prompt has {} tokens, the model takes {}".format(*self.args)


class AlreadyRegistered(BadRequest):
    title = "Already Registered"

    def __init__(self, kind: str, identifier: str) -> None:
        super().__init__(kind, identifier)

    def __str__(self) -> str:
        return "{} {!r} is already registered with other contents; unregister it first".format(*self.args)


class Unauthorized(StackError):
    status = 401
    title = "Unauthorized"


class NotFound(StackError):
    status = 404
    title = "Not Found"

    def __init__(self, kind: str, identifier: str) -> None:
        super().__init__(kind, identifier)

    def __str__(self) -> str:
        return "{} {!r} is not registered".format(*self.args)


class TooLarge(StackError):
    status = 413
    title = "Content Too Large"


class Overloaded(StackError):
    status = 429
    title = "Too Many Requests"

    def __init__(self, detail: str, retry_after_s: int = 1) -> None:
        super().__init__(detail, retry_after_s)

    @property
    def retry_after_s(self) -> int:
        return int(self.args[1])

    def __str__(self) -> str:
        return str(self.args[0])


class UpstreamError(StackError):
    status = 502
    title = "Bad Gateway"


class NotReady(StackError):
    status = 503
    title = "Service Unavailable"

    def __init__(self, detail: str, retry_after_s: int | None = 5) -> None:
        super().__init__(detail, retry_after_s)

    @property
    def retry_after_s(self) -> int | None:
        """None: trying again is no use."""
        return None if self.args[1] is None else int(self.args[1])

    def __str__(self) -> str:
        return str(self.args[0])


class Timeout(StackError):
    status = 504
    title = "Gateway Timeout"


TRANSIENT = (NotReady, Overloaded, Timeout, UpstreamError)
"""What may go well when it is tried again."""
