"""The page at /docs. It needs no network: FastAPI's own loads its scripts from a third party."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import HTMLResponse

from stack.api.routing import api_router

router = api_router("Docs")
_PAGE = Path(__file__).with_name("docs.html").read_text()
# What the page shows came from this server's own document; nothing else may run or be loaded.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    return HTMLResponse(_PAGE, headers={"content-security-policy": _POLICY})
