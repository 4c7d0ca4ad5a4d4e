"""What a failed upload means, in one sentence."""

from typing import TYPE_CHECKING

from ..hub import endpoint, first_line, is_from_network

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


def said(error: Exception, repo: str) -> Exception:
    """A failure of huggingface_hub while writing, as a builtin exception that says what to do.

    Args:
        error (Exception): What was raised; returned as it is when it did not come from the Hub.
        repo (str): The repository that was written to.
    """
    from huggingface_hub import errors

    match error:
        case errors.OfflineModeIsEnabled():
            return ConnectionError("HF_HUB_OFFLINE is set. Unset it to upload.")
        case errors.HfHubHTTPError():
            return _refused(error, repo)
        case RuntimeError() if isinstance(error.__cause__, Exception):  # while sending one file
            cause = said(error.__cause__, repo)
            return error if cause is error.__cause__ else cause
    if is_from_network(error):
        return ConnectionError(
            f"{endpoint()} could not be reached: nothing was uploaded. Check the connection and "
            f"HF_ENDPOINT. ({first_line(error)})"
        )
    return error


def _refused(error: "HfHubHTTPError", repo: str) -> Exception:
    status = error.response.status_code
    why = first_line(getattr(error, "server_message", None) or "")
    because = f" ({why})" if why else ""
    if status == 401:
        return PermissionError(
            f"{endpoint()} does not accept this login: the token is wrong or has expired. Log in "
            f"again: hf auth login{because}"
        )
    if status in (403, 404):
        return PermissionError(
            f"This login may not write to {repo!r}. Log in with a token that may, or give a "
            f"repository of your own.{because}"
        )
    if status < 500 and status != 429:
        reason = why or first_line(error)
        return ValueError(f"{endpoint()} refused the upload to {repo!r}: {reason}")
    reason = why or first_line(error)
    return ConnectionError(
        f"{endpoint()} failed on the upload to {repo!r}: {reason} Try again later."
    )
