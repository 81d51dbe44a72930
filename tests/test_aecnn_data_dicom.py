"""DICOM against the real files, the standard's formulas written out pixel by pixel, and pydicom's own samples."""

import io
import math
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from aecnn.config import FilesConfig
from aecnn.data.dicom.lossless_jpeg import decode_lossless_jpeg
from aecnn.data.images import Radiograph, decode_radiograph, open_content, verify_radiograph
from aecnn.errors import ImageError
from dicom_files import LOSSLESS_JPEG, dataset_of, encapsulate, file_of, lossless_jpeg

Values = npt.NDArray[np.int64]
PATH = Path("x.dcm")
SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, *LOSSLESS_JPEG, JPEGLSLossless, JPEG2000Lossless)
KINDS = [("u1", 8), ("u1", 7), ("i1", 8), ("<u2", 10), ("<u2", 12), ("<u2", 16), ("<i2", 12), ("<i2", 16)]


def opened(dataset: Dataset, **options: object) -> Radiograph:
    return open_content(file_of(dataset, **options), PATH)


def values_of(kind: str, bits: int, *, shape: tuple[int, int] = (33, 47)) -> npt.NDArray[np.generic]:
    dtype = np.dtype(kind)
    low = -(1 << (bits - 1)) if dtype.kind == "i" else 0
    return np.random.default_rng(bits).integers(low, low + (1 << bits), size=shape).astype(dtype)


def lut_item(first: int, bits: int, entries: Sequence[int], *, vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(entries), first, bits])
    item.add_new("LUTData", "US", list(entries))
    return item


def test_the_real_files_are_their_pngs_and_the_others_are_refused(real_data: Path) -> None:
    folder = real_data / "nih_dicom"
    for number, name in ((1, "00000002_000"), (2, "00000001_000"), (3, "00000061_002")):
        path = folder / f"test{number}.dcm"
        verify_radiograph(path)
        with Image.open(folder / "png" / f"{name}.png") as picture:
            assert np.array_equal(decode_radiograph(path, size_px=1024), np.asarray(picture.convert("L")))
    for number, reason in (
        (4, r"BodyPartExamined \(0018,0015\) is 'RIBCAGE', data.files.dicom_body_parts accepts CHEST, PORT CHEST"),
        (5, r"Modality \(0008,0060\) is 'CT', data.files.dicom_modalities accepts CR, DX, RG"),
        (6, r"PatientPosition \(0018,5100\) is 'XX', data.files.dicom_views accepts PA, AP"),
    ):
        for refuse in (verify_radiograph, lambda path: decode_radiograph(path, size_px=64)):
            with pytest.raises(ImageError, match=rf"test{number}\.dcm: {reason}"):
                refuse(folder / f"test{number}.dcm")


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_without_a_window_the_declared_range_is_the_range_of_grey(kind: str, bits: int) -> None:
    values = values_of(kind, bits)
    found = opened(dataset_of(values, bits=bits))
    low = -(1 << (bits - 1)) if values.dtype.kind == "i" else 0
    expected = (values.astype(int) - low) * 256 // (1 << bits) if bits >= 8 else values.astype(int) * 255 // 127
    assert np.array_equal(found.grey, expected)
    assert (found.format, found.mode, found.bits, found.bits_used) == ("DICOM", "MONOCHROME2", bits, bits)


def test_sixteen_declared_bits_of_which_twelve_are_used_are_told() -> None:
    assert opened(dataset_of(np.array([[0, 4095]], dtype="<u2"))).bits_used == 12


def test_monochrome1_is_inverted() -> None:
    values = values_of("<u2", 12)
    light, dark = (
        opened(dataset_of(values, bits=12, PhotometricInterpretation=kind)).grey
        for kind in ("MONOCHROME2", "MONOCHROME1")
    )
    assert np.array_equal(dark, 255 - light)
    inverse = dataset_of(values, bits=12, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    assert np.array_equal(opened(inverse).grey, dark)  # the same thing said twice


def through_window(x: float, centre: float, width: float, function: str) -> float:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.2 and C.11.2.1.3.1, for an output from 0 to 255."""
    if function == "SIGMOID":
        return 255 / (1 + math.exp(min(-4 * (x - centre) / width, 700)))
    if function == "LINEAR_EXACT":
        if x <= centre - width / 2:
            return 0.0
        return 255.0 if x > centre + width / 2 else ((x - centre) / width + 0.5) * 255
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    return 255.0 if x > centre - 0.5 + (width - 1) / 2 else ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (1800, 900), (100.5, 1), (2000, 2), (-300, 700.25)])
@pytest.mark.parametrize("rescale", [None, (0.5, -1000.0), (-2.0, 4095.0)])
def test_windows_follow_the_standards_formulas(
    function: str | None, centre: float, width: float, rescale: tuple[float, float] | None
) -> None:
    values = np.append(np.arange(0, 4096, 5), [99, 100, 101, 1999, 2000, 2001]).astype("<u2").reshape(1, -1)
    dataset = dataset_of(values, bits=12, WindowCenter=[centre, 7], WindowWidth=[width, 9])  # the first counts
    if function:
        dataset.VOILUTFunction = function
    slope, intercept = rescale or (1.0, 0.0)
    if rescale:
        dataset.RescaleSlope, dataset.RescaleIntercept = rescale
    expected = [
        through_window(slope * value + intercept, centre, width, function or "LINEAR") for value in values[0].tolist()
    ]
    assert np.abs(opened(dataset).grey[0] - np.array(expected)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(("bits", "first"), [(8, 0), (12, 700), (16, 3000), (10, -50)])
def test_a_voi_lut_goes_before_a_window(bits: int, first: int, syntax: str | None) -> None:
    kind = "<i2" if first < 0 else "<u2"
    values = values_of(kind, 12)
    entries = np.random.default_rng(3).integers(0, 1 << bits, size=900).tolist()
    dataset = dataset_of(values, bits=12, WindowCenter=40, WindowWidth=400)
    dataset.VOILUTSequence = [lut_item(first, bits, entries, vr="SS" if first < 0 else "US"), lut_item(0, 8, [1, 2])]
    found = opened(dataset, **({"syntax": syntax} if syntax else {})).grey
    for value, grey in zip(values.ravel().tolist(), found.ravel().tolist(), strict=True):
        assert grey == entries[min(max(value - first, 0), 899)] >> (bits - 8)


def test_a_modality_lut_comes_before_the_window() -> None:
    entries = [4095 - 4 * index for index in range(1024)]
    values = values_of("<u2", 10)
    dataset = dataset_of(values, bits=10, WindowCenter=2000, WindowWidth=1000, RescaleSlope=9, RescaleIntercept=9)
    dataset.ModalityLUTSequence = [lut_item(0, 12, entries)]
    expected = [through_window(entries[value], 2000, 1000, "LINEAR") for value in values.ravel().tolist()]
    assert np.abs(opened(dataset).grey.ravel() - np.array(expected)).max() <= 0.5 + 1e-9
    del dataset.WindowCenter, dataset.WindowWidth
    assert np.array_equal(opened(dataset).grey, np.array(entries)[values] >> 4)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("kind", "vr", "padding", "limit", "black"),
    [
        ("<u2", "US", 0, None, [0]),
        ("<u2", "US", 65_535, None, [65_535]),  # above the twelve stored bits
        ("<u2", "US", 100, 103, [100, 101, 102, 103]),
        ("<u2", "US", 103, 100, [100, 101, 102, 103]),
        ("<i2", "SS", -2000, None, [-2000]),
        ("<i2", "US", 65_536 - 2000, None, [-2000]),  # a signed picture, and a writer that does not mind
    ],
)
def test_padding_becomes_black(
    photometric: str, kind: str, vr: str, padding: int, limit: int | None, black: list[int]
) -> None:
    values = np.array([[*black, 104, 1500, 2047, 99, 1]], dtype=kind)
    dataset = dataset_of(values, bits=12, PhotometricInterpretation=photometric)
    plain = opened(dataset).grey
    dataset.add_new("PixelPaddingValue", vr, padding)
    if limit is not None:
        dataset.add_new("PixelPaddingRangeLimit", vr, limit)
    found = opened(dataset).grey
    assert (found[0, : len(black)] == 0).all()
    assert np.array_equal(found[0, len(black) :], plain[0, len(black) :])


@pytest.mark.parametrize("row", "LRHF")
@pytest.mark.parametrize("column", "LRHF")
def test_pictures_end_with_the_patients_left_on_the_right_and_the_feet_below(row: str, column: str) -> None:
    upright = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)  # [to the feet, to the left]
    sizes = {"L": 4, "R": 4, "F": 3, "H": 3}
    stored = np.zeros((sizes[column], sizes[row]), dtype=np.uint8)
    is_frontal = {row, column} & {"L", "R"} and {row, column} & {"F", "H"}
    for y in range(stored.shape[0]):
        for x in range(stored.shape[1]):
            place = {"F": 0, "L": 0}
            for direction, step in ((row, x), (column, y)):
                axis = "L" if direction in "LR" else "F"
                place[axis] = step if direction == axis else sizes[axis] - 1 - step
            stored[y, x] = upright[place["F"], place["L"]]
    found = opened(dataset_of(stored, PatientOrientation=[row, column])).grey
    assert np.array_equal(found, upright if is_frontal else stored)
    assert found.flags.c_contiguous


@pytest.mark.parametrize("orientation", [None, [], ["R"], ["P", "F"], ["L", "F", "X"]])
def test_other_orientations_leave_the_picture_as_it_is(orientation: list[str] | None) -> None:
    values = values_of("u1", 8)
    dataset = dataset_of(values)
    if orientation is not None:
        dataset.PatientOrientation = orientation
    assert np.array_equal(opened(dataset).grey, values)
    oblique = dataset_of(values, PatientOrientation=["RP", "FA"])
    assert np.array_equal(opened(oblique).grey, values[:, ::-1])


@pytest.mark.parametrize(("kind", "bits"), KINDS)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_transfer_syntax_gives_the_same_pixels(syntax: str, kind: str, bits: int) -> None:
    if syntax == JPEGLSLossless and bits == 7:
        pytest.skip("pydicom encodes no JPEG-LS of 7 bits")
    values = values_of(kind, bits)
    assert np.array_equal(
        opened(dataset_of(values, bits=bits), syntax=syntax).grey, opened(dataset_of(values, bits=bits)).grey
    )


def test_pydicoms_samples_agree_in_all_their_encodings() -> None:
    files = FilesConfig(dicom_modalities=("mr",))
    names = ["", "_implicit", "_bigendian", "_expb", "_padded", "_RLE", "_jp2klossless", "_jpeg_ls_lossless"]
    paths = [Path(str(get_testdata_file(f"MR_small{name}.dcm", download=False))) for name in names]
    pictures = [open_content(path.read_bytes(), path, files=files).grey for path in paths]
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
    dataset = pydicom.dcmread(paths[0])
    expected = pydicom.pixels.apply_windowing(dataset.pixel_array, dataset)  # to the range of signed 16 bits
    assert np.abs(pictures[0] - (expected + 32_768) / 65_535 * 255).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("bits", [2, 7, 8, 12, 16])
@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (23, 31)])
def test_lossless_jpegs_of_all_predictors_come_back(bits: int, predictor: int, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, size=shape)
    assert np.array_equal(decode_lossless_jpeg(lossless_jpeg(values, bits=bits, predictor=predictor)), values)


def test_lossless_jpegs_with_the_largest_difference_and_with_many_pieces_come_back() -> None:
    largest = np.array([[0, 32_768, 0], [65_535, 32_767, 1]])
    assert np.array_equal(decode_lossless_jpeg(lossless_jpeg(largest, bits=16)), largest)
    large = np.random.default_rng(4).integers(0, 65_536, size=(600, 700))  # over 2 × 2¹⁹ bytes
    assert np.array_equal(decode_lossless_jpeg(lossless_jpeg(large, bits=16)), large)


def test_lossless_jpegs_that_restart_come_back() -> None:
    values = np.random.default_rng(5).integers(0, 4096, size=(10, 7))
    strips = [lossless_jpeg(values[top : top + 4], bits=12) for top in (0, 4, 8)]
    head, _, first = strips[0].partition(b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00")
    bodies = [first[:-2], *(strip.partition(b"\xff\xda")[2][8:-2] for strip in strips[1:])]
    head = (
        head.replace(struct.pack(">HH", 4, 7), struct.pack(">HH", 10, 7)) + b"\xff\xdd\x00\x04" + struct.pack(">H", 28)
    )
    coded = bodies[0] + b"\xff\xd0" + bodies[1] + b"\xff\xd1" + bodies[2]
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00"
    assert np.array_equal(decode_lossless_jpeg(head + scan + coded + b"\xff\xd9"), values)


def test_gdcm_reads_our_lossless_jpegs_as_we_do() -> None:
    decoder = pydicom.pixels.get_decoder(JPEGLosslessSV1)
    if "gdcm" not in decoder.available_plugins:
        pytest.skip("GDCM is not installed: the extra dicom does not need it")
    for kind, bits in (("u1", 8), ("<u2", 12), ("<u2", 16)):
        dataset = dataset_of(values_of(kind, bits), bits=bits)
        file_of(dataset, syntax=JPEGLosslessSV1)
        assert np.array_equal(decoder.as_array(dataset, decoding_plugin="gdcm")[0], values_of(kind, bits))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Modality": "MR"}, r"Modality \(0008,0060\) is 'MR', data.files.dicom_modalities accepts CR, DX, RG"),
        ({"Modality": None}, r"Modality \(0008,0060\) is 'absent', data.files"),
        (
            {"BodyPartExamined": "HAND"},
            r"BodyPartExamined \(0018,0015\) is 'HAND', data.files.dicom_body_parts accepts",
        ),
        ({"ViewPosition": "LL"}, r"ViewPosition \(0018,5101\) is 'LL', data.files.dicom_views accepts PA, AP"),
        (
            {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3},
            "is 'RGB' with 3 samples a pixel, accepted is grey",
        ),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is 'PALETTE COLOR' with 1 samples"),
        ({"NumberOfFrames": 2}, r"NumberOfFrames \(0028,0008\) is 2, accepted is 1"),
        ({"Rows": 0}, "has 47 × 0 pixels, accepted are 1 to 8192 a side"),
        ({"Columns": 60_000}, "has 60000 × 33 pixels"),
        ({"Rows": 34}, "has 1552 bytes of pixels, Rows × Columns need 1598"),
        ({"BitsAllocated": 32}, "has BitsAllocated 32, BitsStored 8"),
        ({"BitsStored": 9}, "BitsStored 9"),
        ({"HighBit": 6}, "HighBit 6"),
        ({"PresentationLUTShape": "INVERSE"}, r"MONOCHROME2 contradicts PresentationLUTShape \(2050,0020\) 'INVERSE'"),
        ({"WindowCenter": 5, "WindowWidth": 0}, r"WindowWidth \(0028,1051\) is 0, which LINEAR does not allow"),
        (
            {"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "LOG"},
            r"VOILUTFunction \(0028,1056\) is 'LOG', known",
        ),
    ],
)
def test_what_is_no_frontal_grey_chest_radiograph_is_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(file_of(dataset_of(values_of("u1", 8), **changes)))
    for refuse in (verify_radiograph, lambda file: decode_radiograph(file, size_px=8)):
        with pytest.raises(ImageError, match=rf"a\.dcm: .*{reason}"):
            refuse(path)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ImageError, match=r"Modality.*; BodyPartExamined.*; ViewPosition.*; NumberOfFrames"):
        opened(dataset_of(values_of("u1", 8), Modality="MR", BodyPartExamined="X", ViewPosition="Y", NumberOfFrames=3))


@pytest.mark.parametrize(
    "changes",
    [
        {"BodyPartExamined": None, "ViewPosition": None},
        {"BodyPartExamined": "", "ViewPosition": ""},
        {"ViewPosition": None, "PatientPosition": "HFS"},
        {"ViewPosition": None, "PatientPosition": "FFDL"},
        {"ViewPosition": None, "PatientPosition": "AP"},
        {"ViewPosition": "PA", "PatientPosition": "XX"},
        {"NumberOfFrames": 1, "PresentationLUTShape": "IDENTITY", "PixelRepresentation": None, "HighBit": None},
    ],
)
def test_what_is_absent_or_says_nothing_of_the_view_passes(changes: dict[str, object]) -> None:
    assert opened(dataset_of(values_of("u1", 8), **changes)).grey.shape == (33, 47)


def test_the_accepted_values_are_configured_in_any_case() -> None:
    files = FilesConfig(dicom_modalities=("mr",), dicom_body_parts=("Thorax",), dicom_views=("ll",))
    dataset = dataset_of(values_of("u1", 8), Modality="MR", BodyPartExamined="THORAX", ViewPosition="LL")
    assert open_content(file_of(dataset), PATH, files=files).bits == 8
    assert open_content(file_of(dataset).replace(b"THORAX", b"thorax"), PATH, files=files).bits == 8


def test_float_pixels_and_no_pixels_are_refused() -> None:
    dataset = dataset_of(values_of("u1", 8))
    del dataset.PixelData
    with pytest.raises(ImageError, match=r"x\.dcm: has no pixel data"):
        opened(dataset)
    dataset.FloatPixelData = b"\0" * 4 * 33 * 47
    with pytest.raises(ImageError, match=r"x\.dcm: has float pixels"):
        opened(dataset)


def test_transfer_syntaxes_that_are_not_read_are_refused() -> None:
    dataset = dataset_of(values_of("u1", 8))
    with pytest.raises(ImageError, match="' is deflated: convert it to Explicit VR Little Endian"):
        opened(dataset, syntax=DeflatedExplicitVRLittleEndian)
    with pytest.raises(ImageError, match=r"1\.2\.840\.10008\.1\.2\.9' is not read here"):
        open_content(file_of(dataset).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"), PATH)
    with pytest.raises(ImageError, match="neither PNG, JPEG nor DICOM with DICM at byte 128"):
        open_content(file_of(dataset)[132:], PATH)
    twelve = dataset_of(values_of("<u2", 12), bits=12)
    file_of(twelve)
    frame = lossless_jpeg(values_of("<u2", 12), bits=12).replace(b"\xff\xc3", b"\xff\xc1")
    encapsulate(twelve, [frame], syntax=JPEGExtended12Bit)
    with pytest.raises(ImageError, match="is JPEG Extended of 12 bits, of which only 8 are read"):
        open_content(written(twelve), PATH)


def written(dataset: Dataset) -> bytes:
    """The bytes of a data set whose pixels are already compressed."""
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_a_compressed_picture_of_another_size_is_refused_before_it_is_decoded(syntax: str, tmp_path: Path) -> None:
    dataset = dataset_of(values_of("u1", 8))
    file_of(dataset, syntax=syntax)
    dataset.Rows, dataset.Columns = 30, 40
    (tmp_path / "a.dcm").write_bytes(written(dataset))
    with pytest.raises(
        ImageError, match="compressed picture has 47 × 33 pixels of 1 channels, its header says 40 × 30"
    ):
        verify_radiograph(tmp_path / "a.dcm")


WITH_PRECISION = (*LOSSLESS_JPEG, JPEGLSLossless, JPEG2000Lossless)


def contradicting(values: npt.NDArray[np.generic], *, syntax: str, frame_bits: int, **header: object) -> bytes:
    """A file whose compressed picture has another precision than its header says."""
    dataset = dataset_of(values, bits=frame_bits)
    file_of(dataset, syntax=syntax)
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    dataset.HighBit = dataset.BitsStored - 1
    return written(dataset)


@pytest.mark.parametrize("syntax", WITH_PRECISION)
def test_a_compressed_picture_of_more_bits_than_are_allocated_is_refused(syntax: str, tmp_path: Path) -> None:
    content = contradicting(values_of("<u2", 12), syntax=syntax, frame_bits=12, BitsAllocated=8, BitsStored=8)
    (tmp_path / "a.dcm").write_bytes(content)
    for refuse in (verify_radiograph, lambda path: decode_radiograph(path, size_px=8)):
        with pytest.raises(
            ImageError, match="picture has values of 12 bits, its header says BitsAllocated 8 and BitsSt"
        ):
            refuse(tmp_path / "a.dcm")


@pytest.mark.parametrize("kind", ["<u2", "<i2"])
@pytest.mark.parametrize("syntax", WITH_PRECISION)
def test_a_compressed_picture_of_more_bits_than_are_stored_is_read_where_its_values_fit(syntax: str, kind: str) -> None:
    values = values_of(kind, 12)
    low, high = (-2048, 2047) if kind == "<i2" else (0, 4095)
    values[0, :2] = low, high
    expected = opened(dataset_of(values, bits=12)).grey
    found = open_content(contradicting(values, syntax=syntax, frame_bits=16, BitsStored=12), PATH)
    assert np.array_equal(found.grey, expected)
    for beyond in (low - 1, high + 1) if low else (high + 1, 65_535):
        values[3, 4] = beyond
        content = contradicting(values, syntax=syntax, frame_bits=16, BitsStored=12)
        with pytest.raises(
            ImageError, match=r"of 16 bits, .* and BitsStored 12, and 1 of the (un)?signed values do not"
        ):
            open_content(content, PATH)
        padded = contradicting(values, syntax=syntax, frame_bits=16, BitsStored=12, PixelPaddingValue=beyond)
        assert open_content(padded, PATH).grey[3, 4] == 0


@pytest.mark.parametrize("syntax", WITH_PRECISION)
def test_a_compressed_picture_of_fewer_bits_is_read_where_signs_are_known(syntax: str) -> None:
    values = values_of("<u2", 12)
    found = open_content(contradicting(values, syntax=syntax, frame_bits=12, BitsStored=16), PATH)
    assert np.array_equal(found.grey, values >> 8)
    signed = values_of("<u2", 11).astype("<i2")
    found = open_content(contradicting(signed, syntax=syntax, frame_bits=12, BitsStored=16), PATH)
    assert np.array_equal(found.grey, (signed.astype(int) + 32_768) >> 8)
    signed[3, 4] = -5  # or 4091
    content = contradicting(signed, syntax=syntax, frame_bits=12, BitsStored=16)
    if syntax == JPEG2000Lossless:  # which says whether its values are signed
        assert open_content(content, PATH).grey[3, 4] == 127
    else:
        with pytest.raises(ImageError, match=r"of 12 bits, .* BitsStored 16, and 1 of the signed values do not fit"):
            open_content(content, PATH)


def test_a_lossless_jpeg_with_a_frame_of_another_kind_is_refused() -> None:
    values = np.zeros((4, 4), dtype=np.uint16)
    frame, other = lossless_jpeg(values, bits=12), struct.pack(">HBHHBBBB", 11, 8, 2, 2, 1, 1, 0x11, 0)
    with pytest.raises(ValueError, match="is a JPEG of another kind"):
        decode_lossless_jpeg(frame[:2] + b"\xff\xc1" + other + frame[2:])


def test_a_picture_in_several_fragments_is_put_together() -> None:
    values = values_of("<u2", 12)
    frame = lossless_jpeg(values, bits=12)
    dataset = dataset_of(values, bits=12)
    file_of(dataset)
    whole = opened(dataset_of(values, bits=12)).grey
    encapsulate(dataset, [frame], syntax=JPEGLosslessSV1)
    one = written(dataset)
    cut = len(frame) // 4 * 2
    pieces = [frame[:cut], frame[cut:] + b"\0" * (len(frame) % 2)]
    items = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(piece)) + piece for piece in pieces)
    place = one.rfind(b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff") + 12
    several = one[:place] + b"\xfe\xff\x00\xe0\0\0\0\0" + items + b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert np.array_equal(open_content(several, PATH).grey, whole)


def test_sloppy_files_are_read_in_silence(tmp_path: Path) -> None:
    dataset = dataset_of(np.zeros((5, 6), dtype="<u2"), WindowCenter=10, WindowWidth=100)
    dataset.PatientName = "A" * 60
    content = file_of(dataset)
    charset = b"\x08\x00\x05\x00CS\x08\x00LATIN-99"
    content = content.replace(b"\x08\x00\x16\x00UI", charset + b"\x08\x00\x16\x00UI", 1)
    (tmp_path / "charset.dcm").write_bytes(content)
    (tmp_path / "explicit.dcm").write_bytes(  # its header says implicit
        file_of(dataset).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0")
    )
    broken = bytearray(file_of(dataset_of(values_of("<u2", 12), bits=12), syntax=JPEG2000Lossless))
    broken = broken.replace(b"\xff\x52", b"\0\0")  # where its coding style should be
    (tmp_path / "broken.dcm").write_bytes(broken)
    script = (
        "import sys, logging; from pathlib import Path; from aecnn.data.images import decode_radiograph\n"
        "from aecnn.errors import ImageError\n"
        "for name in sys.argv[1:]:\n"
        "    try: decode_radiograph(Path(name), size_px=8)\n"
        "    except ImageError as error: print(error)\n"
    )
    names = [str(path) for path in sorted(tmp_path.iterdir())]
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", script, *names], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == [str(tmp_path / "broken.dcm")]


def test_without_pydicom_the_extra_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(file_of(dataset_of(values_of("u1", 8))))
    script = (
        "import sys; sys.modules['pydicom'] = None; from pathlib import Path\n"
        "from aecnn.data.images import verify_radiograph\n"
        "try: verify_radiograph(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"ImageError {path}: is DICOM, which needs an extra: pip install 'aecnn-federated[dicom]'\n"


def test_importing_brings_in_neither_pydicom_nor_torch() -> None:
    script = "import sys, aecnn.data.images; print({'pydicom', 'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
