"""What agents report through a Meter. Every name they use is here, with its kind and meaning."""

from __future__ import annotations

from typing import Final

TURNS: Final = "agent_turns"
STOPPED_TURNS: Final = "agent_stopped_turns"
TURN_SECONDS: Final = "agent_turn_seconds"
STEPS: Final = "agent_steps"
DROPPED_TURNS: Final = "agent_dropped_turns"
SHORTENED_PROMPTS: Final = "agent_shortened_prompts"
REPEATED_CALLS: Final = "agent_repeated_calls"
REPAIRED_CALLS: Final = "agent_repaired_calls"

METRICS: Final = {
    TURNS: ("counter", "Turns that ended, however they did."),
    STOPPED_TURNS: ("counter", "Turns that failed, or that their client left."),
    TURN_SECONDS: ("histogram", "From a turn's first event to its last, waiting for its client left out."),
    STEPS: ("counter", "Steps that were finished."),
    DROPPED_TURNS: ("counter", "Earlier turns left out of a prompt, since the model does not read so much."),
    SHORTENED_PROMPTS: ("counter", "Prompts that were cut down to what the model reads."),
    REPEATED_CALLS: ("counter", "Turns whose model made the same call again, and was asked for an answer."),
    REPAIRED_CALLS: ("counter", "Tool calls that could not be read, and were asked for once more."),
}
