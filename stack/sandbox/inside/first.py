"""Process 1 within the sandbox: hands over the working folder, starts the script's process, waits for it.

`first.py CHANNEL COMMAND…`. When it ends, the kernel ends all others; so it must be quick to kill.
It therefore shares no memory with the script's process, whose forks would hold the locks of what they share.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # C, without stubs
import os
import sys
from array import array


def main() -> None:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # which means nothing to process 1
    channel, command = int(sys.argv[1]), sys.argv[2:]
    hand_over(channel)
    os.closerange(3, max(channel, 65535) + 1)  # whatever else was left open on the way here
    os._exit(wait_for(os.posix_spawn(command[0], command, os.environ)))


def hand_over(channel: int) -> None:
    """Send the working folder, by which the server reads the files at the end; wait until it has it."""
    import _socket

    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    server = _socket.socket(fileno=channel)
    server.sendmsg([b"f"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array("i", [folder]))])
    if server.recv(1) != b"g":
        os._exit(1)
    server.close()
    os.close(folder)


def wait_for(script: int) -> int:
    """Wait for all children until the script ends; its exit code, as a shell tells it."""
    while True:
        child, status = os.wait()
        if child == script:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    main()
