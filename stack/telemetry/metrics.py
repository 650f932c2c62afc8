"""What telemetry reports of itself through a Meter. Every name it uses is here, with its kind and meaning."""

from __future__ import annotations

from typing import Final

STORED: Final = "telemetry_events"
DROPPED: Final = "telemetry_dropped_events"

METRICS: Final = {
    STORED: ("counter", "Spans and events that were stored."),
    DROPPED: ("counter", "Spans that were dropped, since too many waited or the store refused them."),
}
