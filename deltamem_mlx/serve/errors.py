"""What a client is told when its request is refused or fails, in OpenAI's form."""

import logging
from typing import NoReturn

log = logging.getLogger(__name__)
_MOST = 300  # characters of another package's message
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A refusal.

    Args:
        status (int): HTTP status.
        message (str): What is wrong and what to do, without text of the user's.
        code (str): A word for programs.
        param (str): The field of the request.
        retry_after (int): Seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, object]:
        """The JSON that OpenAI's clients read."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {
            "message": str(self),
            "type": _TYPES.get(self.status, kind),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


class ClientGone(ConnectionError):
    """The client closed its connection before the answer was complete."""


def refuse(param: str, expected: str) -> NoReturn:
    """Raises ApiError: a field is not what it has to be."""
    raise ApiError(400, f"{param}: expected {expected}.", param=param, code="invalid_value")


def refused(status: int, cause: BaseException | None) -> ApiError | ClientGone:
    """mlx-lm's own refusal, with its status, as one of ours."""
    if isinstance(cause, ApiError | ClientGone):
        return cause
    if isinstance(cause, ValueError | TypeError | AssertionError | KeyError) or cause is None:
        said = " ".join(str(cause or "").split())[:_MOST]
        return ApiError(400 if cause else status, said or f"HTTP status {status}")
    return ApiError(500, f"The request failed: {type(cause).__name__}.", code="internal_error")


def refusal(error: Exception) -> ApiError:
    """What a client is told of an error in its request's affairs."""
    if isinstance(error, ApiError):
        return error
    log.error("request failed", extra={"error": type(error).__name__})
    what = f"The request failed: {type(error).__name__}."
    return ApiError(500, what, code="internal_error")
