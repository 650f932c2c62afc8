"""fsspec filesystems by URL, and what their drivers raise. Calls on them block: they belong in threads."""

from __future__ import annotations

import sys
from typing import Any

from stack.errors import BadRequest

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}


def open_filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of a URL and the path in it. BadRequest: its driver is not installed."""
    import fsspec

    scheme, _, path = url.partition("://")
    # Not fsspec.core.url_to_fs, which lets a URL chain to another filesystem: s3://x::file:///etc.
    try:
        # Listings are not kept: other processes change what is there.
        filesystem = fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        package = PACKAGES.get(scheme, scheme)
        raise BadRequest(
            f"{scheme}:// sources need the package {package} on the server; "
            f"install it with pip install {package}"
        ) from error
    except ValueError as error:  # no such protocol
        raise BadRequest(f"{scheme}:// is no kind of storage that fsspec knows") from error
    return filesystem, str(filesystem._strip_protocol(f"{scheme}://{path}"))


def driver_errors() -> tuple[type[Exception], ...]:
    """What the drivers raise, besides OSError; one that is not loaded raises nothing."""
    names = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
        ("gcsfs.retry", "HttpError"),
        ("google.auth.exceptions", "GoogleAuthError"),
    )
    loaded = (getattr(sys.modules[module], name) for module, name in names if module in sys.modules)
    return (OSError, *loaded)
