"""What a run prints, of which the beginning and the end are kept."""

from __future__ import annotations

import os

KEPT_BYTES = 64 << 10
MAX_BYTES = 4 << 20
_CHUNK = 64 << 10


class Output:
    """One stream of a run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bytes_seen = 0
        self._head, self._tail = bytearray(), bytearray()

    def read_from(self, fd: int) -> bool:
        """Read what is there; False at the end."""
        chunk = os.read(fd, _CHUNK)
        self.bytes_seen += len(chunk)
        room = KEPT_BYTES * 3 // 4 - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:]
        del self._tail[: -(KEPT_BYTES // 4)]
        return bool(chunk)

    @property
    def is_endless(self) -> bool:
        return self.bytes_seen > MAX_BYTES

    @property
    def left_out_bytes(self) -> int:
        return self.bytes_seen - len(self._head) - len(self._tail)

    def text(self) -> str:
        """UTF-8; what is not is replaced."""
        gap = f"\n… {self.left_out_bytes} bytes left out …\n".encode() if self.left_out_bytes else b""
        return (self._head + gap + self._tail).decode(errors="replace")
