"""What is said of a request that failed: its kind and status, never the words of the server.

Those may quote what was sent: keys, signatures, signed queries. So a reason is put together from
what is known to be safe, and the library's own error is not chained to it either.
"""

from __future__ import annotations

import re

from tolpack.errors import FileAccessError

_STATUS = re.compile(r"status[ :]+(?:code[ :]+)?([1-5]\d\d)\b|HTTP status [a-z ]+\(([1-5]\d\d)")
_NO_CREDENTIALS = "no credentials were found"
# By what the library's messages contain; the first that is found.
_REASONS = {
    "computeMetadata": f"{_NO_CREDENTIALS}: set GOOGLE_APPLICATION_CREDENTIALS, or "
    "GOOGLE_SKIP_SIGNATURE=true for public objects",
    "169.254.169.254": f"{_NO_CREDENTIALS}: set the variables of the storage, such as "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for public objects",
    "MissingAccount": "the account is not named: set AZURE_STORAGE_ACCOUNT_NAME",
    "range requested": "the server does not answer with the range that was asked for",
    "Content-Range": "the server does not answer with the range that was asked for",
    "TimedOut": "no answer within the time limit",
    "timed out": "no answer within the time limit",
    "Connection refused": "the connection was refused",
    "dns error": "the server's name is unknown",
    "certificate": "the server's certificate is not trusted",
    "BadScheme": "plain http is not allowed: set AWS_ALLOW_HTTP=true where that is wanted",
    "builder error": "plain http is not allowed: set AWS_ALLOW_HTTP=true where that is wanted",
    "Too many open files": "too many open files: raise the limit with ulimit -n",
    "IncompleteMessage": "the connection broke",
    "Connection reset": "the connection broke",
    "ConnectionReset": "the connection broke",
    "UnexpectedEof": "the connection broke",
    "Broken pipe": "the connection broke",
    "error decoding response body": "the connection broke within the answer",
    "error sending request": "the connection broke",
}
_KINDS = {
    "FileNotFoundError": "there is no such object",
    "PermissionDeniedError": "access is denied",
    "UnauthenticatedError": "the credentials are not accepted",
    "NotSupportedError": "the storage does not support this",
}


class NoSuchRangeError(FileAccessError):
    """The object has no byte of the range that was asked for."""


def status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of obstore tells, if it tells one."""
    found = _STATUS.search(str(error))
    return None if found is None else int(found[1] or found[2])


def reason(error: BaseException) -> str:
    """Return why a request failed, in words that hold nothing secret."""
    text, kind, code = str(error), type(error).__name__, status(error)
    shown = "" if code is None else f"status {code}"
    known: str = next((words for part, words in _REASONS.items() if part in text), "")
    if known.startswith(_NO_CREDENTIALS):
        return known  # the status is that of the machine's own service
    if code == 404 and not known and kind not in _KINDS:
        known = "there is no such bucket"
    said = [one for one in (_KINDS.get(kind, known), shown) if one]
    return ", ".join(said) or kind
