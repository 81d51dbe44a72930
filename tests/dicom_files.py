"""Synthetic DICOM files, written by pydicom: what a test changes is what it is about."""

import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    RLELossless,
)

LOSSLESS_JPEG = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")


def dataset_of(values: npt.NDArray[Any], *, bits: int | None = None, **elements: object) -> Dataset:
    """A chest radiograph of the values; ``keyword=None`` leaves an element out."""
    dataset = Dataset()
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    dataset["PixelData"].VR = "OW" if values.dtype.itemsize == 2 else "OB"
    return dataset


def file_of(dataset: Dataset, *, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The bytes of a file in a transfer syntax; JPEG 2000, JPEG-LS and RLE come from pydicom's plugins."""
    uid = UID(syntax)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if uid.is_encapsulated else uid
    if uid == ExplicitVRBigEndian and dataset.BitsAllocated == 16:
        dataset.PixelData = np.frombuffer(dataset.PixelData, dtype="<u2").byteswap().tobytes()
    if uid in LOSSLESS_JPEG:
        kind = f"<{'i' if dataset.PixelRepresentation else 'u'}{dataset.BitsAllocated // 8}"
        values = np.frombuffer(dataset.PixelData, dtype=kind, count=dataset.Rows * dataset.Columns)
        frame = lossless_jpeg(values.reshape(dataset.Rows, dataset.Columns), bits=dataset.BitsStored)
        encapsulate(dataset, [frame], syntax=uid)
    elif uid.is_encapsulated:
        plugin = "pydicom" if uid == RLELossless else ""  # GDCM aborts the process on odd sizes
        dataset.compress(uid, encoding_plugin=plugin, generate_instance_uid=False)
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def encapsulate(dataset: Dataset, fragments: list[bytes], *, syntax: str) -> None:
    """Puts compressed pixel data into a data set, each fragment as it is."""
    from pydicom.encaps import encapsulate

    dataset.PixelData = encapsulate(fragments, has_bot=False)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID(syntax)


def lossless_jpeg(values: npt.NDArray[Any], *, bits: int, predictor: int = 1) -> bytes:
    """A lossless JPEG (ITU-T T.81 annex H): differences to neighbours, each after five bits for its number of bits."""
    height, width = values.shape
    patterns = [[int(value) & ((1 << bits) - 1) for value in row] for row in values]
    stream: list[str] = []
    for y, row in enumerate(patterns):
        for x, value in enumerate(row):
            if x and y:
                left, above, corner = row[x - 1], patterns[y - 1][x], patterns[y - 1][x - 1]
                sums = (
                    left + above - corner,
                    left + (above - corner >> 1),
                    above + (left - corner >> 1),
                    left + above >> 1,
                )
                guess = (left, above, corner, *sums)[predictor - 1]
            else:
                guess = row[x - 1] if x else patterns[y - 1][x] if y else 1 << (bits - 1)
            difference = (value - guess + 32_768) % 65_536 - 32_768
            size = abs(difference).bit_length()
            extra = difference if difference >= 0 else difference + (1 << size) - 1
            stream.append(f"{size:05b}" + (f"{extra:0{size}b}" if 0 < size < 16 else ""))
    coded = "".join(stream)
    coded += "1" * (-len(coded) % 8)
    body = int(coded, 2).to_bytes(len(coded) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = b"\xff\xc3" + struct.pack(">HBHHBBBB", 11, bits, height, width, 1, 1, 0x11, 0)
    table = b"\xff\xc4" + struct.pack(">HB", 36, 0) + bytes([0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, predictor, 0, 0)
    return b"\xff\xd8" + frame + table + scan + body + b"\xff\xd9"
