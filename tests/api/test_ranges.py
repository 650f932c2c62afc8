from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from stack.api.ranges import is_unchanged, wanted

ETAG = '"v1"'


@given(first=st.integers(0, 200), last=st.integers(0, 200), size=st.integers(0, 150))
def test_a_range_is_what_a_slice_is(first: int, last: int, size: int) -> None:
    data = bytes(range(size))
    headers = {"range": f"bytes={first}-{last}"}
    if first > last:
        assert wanted(headers, ETAG, size) == (200, range(size))
    elif first >= size:
        with pytest.raises(HTTPException) as caught:
            wanted(headers, ETAG, size)
        assert caught.value.status_code == 416
        assert (caught.value.headers or {})["content-range"] == f"bytes */{size}"
    else:
        status, part = wanted(headers, ETAG, size)
        assert status == 206
        assert data[part.start : part.stop] == data[first : last + 1]


@pytest.mark.parametrize(
    ("asked", "part"),
    [("bytes=90-", range(90, 100)), ("bytes=-10", range(90, 100)), ("bytes=-1000", range(100)),
     ("Bytes = 0-0 ", range(1)), ("bytes=99-999999999999999999", range(99, 100))],
)  # fmt: skip
def test_open_ranges(asked: str, part: range) -> None:
    assert wanted({"range": asked}, ETAG, 100) == (206, part)


@pytest.mark.parametrize(
    "asked", ["bytes=-", "bytes=a-b", "bytes=0-1,3-4", "lines=0-1", "0-1", "", "bytes=²-3", "bytes=--1"]
)
def test_what_is_not_understood_is_everything(asked: str) -> None:
    assert wanted({"range": asked}, ETAG, 100) == (200, range(100))


@pytest.mark.parametrize("asked", ["bytes=100-", "bytes=-0"])
def test_ranges_past_the_end(asked: str) -> None:
    with pytest.raises(HTTPException):
        wanted({"range": asked}, ETAG, 100)


def test_a_range_of_another_version_is_everything() -> None:
    headers = {"range": "bytes=0-1", "if-range": '"v0"'}
    assert wanted(headers, ETAG, 10) == (200, range(10))
    assert wanted({**headers, "if-range": ETAG}, ETAG, 10) == (206, range(2))
    # A date is a weak sign: two versions may be of one second.
    assert wanted({**headers, "if-range": "Tue, 24 Nov 2026 18:00:00 GMT"}, ETAG, 10) == (200, range(10))


def test_what_the_client_has() -> None:
    for known in ('"v1"', 'W/"v1"', '"v0", "v1"', "*"):
        assert is_unchanged({"if-none-match": known}, ETAG)
    for known in ('"v0"', "v1", ""):
        assert not is_unchanged({"if-none-match": known}, ETAG)
    assert not is_unchanged({}, ETAG)
