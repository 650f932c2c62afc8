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
    """At each point, the next victim starting while the last one dies."""
    url = None
    if kind == "postgres":
        url = new_postgres_database(request.getfixturevalue("postgres_url"))
    other = Replica(tmp_path, url)
    victims: list[Replica] = []
    try:
        other_url = other.wait()
        victims = [Replica(tmp_path, url) for _ in POINTS]
        agent_id = new_agent(other_url)
        for point, victim in zip(POINTS, victims, strict=True):
            outcome = kill_at(point, victim, victim.wait(), other_url, agent_id)
            assert problems(outcome) == [], point
            assert outcome.next_s < 5, point
        assert list(tmp_path.glob("*.lock")) != [] or kind == "postgres"
    finally:
        for replica in [other, *victims]:
            replica.kill()
