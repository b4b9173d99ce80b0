"""Exact depth without any data set: rooms and streets, their textures and light, and how sensors would measure them."""
