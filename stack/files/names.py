"""What a file may be called, and what it may say that it is. Raises BadRequest."""

from __future__ import annotations

import re

from stack.errors import BadRequest
from stack.store.tables import ID_LENGTH, KEY_LENGTH

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MIME_TYPE = re.compile(
    rf'{_TOKEN}/{_TOKEN}([ \t]*;[ \t]*{_TOKEN}=({_TOKEN}|"[ !#-\[\]-~]*"))*'
)  # RFC 9110, 8.3.1
_MIME_TYPE_LENGTH = 255


def check_bucket(bucket: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9_-]+", bucket):
        raise BadRequest(f"a bucket's name is letters, digits, _ and -, not {_short(bucket)}")
    return _not_longer("a bucket's name", bucket, ID_LENGTH)


def check_key(key: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9_/.-]+", key):
        raise BadRequest(f"a file's key is letters, digits, _, -, / and ., not {_short(key)}")
    if any(part in (".", "..") for part in key.split("/")):
        # Clients resolve these before they ask: DELETE /v1/files/mine/../yours/x would reach yours.
        raise BadRequest(f"a file's key must not have . or .. between its slashes, as {_short(key)} has")
    return _not_longer("a file's key", key, KEY_LENGTH)


def check_mime_type(mime_type: str) -> str:
    if not _MIME_TYPE.fullmatch(mime_type):
        raise BadRequest(f"mime_type is written type/subtype, e.g. text/csv, not {_short(mime_type)}")
    return _not_longer("mime_type", mime_type, _MIME_TYPE_LENGTH)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _not_longer(what: str, text: str, limit: int) -> str:
    if len(text) > limit:
        raise BadRequest(f"{what} has at most {limit} characters, {_short(text)} has {len(text)}")
    return text
