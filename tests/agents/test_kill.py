"""A replica that is killed in the middle of a turn loses no finished step and blocks no session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agents.kills import POINTS, kill_at, new_agent, problems
from tests.agents.server import Replica
from tests.store.conftest import new_postgres_database, postgres_url

__all__ = ["postgres_url"]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_kill(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """At each point with SQLite; with Postgres, whose locks are other ones, at one."""
    url, points = None, list(POINTS)
    if kind == "postgres":
        url, points = new_postgres_database(request.getfixturevalue("postgres_url")), points[:1]
    other = Replica(tmp_path, url)
    victims: list[Replica] = []
    try:
        other_url = other.wait()
        victims = [Replica(tmp_path, url) for _ in points]
        agent_id = new_agent(other_url)
        for point, victim in zip(points, victims, strict=True):
            outcome = kill_at(point, victim, victim.wait(), other_url, agent_id)
            assert problems(outcome) == [], point
            assert outcome.next_s < 5, point
    finally:
        for replica in [other, *victims]:
            replica.kill()
