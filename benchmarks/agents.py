"""Agents with a model that answers at once: what the server itself costs.

    python benchmarks/agents.py overhead    a turn of inference, tool, inference; 32 sessions at once
    python benchmarks/agents.py kills       kill -9 at four points of a turn, 20 runs each
    python benchmarks/agents.py sessions    1,000 sessions of 20 turns: listing and reading

The server is a process of its own with the model and the tool in it (tests/agents/server.py), on SQLite.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.agents.instant import call, script
from tests.agents.kills import POINTS, kill_at, new_agent, problems
from tests.agents.server import Replica

RUNS = 20


def median_ms(times: Sequence[float]) -> str:
    return f"{statistics.median(times) * 1000:.1f} ms"


def new_session(client: httpx.Client, agent_id: str) -> str:
    response = client.post(f"/v1/agents/{agent_id}/session", json={"session_name": "bench"})
    return f"/v1/agents/{agent_id}/session/{response.json()['session_id']}"


def turn_body(*answers: list[object], stream: bool = False) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": script(*answers)}], "stream": stream}


TWO_STEPS = turn_body([call("echo", text="hi")], ["It says hi."])


def overhead(url: str) -> None:
    agent_id = new_agent(url)
    with httpx.Client(base_url=url, timeout=60) as client:
        for name, body in (
            ("a turn of one step", turn_body(["Hello."])),
            ("a turn of two steps (inference, tool, inference)", TWO_STEPS),
            ("the same, streamed", TWO_STEPS | {"stream": True}),
        ):
            times = []
            for _ in range(10):
                session = new_session(client, agent_id)
                for _ in range(20):
                    started = time.perf_counter()
                    client.post(f"{session}/turn", json=body).raise_for_status()
                    times.append(time.perf_counter() - started)
            p95 = sorted(times)[int(len(times) * 0.95)] * 1000
            print(f"{name}: p50 {median_ms(times)}, p95 {p95:.1f} ms; {len(times)} turns, HTTP included")
        times = []
        for _ in range(200):
            started = time.perf_counter()
            client.get("/v1/health").raise_for_status()
            times.append(time.perf_counter() - started)
        print(f"a request that does nothing: p50 {median_ms(times)}")
    for sessions in (1, 8, 32):
        print(f"{sessions} sessions at once: {asyncio.run(rate(url, agent_id, sessions)):.0f} turns/s")


async def rate(url: str, agent_id: str, sessions: int, turns: int = 12) -> float:
    limits = httpx.Limits(max_connections=sessions)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def talk() -> None:
            response = await client.post(f"/v1/agents/{agent_id}/session", json={"session_name": "bench"})
            session = f"/v1/agents/{agent_id}/session/{response.json()['session_id']}"
            for _ in range(turns):
                (await client.post(f"{session}/turn", json=TWO_STEPS)).raise_for_status()

        started = time.perf_counter()
        await asyncio.gather(*(talk() for _ in range(sessions)))
        return sessions * turns / (time.perf_counter() - started)


def kills(url: str, home: Path) -> None:
    """Two victims start while the last one is killed."""
    agent_id = new_agent(url)
    for point in POINTS:
        found: Counter[str] = Counter()
        next_s, steps = [], 0
        victims = [Replica(home) for _ in range(2)]
        for run in range(RUNS):
            victim = victims.pop(0)
            if run + 2 < RUNS:
                victims.append(Replica(home))
            outcome = kill_at(point, victim, victim.wait(), url, agent_id)
            found.update(problems(outcome))
            next_s.append(outcome.next_s)
            steps += len(outcome.finished)
        print(
            f"{point}: {RUNS} kills, {steps} finished steps seen, problems: {dict(found) or 'none'}; "
            f"the session's next turn took {median_ms(next_s)}, at most {max(next_s) * 1000:.0f} ms",
            flush=True,
        )


def sessions(url: str) -> None:
    agent_id = new_agent(url)
    with httpx.Client(base_url=url, timeout=60) as client:
        made: list[str] = []
        hello = turn_body(["Hello."])
        for target in (10, 100, 1000):
            made += asyncio.run(fill(url, agent_id, target - len(made)))
            listing = timed(lambda: client.get(f"/v1/agents/{agent_id}/sessions").raise_for_status())
            reading = timed(lambda session=made[0]: client.get(session).raise_for_status())
            turn = timed(
                lambda session=made[-1]: client.post(f"{session}/turn", json=hello).raise_for_status()
            )
            print(
                f"{target} sessions of 20 turns: list {listing}, read one {reading}, one more turn {turn}",
                flush=True,
            )


async def fill(url: str, agent_id: str, count: int) -> list[str]:
    async with httpx.AsyncClient(
        base_url=url, timeout=120, limits=httpx.Limits(max_connections=16)
    ) as client:
        slots = asyncio.Semaphore(16)

        async def one() -> str:
            async with slots:
                response = await client.post(f"/v1/agents/{agent_id}/session", json={"session_name": "bench"})
                session = f"/v1/agents/{agent_id}/session/{response.json()['session_id']}"
                for number in range(20):
                    body = turn_body([f"Answer {number}."])
                    (await client.post(f"{session}/turn", json=body)).raise_for_status()
                return session

        return list(await asyncio.gather(*(one() for _ in range(count))))


def timed(work: Callable[[], object]) -> str:
    times = []
    for _ in range(11):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median_ms(times)


def main() -> None:
    chosen = sys.argv[1:] or ["overhead", "kills", "sessions"]
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        server = Replica(Path(folder))
        try:
            url = server.wait()
            if "overhead" in chosen:
                overhead(url)
            if "kills" in chosen:
                kills(url, Path(folder))
            if "sessions" in chosen:
                sessions(url)
        finally:
            server.kill()
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
