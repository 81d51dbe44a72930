"""Bytes that a reader may ask for only so many times.

A short file can make a reader build millions of parts, nest thousands of sequences, or search a file byte by byte.
Libraries differ in what they guard against; each of them must read.
"""

import io

MAX_READS = 50_000  # a radiograph's header takes a few hundred, its pixels a few thousand


class BoundedStream(io.BytesIO):
    """Bytes in memory that can be read `MAX_READS` times."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Gives the next bytes.

        Raises:
            ValueError: There were too many reads.
        """
        self._reads += 1
        if self._reads > MAX_READS:
            raise ValueError(f"it has over {MAX_READS} parts")
        return super().read(size)
