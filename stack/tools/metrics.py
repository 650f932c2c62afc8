"""What tools report through a Meter, for each group. Every name is here, with its kind and meaning."""

from __future__ import annotations

from typing import Final

CALLS: Final = "tool_calls"
FAILED_CALLS: Final = "tool_failed_calls"
CALL_SECONDS: Final = "tool_call_seconds"

METRICS: Final = {
    CALLS: ("counter", "Calls of tools that ended, however they did."),
    FAILED_CALLS: ("counter", "Calls whose result is an error."),
    CALL_SECONDS: ("histogram", "From a call to its result."),
}
