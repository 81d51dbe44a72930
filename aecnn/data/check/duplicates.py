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


def near_groups(bits: npt.NDArray[np.bool_], *, max_distance: int = NEAR_BITS) -> Groups:
    """Gives the groups of hashes that hang together: each differs in few bits from another of its group.

    Two hashes of K bits as ±1 have the scalar product K − 2·distance, so that all distances are one matrix product:
    exact in float32, and faster than any index at these sizes. Equal hashes are compared once.

    Args:
        bits: [N, K] hashes.
        max_distance: Largest number of differing bits between neighbours.
    """
    single, first_rows, codes = np.unique(np.packbits(bits, axis=1), axis=0, return_index=True, return_inverse=True)
    signs = np.where(bits[first_rows], np.float32(1), np.float32(-1))  # [M, K]
    leaders = list(range(len(single)))  # of each hash's group so far

    def leader(hash_: int) -> int:
        while leaders[hash_] != hash_:
            leaders[hash_] = leaders[leaders[hash_]]
            hash_ = leaders[hash_]
        return hash_

    for start in range(0, len(signs), _BLOCK):
        products = signs[start : start + _BLOCK] @ signs[start:].T  # [block, M − start]
        near = np.argwhere(products >= bits.shape[1] - 2 * max_distance)
        for first, second in (near[near[:, 1] > near[:, 0]] + start).tolist():
            leaders[leader(second)] = leader(first)
    return identical([str(leader(code)) for code in codes.ravel().tolist()])
