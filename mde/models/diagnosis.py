"""What a file is that should hold a network and does not open: one line, with the remedy that fits."""

import zipfile
from pathlib import Path

from mde.errors import MdeError

WEIGHTS = "give weights alone: a state_dict saved with torch.save, or this program's .safetensors"
AGAIN = "copy or download it again"
# First bytes -> what such a file is, and what to do about it.
SIGNS = {
    b"version https://git-lfs": "a pointer of git-lfs, the file itself was not fetched; run git lfs pull",
    b"\x89HDF\r\n\x1a\n": f"an HDF5 file, as Keras writes them; {WEIGHTS}",
    b"\x1f\x8b": "packed with gzip; unpack it and give the file in it",
    b"7z\xbc\xaf\x27\x1c": "packed with 7-Zip; unpack it and give the file in it",
    b"\x93NUMPY": f"a NumPy array; {WEIGHTS}",
}
# A member's name ends so -> what such a ZIP archive is. TorchScript has a data.pkl too, and Keras an .h5 of weights.
MEMBERS = {
    "/constants.pkl": "a TorchScript archive, which is code; give its state_dict: "
    "torch.save(torch.jit.load(FILE).state_dict(), NEW)",
    "/data.pkl": f"damaged; {AGAIN}",
    ".weights.h5": f"a Keras archive; {WEIGHTS}",
    ".npy": f"an archive of NumPy arrays; {WEIGHTS}",
}


def not_a_network(path: Path) -> MdeError:
    """The error for `path`, an existing file that no reader of checkpoints opens."""
    return MdeError(f"{path}: {_what(path)}")


def _what(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        return f"cannot be read ({error.strerror}); let your user read it, or give a copy"
    if not head.strip(b"\0"):
        return f"damaged, it is empty; {AGAIN}"
    for sign, what in SIGNS.items():
        if head.startswith(sign):
            return what
    if head.lstrip().startswith(b"<"):
        return "a web page or another text, not the file itself; download it by the link of the file"
    if head[4:8] == b"TFL3":
        return f"a graph of TensorFlow Lite, not a checkpoint; {WEIGHTS}, or call it .tflite"
    if head[8:10] == b'{"' and path.suffix != ".safetensors":
        return "a safetensors file; call it .safetensors"
    if head.startswith(b"PK"):
        return _archive(path)
    return f"damaged, or no checkpoint; {AGAIN}"


def _archive(path: Path) -> str:
    try:
        names = zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # the list of its members is at its end
        return f"damaged, it breaks off; {AGAIN}"
    if path.suffix == ".safetensors" and any(name.endswith("/data.pkl") for name in names):
        return "written by torch.save, no safetensors file; call it .pt"
    for ending, what in MEMBERS.items():
        if any(name.endswith(ending) for name in names):
            return what
    return f"a ZIP archive ({', '.join(names[:3]) or 'empty'}); unpack it and give the checkpoint in it"
