"""Upload sessions: a file's bytes come in any number of requests, and the file exists once all are there.

One request at a time adds to a session. It writes its name into the session's row and renews it while it
lives (`BEAT_S`); another takes over when it was not renewed for `DEAD_S`. Each block that is stored moves the
offset in the transaction that names the block, on the condition that the writer's name still stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from secrets import token_hex
from time import monotonic
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from stack.errors import BadRequest, NotFound, StackError
from stack.files.blobs import PART_BYTES, Blobs, Part
from stack.files.files import Files, StoredFile
from stack.files.names import check_bucket, check_key, check_mime_type
from stack.store.database import Database
from stack.store.tables import uploads

BEAT_S = 1.0
DEAD_S = 4.0
POLL_S = 0.2
TAIL = 16  # last parts that are looked at for joining


class NoUpload(NotFound):
    def __init__(self, upload_id: str) -> None:
        StackError.__init__(self, upload_id)

    def __str__(self) -> str:
        return "there is no upload session {!r}: begin one with POST /v1/files".format(*self.args)


@dataclass(frozen=True, slots=True)
class Upload:
    id: str  # also names the blob
    bucket: str
    key: str
    mime_type: str
    size: int
    offset: int


@dataclass(slots=True)
class _Writing:
    """One request's hold of a session."""

    upload: Upload
    writer: str
    offset: int
    tail: list[Part] = field(default_factory=list)


class Uploads:
    def __init__(self, database: Database, blobs: Blobs, files: Files, max_bytes: int) -> None:
        self._database, self._blobs, self._files, self._max_bytes = database, blobs, files, max_bytes

    async def create(self, bucket: str, key: str, mime_type: str, size: int) -> Upload:
        """Begin an upload. One of no bytes is complete at once."""
        if size > self._max_bytes:
            raise BadRequest(
                f"a file of {size} bytes is larger than {self._max_bytes}, the most that this server takes "
                "(STACK_MAX_FILE_GB)"
            )
        upload = Upload(
            token_hex(16), check_bucket(bucket), check_key(key), check_mime_type(mime_type), size, 0
        )
        now = datetime.now(UTC)
        row = {name: getattr(upload, name) for name in Upload.__slots__}
        replaced: list[str] = []
        async with self._database.write() as connection:
            await connection.execute(insert(uploads), row | {"created_at": now, "updated_at": now})
            if size == 0:
                replaced = await self._complete(connection, upload)
        await self._blobs.free(replaced)
        return upload

    async def get(self, upload_id: str) -> Upload:
        """Raises NoUpload."""
        async with self._database.read() as connection:
            row = (
                (await connection.execute(select(uploads).where(uploads.c.id == upload_id)))
                .mappings()
                .first()
            )
        if row is None:
            raise NoUpload(upload_id)
        return _upload(row)

    async def append(
        self,
        upload_id: str,
        chunks: AsyncIterator[bytes],
        *,
        offset: int | None = None,
        length: int | None = None,
    ) -> tuple[Upload, StoredFile | None]:
        """Add bytes to a session; with the last of them comes the file.

        `offset`: where the caller thinks that they belong. `length`: how many will come, where that is told.
        What was stored before `chunks` ends or fails is kept. Raises NoUpload, or BadRequest for more bytes
        than the session lacks, of which none is kept, and while another request adds to it.
        """
        _check(await self.get(upload_id), offset, length)
        async with self._hold(upload_id) as writing:
            _check(writing.upload, offset, length)
            await self._store(writing, chunks)
        upload = await self.get(upload_id)
        complete = upload.offset == upload.size
        return upload, await self._files.get(upload.bucket, upload.key) if complete else None

    async def _store(self, writing: _Writing, chunks: AsyncIterator[bytes]) -> None:
        """Blocks are stored as they fill, but the file's last one only when nothing comes after it."""
        buffer = bytearray()
        async for chunk in chunks:
            buffer += chunk
            _check_room(writing.upload, writing.offset, len(buffer))
            while len(buffer) >= PART_BYTES and writing.offset + len(buffer) < writing.upload.size:
                await self._store_block(writing, bytes(buffer[:PART_BYTES]))
                del buffer[:PART_BYTES]
        while buffer:
            await self._store_block(writing, bytes(buffer[:PART_BYTES]))
            del buffer[:PART_BYTES]

    async def _store_block(self, writing: _Writing, data: bytes) -> None:
        """Make a block durable, then move the offset; at the end of the file let it appear."""
        upload, offset, start = writing.upload, writing.offset + len(data), writing.offset
        # Small blocks are joined with their like before them, as a binary counter carries: a byte is moved
        # a few times at most, and a file sent in a million pieces is not kept in a million objects.
        tail = writing.tail
        while tail and tail[-1].size <= len(data) <= PART_BYTES - tail[-1].size:
            part = tail.pop()
            data, start = await self._blobs.read_part(part) + data, part.start
        part = await self._blobs.write(upload.id, start, data)
        async with self._database.write() as connection:
            moved = await connection.execute(
                update(uploads)
                .where(uploads.c.id == upload.id, uploads.c.writer == writing.writer)
                .where(uploads.c.offset == writing.offset)
                .values(offset=offset, updated_at=datetime.now(UTC))
            )
            if taken_over := moved.rowcount != 1:
                freed = [part.object]
            else:
                freed = await self._blobs.replace(connection, upload.id, part)
                if offset == upload.size:
                    freed += await self._complete(connection, upload)
        await self._blobs.free(freed)
        if taken_over:
            raise BadRequest(
                "another request took the upload over when this one stood still: "
                "GET the session for its offset"
            )
        writing.offset = offset
        tail.append(part)

    async def _complete(self, connection: AsyncConnection, upload: Upload) -> list[str]:
        """Let the file appear. The objects of the one in whose place it stands are to be freed."""
        now = datetime.now(UTC)
        file = StoredFile(upload.bucket, upload.key, upload.id, upload.mime_type, upload.size, now)
        return await self._files.put(connection, file)

    @asynccontextmanager
    async def _hold(self, upload_id: str) -> AsyncGenerator[_Writing]:
        writing = await self._acquire(upload_id)
        beating = asyncio.create_task(self._beat(writing))
        try:
            writing.tail = await self._blobs.last_parts(upload_id, TAIL)
            yield writing
        finally:
            beating.cancel()
            with suppress(StackError):  # whoever comes next then waits DEAD_S
                await self._sign(writing, writer=None)

    async def _acquire(self, upload_id: str) -> _Writing:
        writer, since, seen = token_hex(8), monotonic(), None
        while True:
            async with self._database.write() as connection:
                query = select(uploads).where(uploads.c.id == upload_id).with_for_update()
                row = (await connection.execute(query)).mappings().first()
                if row is None:
                    raise NoUpload(upload_id)
                mark = row["writer"], row["updated_at"]
                if row["writer"] is None or (mark == seen and monotonic() - since > DEAD_S):
                    new = {"writer": writer, "updated_at": datetime.now(UTC)}
                    await connection.execute(update(uploads).where(uploads.c.id == upload_id).values(new))
                    return _Writing(_upload(row), writer, row["offset"])
            if seen not in (None, mark):
                raise BadRequest(
                    "another request is adding to this upload session: wait for its answer, "
                    "then GET the session for its offset"
                )
            seen = mark
            await asyncio.sleep(POLL_S)

    async def _beat(self, writing: _Writing) -> None:
        """Renew the hold while the client or the storage is slow."""
        while True:
            await asyncio.sleep(BEAT_S)
            with suppress(StackError):  # the next one may come through
                await self._sign(writing, writer=writing.writer)

    async def _sign(self, writing: _Writing, writer: str | None) -> None:
        own = uploads.c.id == writing.upload.id, uploads.c.writer == writing.writer
        async with self._database.write() as connection:
            await connection.execute(
                update(uploads).where(*own).values(writer=writer, updated_at=datetime.now(UTC))
            )


def _upload(row: Any) -> Upload:
    return Upload(**{name: row[name] for name in Upload.__slots__})


def _check(upload: Upload, offset: int | None, length: int | None) -> None:
    if offset is not None and offset != upload.offset:
        raise BadRequest(
            f"the upload session is at offset {upload.offset}, not at {offset}: go on from there"
        )
    _check_room(upload, upload.offset, length or 0)


def _check_room(upload: Upload, offset: int, sent: int) -> None:
    if offset + sent > upload.size:
        raise BadRequest(
            f"the file is declared with {upload.size} bytes, of which {offset} are stored: "
            f"at most {upload.size - offset} more are taken, {sent} or more came"
        )
