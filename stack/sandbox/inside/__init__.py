"""Programs that run within the sandbox. They see the standard library and the allowed packages only."""
