"""The end of a multirun: latency of all its networks, the test of what was chosen, one table and page, the failures."""

import traceback
from pathlib import Path

from mde.app.chosen import evaluate_chosen
from mde.app.sweep_latency import measure
from mde.report.sweep_page import write_merged
from mde.report.sweep_table import read_jobs, show_merged
from mde.report.terminal import say


def finish(sweep_dir: Path, measured: bool = True) -> int:
    """Measures, tests what a search chose, then writes summary.csv, summary.json and report.html of all jobs in
    `sweep_dir`.

    measured  False: leave latency and test out, because the user wants to stop

    Returns how many jobs have no complete result. A sweep that never came to its first job leaves nothing and counts 0.
    """
    jobs = read_jobs(sweep_dir)
    if not jobs:
        return 0
    notes = []
    if measured:
        try:
            notes = measure([job.directory for job in jobs if job.complete])
        except Exception as error:  # the page is worth more than its latency column
            traceback.print_exc()
            notes = [f"latency not measured: {type(error).__name__}: {error}"]
        jobs = read_jobs(sweep_dir)
        notes += evaluate_chosen(jobs)
    page = write_merged(sweep_dir, jobs, notes)
    show_merged(jobs, notes)
    failures = sum(not job.complete for job in jobs)
    say(f"{len(jobs) - failures} of {len(jobs)} jobs complete; report: {page}")
    if failures:
        say(f"to run the others again: the same command with sweep.resume={sweep_dir}")
    return failures
