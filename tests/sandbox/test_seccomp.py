"""The filter, run as the kernel would run it, for machines that are not this one, too."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from stack.sandbox import seccomp

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS = {  # read, clone, socket, mmap, ptrace
    "x86_64": (0, 56, 41, 9, 101),
    "aarch64": (63, 220, 198, 222, 117),
}
ALLOWED, KILLED = 0x7FFF0000, 0x80000000


def decide(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """What the filter of `machine` returns for a call (a small interpreter of classic BPF)."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=IIQ6Q", number, arch or ARCH[machine], 0, *padded)
    code = list(struct.iter_unpack("=HBBI", seccomp.program(machine)))
    position, value = 0, 0
    while True:
        operation, if_true, if_false, constant = code[position]
        position += 1
        if operation == 0x06:
            return int(constant)
        if operation == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        elif operation == 0x54:
            value &= constant
        else:
            holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[
                operation
            ]
            position += if_true if holds else if_false


def refused(error: int) -> int:
    return 0x00050000 | error


@pytest.mark.parametrize("machine", NUMBERS)
def test_decisions(machine: str) -> None:
    read, clone, socket, mmap, ptrace = NUMBERS[machine]
    assert decide(machine, read) == ALLOWED
    assert decide(machine, ptrace) == refused(errno.EPERM)
    assert decide(machine, clone, 0x01200011) == ALLOWED  # fork
    assert decide(machine, clone, 0x003D0F00) == ALLOWED  # a thread
    assert decide(machine, clone, 0x10000011) == refused(errno.EPERM)
    assert decide(machine, 435) == refused(errno.ENOSYS)
    assert decide(machine, 436) == ALLOWED  # close_range
    assert decide(machine, 442) == refused(errno.ENOSYS)
    assert decide(machine, 0x40000000 + read) == refused(errno.ENOSYS)
    assert decide(machine, socket, 1) == ALLOWED
    assert decide(machine, socket, (1 << 32) + 2) == refused(errno.ENETUNREACH)
    assert decide(machine, mmap, 0, 4096, 3, 0x22) == ALLOWED
    assert decide(machine, mmap, 0, 4096, 3, 0x01) == ALLOWED
    assert decide(machine, mmap, 0, 4096, 3, 0x21) == refused(errno.EPERM)
    assert decide(machine, mmap, 0, 4096, 3, 0x4023) == refused(errno.EPERM)
    assert decide(machine, read, arch=0x40000003) == KILLED  # the 32-bit calls of x86


@pytest.mark.parametrize("machine", NUMBERS)
def test_jumps_stay_within_the_program(machine: str) -> None:
    code = list(struct.iter_unpack("=HBBI", seccomp.program(machine)))
    assert 100 < len(code) < 4096
    for position, (operation, if_true, if_false, _) in enumerate(code):
        if operation in (0x15, 0x35, 0x45):
            assert position + 1 + max(if_true, if_false) < len(code)


def test_numbers_are_those_of_the_kernels_headers() -> None:
    headers = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h")
    if not all(header.is_file() for header in headers):
        pytest.skip("no kernel headers")
    for column, header in enumerate(headers):
        known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
        assert len(known) > 250
        for name, numbers in seccomp._REFUSED.items():
            assert known.get(name) == (None if numbers[column] is None else str(numbers[column])), name
