"""What the maintenance of vector databases reports through a Meter, for each database."""

from __future__ import annotations

from typing import Final

ROWS: Final = "vector_rows"
FRAGMENTS: Final = "vector_fragments"
BYTES: Final = "vector_bytes"
INDEX: Final = "vector_index"
RECALL: Final = "vector_recall"

METRICS: Final = {
    ROWS: ("gauge", "Chunks of a vector database."),
    FRAGMENTS: ("gauge", "Files that its rows are spread over; compaction merges them."),
    BYTES: ("gauge", "Bytes of its newest version, without indexes."),
    INDEX: ("gauge", "Its index: 0 none (every vector is compared), 1 IVF_FLAT, 2 IVF_SQ with refinement."),
    RECALL: ("gauge", "Of the 10 nearest chunks, the share that the index finds, when last measured."),
}
