"""librealsense's Python module, and why it may not be there."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mde.errors import MdeError

L515 = ("8086", "0b64")  # USB vendor and product
USB_DEVICES = Path("/sys/bus/usb/devices")
# The last wheel that knows an L515; 2.55 removed it, and plays recordings of one all the same.
FOR_L515 = "pip install 'pyrealsense2==2.54.2.*' (Python 3.11 at most)"


def require_realsense() -> Any:
    """The module pyrealsense2. MdeError where it, or the system library it needs, is missing."""
    try:
        import pyrealsense2
    except ImportError as error:
        if "libusb" in str(error):
            raise MdeError("pyrealsense2 needs the system library libusb: apt install libusb-1.0-0") from error
        raise MdeError("RealSense cameras and recordings need librealsense; pip install -e '.[l515]'") from error
    return pyrealsense2


def realsense_version() -> tuple[int, ...]:
    """(2, 59, 1) of librealsense itself; (0,) of an old one that was built by hand and does not say."""
    try:
        text = getattr(require_realsense(), "__version__", None) or version("pyrealsense2")
        return tuple(int(part) for part in text.split(".")[:3])
    except (PackageNotFoundError, ValueError):
        return (0,)


def no_camera() -> MdeError:
    """Why librealsense lists no camera: none is connected, or it no longer knows the one that is."""
    ours = f"librealsense {'.'.join(map(str, realsense_version()))}"
    if l515_connected():
        return MdeError(f"data.source=live: an L515 is connected, but {ours} does not know it or may not; {FOR_L515}")
    return MdeError(
        f"data.source=live: {ours} finds no camera; connect one to USB 3, close other programs that use it, or give a "
        "recording: data.source=FILE.bag"
    )


def l515_connected() -> bool:
    """Whether the system sees an L515 on USB, whatever librealsense says."""
    for vendor in USB_DEVICES.glob("*/idVendor"):
        product = vendor.with_name("idProduct")
        if product.exists() and (vendor.read_text().strip(), product.read_text().strip()) == L515:
            return True
    return False
