"""The same picture under two names: identical bytes, and near-duplicates by perceptual hash.

Near is at most `NEAR_BITS` of the 256 bits of ``imagehash.phash`` (hash size 16). Of 1,314 ChestX-ray14 images at
256 px no two different ones were nearer than 52 bits, while a JPEG copy of quality 60, one scaled to 200 px and back, a
brighter one and one with gamma 0.7 were at most 8, 12, 16 and 28 bits away (200 images each). A copy that was cropped
by 1 % at each side is 34 bits away at the median, so most of these are not found.
"""

import numpy as np
import numpy.typing as npt

NEAR_BITS = 28
_BLOCK = 512  # rows compared with all others at once: a table of 512 × N floats

Groups = list[list[int]]  # row numbers, each group sorted, groups by their first row


def identical(hashes: list[str]) -> Groups:
    """Gives the groups of rows with the same hash; empty hashes do not count."""
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(hashes):
        if value:
            rows.setdefault(value, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def near_pairs(bits: npt.NDArray[np.bool_], *, max_distance: int = NEAR_BITS) -> list[tuple[int, int, int]]:
    """Gives all pairs of hashes that differ in few bits.

    Two hashes of K bits as ±1 have the scalar product K − 2·distance, so that all distances are one matrix product:
    exact in float32, and faster than any index at these sizes.

    Args:
        bits: [N, K] hashes.
        max_distance: Largest number of differing bits.

    Returns:
        (first row, second row, distance), first < second, in order.
    """
    signs = np.where(bits, np.float32(1), np.float32(-1))  # [N, K]
    pairs: list[tuple[int, int, int]] = []
    for start in range(0, len(signs), _BLOCK):
        products = signs[start : start + _BLOCK] @ signs[start:].T  # [block, N − start]
        for first, second in np.argwhere(products >= bits.shape[1] - 2 * max_distance).tolist():
            if second > first:
                distance = int(bits.shape[1] - products[first, second]) // 2
                pairs.append((start + first, start + second, distance))
    return pairs
