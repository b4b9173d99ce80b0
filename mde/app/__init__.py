"""Hydra multiruns: where each job writes, what becomes of its result and its errors, and the page at the end.

Nothing here imports torch before a job needs it: a mistyped option is to be answered at once.
"""
