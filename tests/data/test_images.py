import contextlib
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mde.data.images import read_depth, read_image, read_pair
from mde.errors import MdeError
from tests.data.conftest import save_depth, save_image


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A file of these chunks, with their checksums."""
    whole = b"\x89PNG\r\n\x1a\n"
    for kind, content in (*chunks, (b"IEND", b"")):
        whole += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return whole


def header(width: int, height: int, bits: int, kind: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)


def colour_16_bits(pixels: np.ndarray) -> bytes:
    """uint16 (H, W, 3) as PNG, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png(header(pixels.shape[1], pixels.shape[0], 16, 2), (b"IDAT", zlib.compress(rows)))


def npy(shape: tuple[int, ...], content: bytes = b"", dtype: str = "<f4", version: bytes = b"\1\0") -> bytes:
    """A file that declares `shape` and holds `content`."""
    text = str({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\1\0" else "<I", len(text)) + text + content


# Colour


def test_a_colour_image_is_read_exactly(tmp_path):
    pixels = save_image(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_8_bit_mode_becomes_the_rgb_that_was_saved(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (3, 2, 3)
    assert (image == 255).all()


def test_16_bit_grey_keeps_its_upper_byte(tmp_path):
    save_depth(tmp_path / "a.png", np.array([[0, 255, 256, 65535]]))
    assert read_image(tmp_path / "a.png")[:, 0].tolist() == [[0, 0, 1, 255]] * 3


@pytest.mark.parametrize("bits", [1, 8, 10, 12, 14, 16])
def test_of_16_bit_grey_the_bits_in_use_count(tmp_path, bits):
    grey = np.random.default_rng(0).integers(0, 256, (24, 32))
    grey[0, 0] = 255
    save_depth(tmp_path / "a.png", grey << (bits - 8) if bits > 8 else grey >> (8 - bits))
    assert (read_image(tmp_path / "a.png").numpy() == (grey if bits >= 8 else grey >> (8 - bits))).all()


def test_16_bit_grey_is_turned_as_other_pictures_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.array([[0, 65535, 0]], dtype=np.uint16)).save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png")[0].tolist() == [[0], [255], [0]]


def test_16_bit_colour_keeps_its_upper_byte_unless_that_is_almost_black(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 1024, (4, 5, 3))
    (tmp_path / "dark.png").write_bytes(colour_16_bits(pixels))
    with pytest.raises(MdeError, match=r"dark\.png: 16-bit colour, only the lowest 1\.6% of its range is used"):
        read_image(tmp_path / "dark.png")
    (tmp_path / "full.png").write_bytes(colour_16_bits(pixels * 64))
    assert (read_image(tmp_path / "full.png").permute(1, 2, 0).numpy() == pixels // 4).all()


def test_exif_orientation_turns_the_image_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 4, 2)
    assert image[0].nonzero().tolist() == [[0, 1]]  # top left went to top right


@pytest.mark.parametrize("block", [b"\0\x08\0\2\1\x12\0\3", b"", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_an_exif_block_that_cannot_be_read_turns_nothing(tmp_path, block):
    grey = bytes(range(12))
    rows = b"".join(b"\0" + grey[i : i + 4] for i in (0, 4, 8))
    (tmp_path / "a.png").write_bytes(png(header(4, 3, 8, 0), (b"eXIf", block), (b"IDAT", zlib.compress(rows))))
    assert read_image(tmp_path / "a.png")[1].flatten().tolist() == list(grey)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_truncated_image_is_an_error_that_names_the_file(tmp_path, suffix, keep):
    path = tmp_path / f"cut.{suffix}"
    save_image(path, (64, 64))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(MdeError, match=f"cut.{suffix}"):
        read_image(path)


def test_a_damaged_chunk_is_an_error_that_names_the_file(tmp_path):
    save_depth(tmp_path / "bad.png", np.random.default_rng(0).integers(0, 65536, (32, 32)))
    data = bytearray((tmp_path / "bad.png").read_bytes())
    data[60:70] = bytes(10)
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(MdeError, match=r"bad\.png"):
        read_depth(tmp_path / "bad.png", 0.001)


@pytest.mark.parametrize("reader", [read_image, lambda path: read_depth(path, 0.001)])
def test_a_missing_file_is_an_error(tmp_path, reader):
    with pytest.raises(MdeError, match=r"nowhere\.png.*no such"):
        reader(tmp_path / "nowhere.png")


# Depth


def test_depth_is_counts_times_unit(tmp_path):
    counts = np.array([[0, 1, 4000], [65535, 256, 40000]])
    save_depth(tmp_path / "d.png", counts)
    depth = read_depth(tmp_path / "d.png", 0.00025)
    assert depth.dtype == torch.float32
    np.testing.assert_allclose(depth[0].numpy(), counts * 0.00025, rtol=1e-6)


@pytest.mark.parametrize(("mode", "reason"), [("L", "preview"), ("P", "preview"), ("RGB", "not depth")])
def test_8_bit_and_colour_images_are_refused_as_depth(tmp_path, mode, reason):
    Image.new(mode, (4, 4)).save(tmp_path / "d.png")
    with pytest.raises(MdeError, match=rf"d\.png.*{reason}"):
        read_depth(tmp_path / "d.png", 0.001)


def test_npy_depth_is_metres_with_sky_and_without_nan(tmp_path):
    np.save(tmp_path / "d.npy", np.array([[np.nan, -1.0, 0.0], [2.5, np.inf, -np.inf]]))
    assert read_depth(tmp_path / "d.npy", 0.001).tolist() == [[[0, 0, 0], [2.5, float("inf"), 0]]]


@pytest.mark.parametrize("array", [np.ones((2, 2), dtype=np.uint16), np.ones((2, 2, 3))])
def test_npy_that_is_not_metres_is_refused(tmp_path, array):
    np.save(tmp_path / "d.npy", array)
    with pytest.raises(MdeError, match=r"d\.npy"):
        read_depth(tmp_path / "d.npy", 0.001)


def test_npy_is_npy_in_capitals_too(tmp_path):
    with open(tmp_path / "d.NPY", "wb") as file:
        np.save(file, np.full((2, 3), 1.5, ">f8"))
    assert read_depth(tmp_path / "d.NPY", 0.001).tolist() == [[[1.5] * 3] * 2]


@pytest.mark.parametrize("version", [b"\1\0", b"\2\0"])
@pytest.mark.parametrize("shape", [(1 << 20, 1 << 20), (1 << 40, 1 << 40), (2, 3)])
def test_an_array_that_its_file_does_not_hold_takes_no_memory(tmp_path, monkeypatch, shape, version):
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("opened"))
    (tmp_path / "d.npy").write_bytes(npy(shape, bytes(20), version=version))
    with pytest.raises(
        MdeError, match=r"d\.npy: damaged depth file \(\d+ bytes of pixels by its header, 20 in the file"
    ):
        read_depth(tmp_path / "d.npy", 0.001)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4" + bytes(60),
        npy((2, 2), bytes(16), dtype="|O"),
        npy((2, 2), bytes(16), version=b"\7\0"),
        npy((-2, -2), bytes(16)),
        npy((), bytes(16)),
        b"\x93NUMPY\1\0\4\0{(((",
    ],
)
def test_what_is_called_npy_and_is_not_is_one_line(tmp_path, content):
    (tmp_path / "d.npy").write_bytes(content)
    with pytest.raises(MdeError, match=r"d\.npy") as caught:
        read_depth(tmp_path / "d.npy", 0.001)
    assert "\n" not in str(caught.value)


# Both


def test_a_pair_is_as_it_is_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "c.png", exif=exif)
    save_depth(tmp_path / "d.png", np.arange(24).reshape(6, 4))
    image, depth = read_pair(tmp_path / "c.png", tmp_path / "d.png", 1.0)
    assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(pixels))
    assert depth[0].tolist() == np.arange(24).reshape(6, 4).tolist()
    assert torch.equal(read_image(tmp_path / "c.png"), image.flip(1, 2))


def test_one_changed_byte_of_a_png_is_an_error(tmp_path):
    path = tmp_path / "d.png"
    save_depth(path, np.random.default_rng(0).integers(0, 5000, (9, 11)))
    content, random = path.read_bytes(), np.random.default_rng(1)
    for at in range(len(content)):
        mutant = bytearray(content)
        mutant[at] ^= int(random.integers(1, 256))
        path.write_bytes(mutant)
        for read in (read_image, lambda path: read_depth(path, 0.001)):
            with pytest.raises(MdeError, match=r"^.*d\.png: damaged .*$"):  # a dot is no new line
                read(path)


@pytest.mark.parametrize("suffix", ["jpg", "bmp", "tif", "webp"])
def test_a_changed_byte_of_another_picture_gives_pixels_or_our_error(tmp_path, suffix):
    path = tmp_path / f"c.{suffix}"
    save_image(path, (16, 16))
    content, random = path.read_bytes(), np.random.default_rng(2)
    for at in random.integers(0, min(len(content), 700), 100):
        mutant = bytearray(content)
        mutant[at] ^= int(random.integers(1, 256))
        path.write_bytes(mutant)
        with contextlib.suppress(MdeError):  # these kinds have no checksums
            assert read_image(path).shape[0] == 3


def test_a_picture_of_too_many_pixels_is_not_called_damaged(tmp_path, monkeypatch):
    save_image(tmp_path / "large.png", (1050, 1000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    with pytest.raises(MdeError, match=r"large\.png: image of more than 1 million pixels; scale it down"):
        read_image(tmp_path / "large.png")


def test_what_cannot_be_opened_is_not_called_damaged(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(MdeError, match=r"folder\.png: image that cannot be opened \(Is a directory\)"):
        read_image(tmp_path / "folder.png")
