"""Exact graph rewrites, and files for engines."""

from mde.export.image_graph import ImageGraph
from mde.export.onnx import export_onnx
from mde.export.rewrites import deployable

__all__ = ["ImageGraph", "deployable", "export_onnx"]
