"""What people see at /ui, in Chromium."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect

from stack.settings import Settings
from tests.agents.instant import call, script
from tests.ui.conftest import Site

HOSTILE = "<img src=x onerror=alert(1)><b>bold</b>"


def go(page: Page, *parts: str) -> None:
    page.evaluate("hash => location.hash = hash", "#/" + "/".join(quote(part, safe="") for part in parts))


def test_models_with_their_replicas(page: Page) -> None:
    row = page.get_by_role("row").filter(has_text="llm")
    expect(row).to_contain_text("ready")
    expect(row.get_by_role("cell").nth(3)).to_have_text("2")
    row.get_by_role("link").click()
    expect(page.get_by_role("heading", name="tiny")).to_be_visible()
    expect(page.get_by_text("2048")).to_be_visible()


def test_keys_lead_everywhere(page: Page) -> None:
    expect(page.get_by_role("row")).to_have_count(3)
    page.keyboard.press("j")
    expect(page.get_by_role("link", name="embedder")).to_be_focused()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="embedder")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    for key, title in (
        ("t", "Traces"),
        ("j", "Jobs"),
        ("a", "Agents"),
        ("v", "Vector databases"),
        ("b", "Benchmarks"),
    ):
        page.keyboard.press("g")
        page.keyboard.press(key)
        expect(page.get_by_role("heading", name=title)).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("g")
    page.keyboard.press("c")
    expect(page.get_by_label("message")).to_be_focused()


def test_a_chat_streams_and_is_stopped(page: Page, site: Site) -> None:
    go(page, "chat", "tiny")
    page.get_by_label("message").fill(script(["Hello ", HOSTILE], ["Again"]))
    page.keyboard.press("Enter")
    answer = page.locator(".message.assistant")
    expect(answer).to_have_text(f"assistantHello {HOSTILE}")
    assert page.locator("img").count() == 0
    page.get_by_label("message").fill(script(["first ", 30.0, "never"]))
    page.keyboard.press("Enter")
    expect(answer.last).to_have_text("assistantfirst ")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("stopped")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    sent = site.fake.requests[-1].messages
    assert [message.role for message in sent] == ["user", "assistant", "user"]


def test_a_chat_leads_to_its_trace(page: Page) -> None:
    go(page, "chat", "tiny")
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("message").fill(script(["Hello"]))
    page.keyboard.press("Enter")
    link = page.get_by_role("link", name="trace", exact=True)
    expect(link).to_be_visible()
    page.wait_for_timeout(500)  # spans are written every 0.2 s
    link.click()
    expect(page.get_by_role("heading", name="POST /v1/inference/chat-completion")).to_be_visible()
    page.get_by_role("button", name="chat tiny").click()
    expect(page.get_by_text("gen_ai.request.model")).to_be_visible()


def test_an_error_is_told(page: Page) -> None:
    go(page, "chat", "tiny")
    page.get_by_label("message").fill(script([{"error": f"no {HOSTILE}"}]))
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text(f"no {HOSTILE}")


def log(
    site: Site, trace: str, span: str, at: float, name: str = "", parent: str | None = None, **more: Any
) -> None:
    payload: Any = (
        {"type": "span_start", "name": name, "parent_span_id": parent}
        if name
        else {"type": "span_end", "status": "ok"}
    )
    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=at)
    event = {
        "type": "structured_log",
        "trace_id": trace,
        "span_id": span,
        "timestamp": moment.isoformat(),
        "payload": payload,
    }
    site.post("/v1/telemetry/events", {"event": event | more, "ttl_seconds": 600})


def test_a_waterfall(page: Page, site: Site) -> None:
    log(site, "w", "root", 0, f"all {HOSTILE}", attributes={"kind": "test", "n": 5})
    log(site, "w", "child", 1, "part", "root", attributes={"text": HOSTILE})
    log(site, "w", "child", 3)
    log(site, "w", "root", 4)
    go(page, "traces", "where", "n", "gt", "4")
    page.get_by_role("link", name=f"all {HOSTILE}").click()
    bars = page.locator(".waterfall rect")
    expect(bars).to_have_count(2)
    assert [float(bars.nth(0).get_attribute(name) or "") for name in ("x", "width")] == [0, 1000]
    assert [float(bars.nth(1).get_attribute(name) or "") for name in ("x", "width")] == [250, 500]
    page.get_by_role("button", name="part").click()
    expect(page.get_by_text(HOSTILE, exact=True)).to_be_visible()
    go(page, "traces", "where", "n", "gt", "5")
    expect(page.get_by_text("No span meets the condition.")).to_be_visible()


def test_an_agent_with_its_steps(page: Page, site: Site) -> None:
    config = {"model": "tiny", "instructions": "Be brief.", "input_shields": ["pii"]}
    agent = site.post("/v1/agents", {"agent_config": config | {"toolgroups": ["builtin::wolfram_alpha"]}})[
        "agent_id"
    ]
    session = site.post(f"/v1/agents/{agent}/session", {"session_name": "a talk"})["session_id"]
    asked = script([call("wolfram_alpha", query="pi")], ["It is 3."])
    site.post(
        f"/v1/agents/{agent}/session/{session}/turn", {"messages": [{"role": "user", "content": asked}]}
    )
    go(page, "agents")
    page.get_by_role("link", name=agent).click()
    page.get_by_role("link", name="a talk").click()
    steps = page.locator(".step")
    expect(steps).to_have_count(4)
    expect(steps.nth(0)).to_contain_text("shield call")
    expect(steps.nth(1)).to_contain_text('calls wolfram_alpha({"query": "pi"})')
    expect(steps.nth(2)).to_contain_text("tool execution")
    expect(page.locator(".message.assistant").last).to_contain_text("It is 3.")


def test_a_job_moves_and_has_a_curve(page: Page, site: Site) -> None:
    jobs = site.stack.jobs

    async def begin() -> Any:
        await jobs.submit("supervised-fine-tune", {}, "learns")
        return await jobs.claim("learns", "test")

    lease = site.run(begin())
    progress = {"phase": "training", "done": 1, "total": 4, "unit": "steps", "loss": 2.0}
    site.run(jobs.renew(lease, progress | {"curve": {"train": [[1, 2.0]], "validation": []}}))
    go(page, "jobs")
    page.get_by_role("link", name="learns").click()
    expect(page.get_by_text("1 of 4 steps")).to_be_visible()
    curve = {"train": [[1, 2.0], [2, 1.0], [3, 0.5]], "validation": [[1, 2.5], [3, 1.5]]}
    site.run(jobs.renew(lease, progress | {"done": 3, "curve": curve}))
    expect(page.get_by_text("3 of 4 steps")).to_be_visible()
    expect(page.locator("polyline")).to_have_count(2)
    points = str(page.locator("polyline.line-train").get_attribute("points")).split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.get_by_text("cancelling")).to_be_visible()


def test_a_vector_database_is_asked(page: Page, site: Site) -> None:
    site.post(
        "/v1/vector-dbs", {"vector_db_id": "docs", "embedding_model": "embedder", "embedding_dimension": 2}
    )
    site.post(
        "/v1/vector-io/insert",
        {"vector_db_id": "docs", "chunks": [{"content": HOSTILE, "metadata": {"page": 7}}]},
    )
    go(page, "vector-dbs")
    page.get_by_role("link", name="docs").click()
    expect(page.get_by_label("query")).to_be_focused()
    page.keyboard.type("bold")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 chunks")).to_be_visible()
    expect(page.locator(".message")).to_contain_text(HOSTILE)
    expect(page.locator(".message")).to_contain_text('{"page":7}')


def test_two_runs_side_by_side(page: Page, site: Site) -> None:
    from stack.evaluation.evaluate import Evaluation

    rows = [{"question": "a", "answer": "a"}, {"question": "b", "answer": "b"}]
    source = {"type": "rows", "rows": rows}
    site.post("/v1/datasets", {"dataset_id": "letters", "purpose": "eval/question-answer", "source": source})
    site.post(
        "/v1/eval/benchmarks",
        {"benchmark_id": "letters", "dataset_id": "letters", "scoring_functions": ["basic::equality"]},
    )
    candidate = {
        "type": "model",
        "model": "tiny",
        "sampling_params": {"strategy": {"type": "greedy"}, "max_tokens": 4},
    }
    config = {"benchmark_config": {"eval_candidate": candidate, "scoring_params": {}}}

    async def finish(job_id: str, scores: list[float]) -> None:
        from stack.batch.parts import Part, Results

        job = await site.stack.jobs.get(job_id)
        Evaluation.model_validate(job.request)
        lease = await site.stack.jobs.claim(job_id, "test")
        found = [
            {"generation": {"generated_answer": "a"}, "scores": {"basic::equality": {"score": score}}}
            for score in scores
        ]
        await Results(site.stack.storage, job_id).write(Part(0, 0, 2), found)
        mean = {"basic::equality": {"accuracy": sum(scores) / 2}}
        result = {
            "benchmark_id": "letters",
            "candidate": "tiny",
            "parts": 1,
            "rows": 2,
            "failed": 0,
            "scores": mean,
        }
        await site.stack.jobs.finish(lease, result)

    for scores in ([1.0, 0.0], [1.0, 1.0]):
        job_id = site.post("/v1/eval/benchmarks/letters/jobs", config)["job_id"]
        site.run(finish(job_id, scores))
    go(page, "benchmarks")
    page.get_by_role("link", name="letters").click()
    expect(page.get_by_text("accuracy 0.5000")).to_be_visible()
    page.get_by_role("button", name="Compare").click()
    row = page.get_by_role("row").filter(has_text=re.compile("0\\.5000 ?.*1\\.000"))
    expect(row.last).to_contain_text("basic::equality")


def test_what_is_not_there(page: Page, site: Site) -> None:
    assert site.http.get("/ui/none.js").status_code == 404
    assert site.http.get("/ui/..%2Fapp.py").status_code == 404
    tag = site.http.get("/ui/app.js").headers["etag"]
    assert site.http.get("/ui/app.js", headers={"if-none-match": tag}).status_code == 304
    expect(page.get_by_role("heading", name="Models")).to_be_visible()


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_cut_off(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for view in ("models", "chat", "agents", "jobs", "traces", "vector-dbs", "benchmarks"):
        go(page, view)
        expect(page.get_by_role("heading").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_server_that_wants_a_key(tmp_path: Path, browser: Browser) -> None:
    site = Site(Settings(home=tmp_path / "home", require_api_key=True))
    page = browser.new_page()
    try:
        key = site.run(site.stack.api_keys.create("alice"))
        page.goto(f"{site.url}/ui#/models")
        dialog = page.get_by_role("dialog", name="API key")
        dialog.get_by_label("API key").fill("wrong")
        dialog.get_by_role("button", name="Use").click()
        expect(dialog).to_contain_text("The server does not know the key.")
        dialog.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Models")).to_be_visible()
        expect(dialog).to_be_hidden()
        page.goto(f"{site.url}/ui#/jobs")  # all views, and after loading the page again
        page.reload()
        expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
        expect(dialog).to_be_hidden()
        site.run(site.stack.api_keys.delete("alice"))
        page.reload()
        dialog.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("401")).to_be_visible()
    finally:
        page.close()
        site.close()
