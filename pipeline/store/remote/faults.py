"""What can go wrong with an object store: one retry for everything, and errors that name the address and the next step.

The client library's own retries are off, so that every kind of fault is met in the same way: server errors, bodies that
break off or take too long, wrong bytes, objects that vanished, credentials that expired. Messages hold no credentials.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from caeav.pipeline.store.errors import StoreError
from caeav.pipeline.store.remote.url import without_secrets

Made = TypeVar("Made")


class RemoteError(StoreError):
    """An object store that does not give or take what it should."""


class ObjectGone(RemoteError):
    """An object that is not there."""


class WrongBytes(RemoteError):
    """An object whose bytes are not those that were put there, however often it was read."""


class AccessRefused(RemoteError):
    """Credentials that are missing, expired or not allowed to do this."""


class Different(RemoteError):
    """Something is there already."""


class Unusable(RemoteError):
    """An error that no retry helps against."""


@dataclass(frozen=True)
class Patience:
    """How often a request is tried (`attempts`), how long is waited between, and how long one may take (seconds)."""

    attempts: int = 6
    first_s: float = 0.2
    most_s: float = 10.0
    timeout_s: float = 60.0

    def wait(self, attempt: int) -> None:
        """Wait before the next attempt: twice as long each time, with jitter."""
        time.sleep(min(self.most_s, self.first_s * 2**attempt) * random.uniform(0.5, 1.0))


PATIENCE = Patience()

_STATUS = re.compile(r"status code: (\d{3}[ \w]*)")
_CODE = re.compile(r"<Code>([\w.-]{1,80})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,200})</Message>")
_REFUSED = re.compile(
    r"^40[13]\b|expired|InvalidToken|TokenRefreshRequired|InvalidAccessKeyId|SignatureDoesNotMatch", re.I
)
_SECRET_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|ACCOUNT_KEY|SAS|CREDENTIAL", re.I)
_RENEW = (
    "renew the credentials where the object store's tools take them from (environment, profile, role) and run the "
    "command again; what is finished is kept"
)
_SET_UP = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS (a file) or gcloud's login",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
}
_NOT_SET_UP = re.compile(r"must be specified|Invalid Access Key|service account|credential", re.I)
_AGAIN = "run the command again: it goes on with what is missing"


def attempts(
    url: str,
    work: Callable[[], Made],
    *,
    renew: Callable[[], object],
    patience: Patience,
    probing: bool = False,
) -> Made:
    """`work()` on the object at `url`, tried again after whatever may pass; raises `RemoteError` with the last fault.

    `renew` makes the client anew, so that new credentials are read. With `probing` a missing object is no fault, and
    `ObjectGone` comes at once.
    """
    for attempt in range(patience.attempts):
        try:
            return work()
        except Exception as error:
            fault = as_fault(url, error)
            last = attempt + 1 == patience.attempts
            if fault is None:
                raise
            if last or isinstance(fault, Different | Unusable) or (probing and isinstance(fault, ObjectGone)):
                raise fault from None  # the library's own text may hold credentials
        if isinstance(fault, AccessRefused):
            renew()
        patience.wait(attempt)
    raise AssertionError("no attempt is allowed")


def as_fault(url: str, error: Exception) -> RemoteError | None:
    """An exception of the client library as an error to show; None for one that no retry helps against."""
    from obstore.exceptions import (
        AlreadyExistsError,
        BaseError,
        NotSupportedError,
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )

    if isinstance(error, RemoteError):
        return error
    reason = why(error)
    if isinstance(error, AlreadyExistsError | PreconditionError):
        return Different(f"{url}: is there already", hint=_AGAIN)
    if isinstance(error, FileNotFoundError):
        above = url.rpartition("/")[0]
        return ObjectGone(
            f"{url}: there is no such object", hint=f"look what is there: caeav store ls {above}"
        )
    if isinstance(error, NotSupportedError):
        return Unusable(f"{url}: the object store cannot do this: {reason}", hint="use another object store")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError) or _REFUSED.search(
        reason
    ):
        return AccessRefused(f"{url}: access is refused: {reason}", hint=_RENEW)
    scheme = url.partition("://")[0]
    if isinstance(error, BaseError) and scheme in _SET_UP and _NOT_SET_UP.search(reason):
        return Unusable(
            f"{url}: there are no credentials that can be used: {reason}",
            hint=f"name them in the environment: {_SET_UP[scheme]} (docs/REMOTE.md)",
        )
    if isinstance(error, BaseError | TimeoutError):
        return RemoteError(f"{url}: {reason}", hint=_AGAIN)
    return None


def why(error: Exception) -> str:
    """In a few words what a library's error says, without the rest of its text, which may hold credentials."""
    text = str(error)
    status, code, message = _STATUS.search(text), _CODE.search(text), _MESSAGE.search(text)
    if status:
        return without_credentials(
            " ".join(filter(None, (status[1].strip(), code and code[1])))
            + (f": {message[1]}" if message else "")
        )
    head = " ".join(text.partition("\n\nDebug source")[0].split())
    if "TimedOut" in text or "kind: Timeout" in text:
        head = "no answer in time"
    elif "IncompleteBody" in text or "UnexpectedEof" in text:
        head = "the body broke off"
    elif "ConnectError" in text or "Connect" in text:
        head = "no connection to the server"
    return without_credentials(head[:300] or type(error).__name__)


def without_credentials(text: str) -> str:
    """A text without addresses' queries, and without the value of any variable that may be a credential."""
    text = without_secrets(text)
    for name, value in os.environ.items():
        if len(value) >= 4 and _SECRET_NAMES.search(name):
            text = text.replace(value, "***")
    return text
