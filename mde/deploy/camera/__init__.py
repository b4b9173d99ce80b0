"""`deploy.py data=l515`: networks beside a depth camera."""
