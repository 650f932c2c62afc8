"""Files of each kind become text; hostile ones become errors, within a bounded time."""

from __future__ import annotations

import asyncio
import time
import zipfile
from io import BytesIO

import pytest

from stack.bounded import Limits
from stack.errors import BadRequest
from stack.rag.parse import Parser, Source, Text
from tests.rag import files


async def parse(parser: Parser, content: bytes | str, **fields: str) -> Text:
    return await parser.parse(Source(content.encode() if isinstance(content, str) else content, **fields))


async def refusal(parser: Parser, content: bytes | str, **fields: str) -> str:
    with pytest.raises(BadRequest) as caught:
        await parse(parser, content, **fields)
    return str(caught.value)


async def test_plain_text(parser: Parser) -> None:
    assert await parse(parser, "# a\r\nb\x00 c") == Text("# a\nb c", None)


async def test_markdown_has_a_title(parser: Parser) -> None:
    found = await parse(parser, "intro\n\n## The  title ##\n", declared="text/markdown")
    assert found.title == "The title"


@pytest.mark.parametrize("declared", ["text/html", "text/plain", None, "text/html; charset=latin-1"])
async def test_html(parser: Parser, declared: str | None) -> None:
    found = await parser.parse(Source(files.HTML.encode(), declared))
    assert found == Text(files.HTML_TEXT, "A page")


async def test_html_without_a_main_part(parser: Parser) -> None:
    page = "<p>one<div>two<br>three</div><main>little</main>" + "<p>much more of it" * 20
    assert (await parse(parser, page, declared="text/html")).text.startswith("one\n\ntwo\nthree\n\nlittle")


async def test_docx(parser: Parser) -> None:
    found = await parse(parser, files.word())
    assert found.title == "A report"
    assert found.text == (
        "# First part\n\nGrüße aus 東京. It has two sentences.\n\n## Detail\n\n- one\n\n"
        "name | size\napple | 3\n\nThe end."
    )


async def test_pdf(parser: Parser) -> None:
    content = files.pdf(
        [["First", "some words"], ["more", "Second", "end"]], "T", [("First", 0), ("SECOND", 1)]
    )
    assert await parse(parser, content) == Text("# First\n\nsome words\n\nmore\n\n# Second\n\nend", "T")


async def test_pdf_declared_as_text(parser: Parser) -> None:
    content = files.pdf([["words"]])
    assert await parse(parser, content, declared="text/plain") == Text("words", None)


@pytest.mark.parametrize("text", ["Files begin with %PDF-1.4", "GIF89a is a kind of image"])
async def test_text_about_files_is_text(parser: Parser, text: str) -> None:
    assert await parse(parser, text) == Text(text, None)


async def test_csv_rows_name_their_columns(parser: Parser) -> None:
    content = 'name;note\napple;"red; or ""green"""\npear;"two\nlines"\n\n'
    text = (await parse(parser, content, declared="text/csv")).text
    assert text == 'name: apple\nnote: red; or "green"\n\nname: pear\nnote: two\nlines'


async def test_csv_without_names(parser: Parser) -> None:
    assert (await parse(parser, "1,2\n3,4", declared="text/csv")).text == "1, 2\n\n3, 4"


@pytest.mark.parametrize(
    ("url", "content_type", "start"),
    [
        ("https://example.org/a.csv?x=1", "text/plain", "k: 1"),
        ("https://example.org/a", "text/csv", "k: 1"),
        ("https://example.org/a.txt", "application/octet-stream", "k,l"),
    ],
)
async def test_kind_by_content_type_then_suffix(
    parser: Parser, url: str, content_type: str, start: str
) -> None:
    assert (await parse(parser, "k,l\n1,2", fetched=content_type, url=url)).text.startswith(start)


GERMAN = "Öffentliche Gebäude müssen für Fußgänger zugänglich sein, außer in Ausnahmefällen. " * 5
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 5
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива. " * 5


@pytest.mark.parametrize(
    ("text", "encoding", "declared"),
    [
        (GERMAN, "utf-8", "iso-8859-1"),
        (GERMAN, "cp1252", "utf-8"),
        (GERMAN, "cp1252", "no-such-charset"),
        (GERMAN, "iso-8859-1", "rot13"),
        (GERMAN, "utf-16", None),
        (GERMAN, "utf-8-sig", None),
        (GERMAN, "utf-32", None),
        (JAPANESE, "shift_jis", "shift_jis"),
        (JAPANESE, "euc_jp", None),
        (RUSSIAN, "cp1251", None),
    ],
)
async def test_charsets(parser: Parser, text: str, encoding: str, declared: str | None) -> None:
    found = await parser.parse(Source(text.encode(encoding), None, "text/plain", declared))
    assert found.text == text


async def test_charset_in_html(parser: Parser) -> None:
    page = f'<html><head><meta charset="windows-1251"><title>x</title></head><p>{RUSSIAN}'
    assert (await parse(parser, page.encode("cp1251"))).text == RUSSIAN.strip()


async def test_damaged_utf_8_keeps_the_rest(parser: Parser) -> None:
    found = await parse(parser, GERMAN.encode() + b"\xff." + GERMAN.encode())
    assert found.text == f"{GERMAN}\ufffd.{GERMAN}"


@pytest.mark.parametrize(
    ("content", "declared", "message"),
    [
        (files.HTML, "application/pdf", "it should be a pdf file and is an HTML page"),
        (files.HTML, "text/csv", "it should be a csv file and is an HTML page"),
        ("hello", "application/pdf", "it should be a pdf file and is none"),
        (b"%PDF-1.4 nothing", None, "damaged PDF"),
        (b"PK\x03\x04 word/document.xml", None, "damaged docx"),
        (b"\x1f\x8b\x08\x00", None, "gzip"),
        (b"\x89PNG\r\n", None, "an image"),
        (b"\x00\x01\x02\x00" * 100, None, "binary file"),
        ("x", "video/mp4", "'video/mp4' is not read"),
        (files.pdf([[]]), None, "OCR"),
    ],
)
async def test_what_is_not_read(
    parser: Parser, content: bytes | str, declared: str | None, message: str
) -> None:
    content = content.encode() if isinstance(content, str) else content
    with pytest.raises(BadRequest, match=message):
        await parser.parse(Source(content, declared))


async def test_a_spreadsheet_is_no_docx(parser: Parser) -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    assert "zip archive that is no docx" in await refusal(parser, out.getvalue())


async def test_zip_bomb(parser: Parser) -> None:
    assert "unpacks to 400 MiB" in await refusal(parser, files.word_bomb(400))


async def test_pdf_of_many_pages(parser: Parser) -> None:
    assert "6000 pages, at most 5000" in await refusal(parser, files.pdf([["x"]] * 6000))


async def test_csv_of_a_giant_cell(parser: Parser) -> None:
    content = 'a,b\n1,"' + "x" * 2_000_000 + '"\n'
    assert "more than 1000000 characters" in await refusal(parser, content, declared="text/csv")


async def test_deep_html_ends(parser: Parser) -> None:
    assert (await parse(parser, "<div>" * 8000 + "deep", declared="text/html")).text == "deep"


async def test_a_document_that_takes_all_its_time_does_not_stop_others() -> None:
    slow = Parser(Limits(cpu_s=0.5, wall_s=30, memory_bytes=1 << 30))
    hostile = asyncio.create_task(refusal(slow, "<div>" * 1_000_000, declared="text/html"))
    begun = time.monotonic()
    assert (await parse(slow, files.HTML)).title == "A page"
    assert (await hostile) == "reading it takes more than 0.5 s"
    assert time.monotonic() - begun < 20
    assert (await parse(slow, files.HTML)).title == "A page"
    slow.close()


async def test_many_empty_lines_take_no_time(parser: Parser) -> None:
    begun = time.monotonic()
    await parse(parser, "# " + "#" * 100_000 + "x\n" + "\n" * 1_000_000, declared="text/markdown")
    assert time.monotonic() - begun < 5
