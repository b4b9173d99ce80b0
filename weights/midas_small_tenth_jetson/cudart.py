"""The CUDA runtime through ctypes: the calls that running an engine takes, and no package to install.

Python 3.6 syntax: the Jetson bundle ships this file.
"""

import ctypes
from typing import Any, Dict, Optional

NAMES = ("libcudart.so", "libcudart.so.10.2", "libcudart.so.11.0", "libcudart.so.12", "libcudart.so.13")
FOLDERS = ("", "/usr/local/cuda/lib64/")  # where the loader looks by itself, and where a JetPack has it
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # cudaMemcpyKind
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # cudaDeviceAttr


class CudaError(Exception):
    """A call of the CUDA runtime failed. One line that names the call."""


class Cuda:
    """The calls, checked. Addresses and streams are plain integers."""

    def __init__(self, library: Any) -> None:
        """library: libcudart as ctypes loaded it."""
        self.library = library

    def malloc(self, size: int) -> int:
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value or 0

    def free(self, address: int) -> None:
        self._call("cudaFree", ctypes.c_void_p(address))

    def create_stream(self) -> int:
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        return stream.value or 0

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def synchronise(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def upload(self, address: int, host: int, size: int, stream: int) -> None:
        """Queues a copy of `size` bytes from the host's memory to the device's."""
        self._copy(address, host, size, HOST_TO_DEVICE, stream)

    def download(self, host: int, address: int, size: int, stream: int) -> None:
        """Queues a copy of `size` bytes from the device's memory to the host's."""
        self._copy(host, address, size, DEVICE_TO_HOST, stream)

    def device(self) -> Dict[str, str]:
        """{"device": name, "compute_capability": "8.7"} of the first GPU. CudaError when there is none."""
        # The struct behind the name differs between versions of CUDA, and no version needs as much as this.
        properties = ctypes.create_string_buffer(8192)
        self._call("cudaGetDeviceProperties", properties, ctypes.c_int(0))
        numbers = []
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            number = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(number), ctypes.c_int(attribute), ctypes.c_int(0))
            numbers.append(number.value)
        return {"device": properties.value.decode(), "compute_capability": f"{numbers[0]}.{numbers[1]}"}

    def _copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        pointers = ctypes.c_void_p(to), ctypes.c_void_p(source)
        self._call("cudaMemcpyAsync", *pointers, ctypes.c_size_t(size), ctypes.c_int(kind), ctypes.c_void_p(stream))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.library, name)(*arguments)
        if code:
            text = self.library.cudaGetErrorString(ctypes.c_int(code)).decode()
            raise CudaError(f"{name}: CUDA error {code} ({text}); is the GPU there, and is enough of its memory free?")


def load_cuda() -> Cuda:
    """The first CUDA runtime that is installed under one of `NAMES`; CudaError when there is none."""
    for path in [folder + name for folder in FOLDERS for name in NAMES]:
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        library.cudaGetErrorString.restype = ctypes.c_char_p
        return Cuda(library)
    raise CudaError(f"no CUDA runtime found ({', '.join(NAMES)}); add its folder to LD_LIBRARY_PATH")


def present_device() -> Dict[str, Optional[str]]:
    """`Cuda.device` of this machine, both values None where no GPU can be used."""
    try:
        return dict(load_cuda().device())
    except CudaError:
        return {"device": None, "compute_capability": None}
