"""The test of what a search chose: its jobs were judged on validation frames, and only its Pareto front sees others."""

from mde.app.sweep_latency import networks, wandb_run
from mde.builders import built
from mde.config import PruneRunConfig
from mde.data.sample import Splits
from mde.evaluation.quality import evaluation_sets
from mde.records import write_record
from mde.report.dispensable import reason
from mde.report.run_page import write_report
from mde.report.sweep_table import SweepJob, pareto_front, trade
from mde.report.terminal import say
from mde.report.wandb_results import log_results
from mde.runs import load_options
from mde.training.run import final_evaluation


def evaluate_chosen(jobs: list[SweepJob]) -> list[str]:
    """Evaluates the networks on the Pareto front on their test sets, unless that was done, and renews record and page
    of each. Returns a line for each that could not be.
    """
    problems = []
    for job, chosen in zip(jobs, pareto_front(trade(jobs)), strict=True):
        if not chosen or "validation" not in job.record or job.record["quality"]:
            continue
        say(f"testing what was chosen: {job.name}")
        try:
            _evaluate(job)
        except Exception as error:  # one job's must not cost the others their figures
            problems.append(f"{job.name}: not tested: {reason(error)}")
    return problems


def _evaluate(job: SweepJob) -> None:
    config = load_options(job.directory, PruneRunConfig)  # which has train.py's as well
    splits: Splits = built("data", config.data)
    _, *before = networks(job.directory)
    sets = evaluation_sets(splits, config.evaluate, config.evaluation.frames)
    final_evaluation(config, job.directory, job.record, sets, before[0] if before else None)
    write_record(job.directory, job.record)
    write_report(job.directory)
    with wandb_run(job.directory) as logger:
        if logger is not None:
            log_results([logger], job.record, config.prune.kind, job.directory, job.record["model"].get("steps", 0))
