"""Personal data in texts, in a child process: RE2 finds what may be some, rules of its kind tell if it is.

Texts are bytes of UTF-8; all that is looked for is ASCII.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_AROUND = 12  # bytes
_CARD_GROUPS = ((4, 4, 4, 4), (4, 4, 4, 4, 3), (4, 6, 5), (4, 6, 4))
_CARDS = re.compile(
    r"4(\d{12}|\d{15}|\d{18})"  # Visa
    r"|5[1-5]\d{14}|2(22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Mastercard
    r"|3[47]\d{13}|3(0[0-5]|[68]\d)\d{11}"  # American Express, Diners Club
    r"|6(011|5\d\d|4[4-9]\d)\d{12}|35(2[89]|[3-8]\d)\d{12}|62\d{14,17}"  # Discover, JCB, UnionPay
)
_US_PHONE = rb"\(?[2-9]\d\d\)?[ .-]{1,2}\d{3}[ .-]\d{4}"
_NORTH_AMERICAN = re.compile(rf"(\+1[ .-])?{_US_PHONE.decode()}")
_FILES = frozenset({
    "css", "gif", "go", "htm", "html", "ico", "jpeg", "jpg", "js", "json", "md", "php", "png", "py", "rb",
    "svg", "ts", "txt", "webp", "yaml", "yml",
})  # fmt: skip
_VERSION = re.compile(rb"(?i)(\bv|version|release|build|section|chapter)[ :=]{0,3}\Z")
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_HEX_KEY = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class _Kind:
    """What one kind of data looks like. `before` and `behind` match what may not stand next to it.

    `check` is given what was found, the bytes before it, and the region; it returns how many there are.
    """

    pattern: bytes
    check: Callable[[str, bytes, str], int]
    before: re.Pattern[bytes]
    behind: re.Pattern[bytes]


def count(texts: Sequence[str], kinds: Sequence[str], region: str) -> dict[str, int]:
    """How often each kind of data occurs, without those that do not occur."""
    encoded = [text.encode() for text in texts]
    counts = {name: sum(sum(_found(text, name, region)) for text in encoded) for name in kinds}
    return {name: number for name, number in counts.items() if number}


def _found(text: bytes, name: str, region: str) -> Iterator[int]:
    kind = _KINDS["us_phone" if name == "phone" and region in ("US", "CA") else name]
    for match in _compiled(kind.pattern).finditer(text):
        start, end = match.span()
        before = text[max(0, start - _AROUND) : start]
        if not kind.before.search(before) and not kind.behind.match(text[end : end + 2]):
            yield kind.check(text[start:end].decode(), before, region)


@lru_cache(maxsize=16)
def _compiled(pattern: bytes) -> Any:
    import re2  # type: ignore[import-untyped]

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    return re2.compile(pattern, options)


def _email(found: str, before: bytes, region: str) -> int:
    """Not the name of a file: `icon@2x.png`."""
    return found.rpartition(".")[2].lower() not in _FILES


def _north_american_phone(found: str, before: bytes, region: str) -> int:
    """Also those of films and examples, 555-…; what begins with + is as anywhere."""
    if not _NORTH_AMERICAN.fullmatch(found):
        return _phone(found, before, region)
    in_a_row_of_numbers = before[-1:] == b" " and before[-2:-1].isdigit() and not set(found) & set("+(-.")
    return not in_a_row_of_numbers


def _phone(found: str, before: bytes, region: str) -> int:
    """Without a +, the digits must stand in the groups that the country uses."""
    import phonenumbers

    if sum(map(str.isdigit, found)) < 7:
        return 0
    if found[0] == "+" and _is_international(found):  # five times as quick as what follows
        return 1
    leniency = phonenumbers.Leniency.VALID if found[0] == "+" else phonenumbers.Leniency.STRICT_GROUPING
    return sum(1 for _ in phonenumbers.PhoneNumberMatcher(found, region, leniency=leniency))


def _is_international(found: str) -> bool:
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(found))
    except phonenumbers.NumberParseException:
        return False


def _cards(found: str, before: bytes, region: str) -> int:
    """Cards in a run of digits, which may have other numbers beside them."""
    groups = re.split("[ -]", found)
    sizes = tuple(map(len, groups))
    cards, start = 0, 0
    while start < len(groups):
        shapes = ((1,), *_CARD_GROUPS)
        fitting = (n for n in shapes if n == (1,) or sizes[start : start + len(n)] == n)
        length = next((len(n) for n in fitting if _is_card("".join(groups[start : start + len(n)]))), 0)
        cards += length > 0
        start += length or 1
    return cards


def _is_card(digits: str) -> bool:
    from stdnum import luhn

    return _CARDS.fullmatch(digits) is not None and luhn.is_valid(digits)


def _iban(found: str, before: bytes, region: str) -> int:
    """Words in capitals may stand behind it."""
    from stdnum import iban

    words = found.split()
    return any(iban.is_valid("".join(words[:end]), check_country=False) for end in range(len(words), 0, -1))


def _ssn(found: str, before: bytes, region: str) -> int:
    from stdnum.us import ssn

    return ssn.is_valid(found)


def _address(found: str, before: bytes, region: str) -> int:
    """Public ones: others say nothing of anybody."""
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return 0
    if isinstance(address, ipaddress.IPv6Address):
        return address in _GLOBAL_V6
    return address.is_global and not _VERSION.search(before)


def _key(found: str, before: bytes, region: str) -> int:
    """`sk-` may begin words with hyphens, too."""
    if not found.startswith("sk-"):
        return 1
    mixed = all(any(map(test, found[3:])) for test in (str.isdigit, str.isupper, str.islower))
    return mixed or _HEX_KEY.search(found) is not None


_NO_WORD = (re.compile(rb"\w\Z"), re.compile(rb"\w"))
_NO_NUMBER = (re.compile(rb"(?:[\w+#-]|\d[.,:/])\Z"), re.compile(rb"\w|[.,:/-]\d|-\w"))
_KINDS = {
    "email": _Kind(
        rb"[A-Za-z0-9._%+'-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}",
        _email,
        re.compile(rb"[\w.]\Z"),
        re.compile(rb"\w|:[\w/]"),  # git@host.org:path
    ),
    "us_phone": _Kind(rb"\+\(?\d[\d ().\-/]{5,22}\d|" + _US_PHONE, _north_american_phone, *_NO_NUMBER),
    "phone": _Kind(
        rb"\+\(?\d[\d ().\-/]{5,22}\d|\(?\d{2,5}\)?[ .\-/]{1,2}\d{2,4}(?:[ .\-/]?\d{2,8}){0,4}",
        _phone,
        *_NO_NUMBER,
    ),
    "credit_card": _Kind(
        rb"\d(?:[ -]?\d){12,}", _cards, re.compile(rb"(?:\w|\d[.,])\Z"), re.compile(rb"\w|[.,]\d")
    ),
    "iban": _Kind(rb"[A-Z]{2}\d{2} ?(?:[A-Z0-9]{4} ?){2,7}[A-Z0-9]{0,4}", _iban, *_NO_WORD),
    "us_ssn": _Kind(rb"\d{3}-\d{2}-\d{4}", _ssn, *_NO_NUMBER),
    "ip_address": _Kind(
        rb"\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{1,4}(?::{1,2}[0-9A-Fa-f]{1,4}){2,7}",
        _address,
        re.compile(rb"[\w.:-]\Z"),
        re.compile(rb"[\w-]|\.\w|:[\w:]"),
    ),
    "api_key": _Kind(
        rb"(?:AKIA|ASIA)[0-9A-Z]{16}|gh[oprsu]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}"
        rb"|glpat-[\w-]{20,255}|sk-[A-Za-z0-9_-]{20,255}|xox[abeprs]-[A-Za-z0-9-]{10,255}"
        rb"|AIza[\w-]{35}|[rs]k_(?:live|test)_[0-9A-Za-z]{16,255}|hf_[A-Za-z0-9]{30,255}|npm_[A-Za-z0-9]{36}"
        rb"|pypi-AgEI[\w-]{50,255}|SG\.[\w-]{22}\.[\w-]{43}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
        rb"|-----BEGIN (?:[A-Z]{2,10} ){0,2}PRIVATE KEY-----",
        _key,
        *_NO_WORD,
    ),
}
