"""What the published figures come from: `python -m benchmarks.NAME`, from the repository's root."""
