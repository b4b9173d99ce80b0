"""From a network to a verified file for an engine, and back: a runtime for every such file."""

from mde.engines.runtime import Runtime, load_runtime

__all__ = ["Runtime", "load_runtime"]
