"""`deploy.py source=`: depth of pictures and films."""
