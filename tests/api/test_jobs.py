from __future__ import annotations

import httpx

from stack.context import Stack
from stack.jobs.logs import log_path
from stack.store.job_items import JobItems


async def test_list_get_cancel(client: httpx.AsyncClient, stack: Stack) -> None:
    assert (await client.get("/v1/jobs")).json() == {"data": [], "has_more": False}
    made = [(await stack.jobs.submit(kind, {"secret": "x"})).id for kind in ("ingest", "train", "ingest")]
    listed = (await client.get("/v1/jobs", params={"limit": 2})).json()
    assert [job["job_id"] for job in listed["data"]] == [made[2], made[1]]
    assert listed["has_more"] is True
    rest = (await client.get("/v1/jobs", params={"limit": 2, "after": made[1], "kind": "ingest"})).json()
    assert [job["job_id"] for job in rest["data"]] == [made[0]]
    cancelled = (await client.post(f"/v1/jobs/{made[0]}/cancel")).json()
    assert (cancelled["status"], cancelled["ended_at"] is None) == ("cancelled", False)
    assert "secret" not in (await client.get("/v1/jobs")).text
    again = await client.post(f"/v1/jobs/{made[0]}/cancel")
    assert again.status_code == 400
    assert again.json()["detail"] == f"job '{made[0]}' is cancelled already and cannot be cancelled"


async def test_a_job_shows_what_failed(client: httpx.AsyncClient, stack: Stack) -> None:
    job = await stack.jobs.submit("ingest", {}, "mine")
    lease = await stack.jobs.claim(job.id, "here")
    await JobItems(stack.database).fail(lease, {4: "no text in it"})
    await stack.jobs.renew(lease, {"done": 5, "total": 9})
    shown = (await client.get("/v1/jobs/mine")).json()
    assert (shown["status"], shown["progress"]) == ("in_progress", {"done": 5, "total": 9})
    assert shown["failed_items"] == [{"item": 4, "error": "no text in it"}]
    assert shown["created_at"].endswith("+00:00")


async def test_the_end_of_a_log(client: httpx.AsyncClient, stack: Stack) -> None:
    job = await stack.jobs.submit("ingest", {})
    url = f"/v1/jobs/{job.id}/logs"
    assert (await client.get(url)).text == ""
    path = log_path(stack.settings.home, job.id)
    path.parent.mkdir()
    path.write_text("".join(f"line {n}\n" for n in range(1000)))
    assert (await client.get(url)).text.startswith("line 0\n")
    assert (await client.get(url, params={"max_bytes": 20})).text == "line 998\nline 999\n"


async def test_unknown_and_odd(client: httpx.AsyncClient) -> None:
    for path in ("/v1/jobs/nobody", "/v1/jobs/nobody/logs", "/v1/jobs?after=nobody"):
        assert (await client.get(path)).status_code == 404
    for query in ("limit=0", "limit=5000", "status=running"):
        assert (await client.get(f"/v1/jobs?{query}")).status_code == 400
    assert "/v1/jobs" not in (await client.get("/openapi.json")).json()["paths"]
