"""Describing a network of others, so that it deploys like ours: the address that programs outside import it from."""

from mde.engines.description import Calibration, Description, write_description

__all__ = ["Calibration", "Description", "write_description"]
