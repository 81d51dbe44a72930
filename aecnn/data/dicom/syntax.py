"""Which transfer syntaxes are read, each by one codec, so that all hospitals get the same pixels."""

from pathlib import Path

from aecnn.errors import ImageError

NATIVE = {
    "1.2.840.10008.1.2": "Implicit VR Little Endian",
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian",
}
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
EXTENDED_JPEG = "1.2.840.10008.1.2.4.51"
LOSSLESS_JPEG = {
    "1.2.840.10008.1.2.4.57": "any predictor",
    "1.2.840.10008.1.2.4.70": "predictor 1",
}
JPEG = {  # and JPEG-LS, which has the same markers: syntax → pydicom's name of the codec
    "1.2.840.10008.1.2.4.50": "pillow",  # baseline
    EXTENDED_JPEG: "pillow",  # of 8 bits
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",  # near-lossless
}
JPEG_2000 = {
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # lossless
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",  # high-throughput, lossless
    "1.2.840.10008.1.2.4.202": "pylibjpeg",  # the same, by resolution
    "1.2.840.10008.1.2.4.203": "pylibjpeg",  # high-throughput
}
_DEFLATED = "1.2.840.10008.1.2.1.99"


def require_syntax(syntax: str, path: Path) -> None:
    """Checks that a transfer syntax is one that is read.

    Raises:
        ImageError: It is not. Deflated files are left out because a small one can unpack to any size.
    """
    if syntax not in {*NATIVE, RLE, *LOSSLESS_JPEG, *JPEG, *JPEG_2000}:
        name = "deflated" if syntax == _DEFLATED else "not read here"
        raise ImageError(
            f"{path}: its transfer syntax {syntax[:64]!r} is {name}: convert it to Explicit VR Little Endian"
        )
