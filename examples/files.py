"""Upload a file in parts, go on where a broken upload stopped, and read a range of it.

Start a server with `stack up`, then: python examples/files.py [FILE]
"""

import mimetypes
import os
import sys
from pathlib import Path

import httpx

PART_BYTES = 16 << 20

path = Path(sys.argv[1] if len(sys.argv) > 1 else __file__)
client = httpx.Client(base_url=os.environ.get("STACK_URL", "http://127.0.0.1:8321"), timeout=60)


def begin() -> str:
    """The URL of a new upload session. Keep it to go on in another run."""
    answer = client.post(
        "/v1/files",
        json={
            "bucket": "examples",
            "key": path.name,
            "mime_type": mimetypes.guess_type(path.name)[0] or "application/octet-stream",
            "size": path.stat().st_size,
        },
    )
    return str(answer.raise_for_status().json()["url"])


def send(session: str) -> None:
    """Send what the server has not got yet, asking it after every failure."""
    failures = 0
    with path.open("rb") as file:
        while True:
            try:
                state = client.get(session).raise_for_status().json()
                if state["offset"] == state["size"]:
                    return
                file.seek(state["offset"])
                headers = {"Upload-Offset": str(state["offset"])}
                client.post(session, content=file.read(PART_BYTES), headers=headers).raise_for_status()
                failures = 0
            except httpx.HTTPError as error:
                failures += 1
                if failures == 5:
                    raise
                print("again, after:", error)


send(begin())
info = client.get(f"/v1/files/examples/{path.name}").raise_for_status().json()
print(f"{info['url']}: {info['bytes']} bytes, {info['mime_type']}")
print(client.get(info["url"], headers={"Range": "bytes=0-79"}).raise_for_status().text)
