"""Depth sensors: live, recorded or emulated."""
