"""Text tables and lists as they come: plain or gzip, any line ending, last newline or not, byte order mark or not.

Nothing is interpreted here: cells are stripped strings, and each keeps the number of its row. Rows count as in a
spreadsheet: the header is row 1, so a row's number is its line in the file.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from aecnn.errors import ManifestError

MAX_TABLE_BYTES = 128 * 2**20  # unpacked; the full ChestX-ray14 table has 8 MB
MAX_LINES = 1_000_000  # a line that is at fault takes two hundred times its bytes in memory
MAX_LINE_CHARACTERS = 2**20
MAX_CELL_CHARACTERS = 120  # in an error message

_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, eq=False)
class RawTable:
    """The columns asked for, as stripped strings, and the faults of the rows that had to be left out.

    Attributes:
        cells: One string column a name; only the rows with the expected number of fields.
        rows: [N] the number of each row in the file, the header being row 1.
        headings: The whole header, one entry a field.
        faults: One sentence for each row left out.
    """

    cells: pd.DataFrame
    rows: npt.NDArray[np.int64]  # [N]
    headings: tuple[str, ...]
    faults: tuple[str, ...]


def read_text(path: Path) -> str:
    """Gives the text of a UTF-8 file, unpacked where its first bytes say gzip, with Unix line endings.

    Raises:
        ManifestError: The file cannot be read, is damaged, is binary, or is larger than `MAX_TABLE_BYTES` or
            `MAX_LINES`.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            with gzip.open(file) if packed else file as stream:
                content = stream.read(MAX_TABLE_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ManifestError(path, [f"{path.name}: the gzip file is damaged ({error}): fetch it again"]) from error
    except OSError as error:
        raise ManifestError(path, [f"{path.name}: cannot be read ({error.strerror or error})"]) from error
    if len(content) > MAX_TABLE_BYTES:
        limit = f"{MAX_TABLE_BYTES // 2**20} MiB"
        raise ManifestError(path, [f"{path.name}: is larger than {limit}, which no table of radiographs is"])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8 text: save the table as UTF-8"
        raise ManifestError(path, [f"{path.name}: {reason}"]) from error
    if "\0" in text:
        raise ManifestError(path, [f"{path.name}: holds zero bytes, so it is no text table: save it as UTF-8 text"])
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if (lines := text.count("\n")) > MAX_LINES:
        raise ManifestError(
            path, [f"{path.name}: has {lines} lines, accepted are up to {MAX_LINES}: split the dataset"]
        )
    return text


def read_list(path: Path) -> pd.Series:
    """Gives the entries of a file with one name a line, indexed by line number (from 1); blank lines are left out.

    Raises:
        ManifestError: The file is not readable text.
    """
    entries = [line.strip() for line in read_text(path).split("\n")]
    series = pd.Series(entries, index=range(1, len(entries) + 1), dtype=str, name=path.name)
    return series[series != ""]


def read_table(path: Path, *, columns: Mapping[str, tuple[str, ...]]) -> RawTable:
    """Reads named columns of a comma-separated table; other columns are ignored.

    The official header has an unquoted comma inside ``OriginalImage[Width,Height]``, and another at its end in the
    2017 release. So fields are counted in the first row of data, and a trailing empty field is let through.

    Args:
        path: The table, plain or gzip.
        columns: Name to give → the spellings it may have in the header, as `header_key` gives them. Columns not
            found are left out of the result: the caller knows which it cannot do without.

    Raises:
        ManifestError: No text table, no row, or a header that does not fit the rows below it.
    """
    reader = csv.reader(_short_lines(read_text(path), path), strict=True)
    try:
        numbered = [(reader.line_num, fields) for fields in reader if fields and (fields[0] or any(fields))]
    except csv.Error as error:
        raise ManifestError(path, [f"{path.name} row {reader.line_num}: is not comma-separated ({error})"]) from error
    if len(numbered) < 2:
        raise ManifestError(path, [f"{path.name}: holds no rows below a header"])
    if len(numbered[0][1]) == 1 and any(mark in numbered[0][1][0] for mark in ";\t|"):
        raise ManifestError(
            path, [f"{path.name} row 1: has no comma in {shown(numbered[0][1][0])}: save it comma-separated"]
        )
    names = _header_names(numbered[0][1], width=_width(numbered[1][1]))
    found: dict[str, int] = {}
    for name, spellings in columns.items():
        places = [index for index, heading in enumerate(names) if header_key(heading) in spellings]
        if len(places) > 1:
            twice = ", ".join(repr(names[place]) for place in places)
            raise ManifestError(path, [f"{path.name} row 1: column {twice} is given {len(places)} times: keep one"])
        if places:
            found[name] = places[0]
    return _pick(numbered[1:], found=found, headings=tuple(names), file_name=path.name)


def header_key(heading: str) -> str:
    """Gives a heading's letters and digits in lower case, by which columns are recognised."""
    return "".join(character for character in heading.lower() if character.isalnum())


def shown(cell: str) -> str:
    """Gives a cell as it appears in an error message: quoted, and cut where it is very long."""
    return repr(cell if len(cell) <= MAX_CELL_CHARACTERS else cell[:MAX_CELL_CHARACTERS] + "…")


def _short_lines(text: str, path: Path) -> Iterator[str]:
    """The lines one by one, unless one is so long that its fields would fill the memory."""
    for row, line in enumerate(io.StringIO(text), start=1):
        if len(line) > MAX_LINE_CHARACTERS:
            reason = f"has {len(line)} characters, accepted are up to {MAX_LINE_CHARACTERS}"
            raise ManifestError(path, [f"{path.name} row {row}: {reason}: it is no table of radiographs"])
        yield line


def _width(fields: list[str]) -> int:
    return len(fields) - (fields[-1].strip() == "")


def _header_names(header: list[str], *, width: int) -> list[str]:
    """The headings, one a field: those with a quoted comma are cut at it where the rows have that many more fields."""
    names = header[: _width(header)]
    cut = ",".join(names).split(",")
    return cut if abs(len(cut) - width) < abs(len(names) - width) else names


def _pick(
    numbered: list[tuple[int, list[str]]], *, found: Mapping[str, int], headings: tuple[str, ...], file_name: str
) -> RawTable:
    """Takes the found columns out of the rows that have as many fields as the header."""
    fitting: list[tuple[int, list[str]]] = []
    faults: list[str] = []
    for row, fields in numbered:
        # A comma at the end of a row is let through: the 2017 release has one in its header.
        if len(fields) == len(headings) or (len(fields) == len(headings) + 1 and not fields[-1].strip()):
            fitting.append((row, fields))
        else:
            faults.append(f"{file_name} row {row}: has {len(fields)} fields, the header {len(headings)}")
    cells = {name: [fields[place].strip() for _, fields in fitting] for name, place in found.items()}
    rows = np.array([row for row, _ in fitting], dtype=np.int64)
    return RawTable(cells=pd.DataFrame(cells, dtype=str), rows=rows, headings=headings, faults=tuple(faults))
