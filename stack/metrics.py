"""What the server reports of requests and jobs through a Meter, with the kind and meaning of each name."""

from __future__ import annotations

from typing import Final

REQUESTS: Final = "requests"
REQUEST_SECONDS: Final = "request_seconds"
JOBS: Final = "jobs"

METRICS: Final = {
    REQUESTS: ("counter", "HTTP requests that ended, by path, method and status; 0: the client left."),
    REQUEST_SECONDS: ("histogram", "From a request's arrival to the end of its answer, by path."),
    JOBS: ("gauge", "Jobs that are kept, by kind and status."),
}
