"""A command line comes from somebody else as easily as a file: it calls nothing, and reads no others' options."""

import re
import sys
from pathlib import Path

import pytest

import mde.app.entry
from mde.app.command_line import check_arguments
from mde.app.entry import register, run
from mde.errors import MdeError
from tests.app import tiny_job
from tests.conftest import ROOT

TARGET = "{? _target_ : builtins.open, file: MADE, mode: w}"
THEIRS = """# @package _global_
hydra:
  callbacks:
    theirs: {_target_: builtins.open, file: MADE, mode: w}
"""


@pytest.mark.parametrize(
    "arguments",
    [
        [f"+hydra.callbacks.e='${{oc.create:\"{TARGET}\"}}'"],
        ["hydra.output_subdir=../../elsewhere"],
        [f"+hydra.callbacks.e='${{oc.decode:\"{TARGET}\"}}'"],
        ["+hydra.callbacks.e={_target_:builtins.open,file:MADE,mode:w}"],
        ["+hydra.callbacks={e:{file:MADE,mode:w,_target_:builtins.open}}"],
        ["hydra={callbacks:{e:{_target_:builtins.open,file:MADE,mode:w}}}"],
        ["hydra.job_logging.handlers.file.filename=MADE", "+hydra.job_logging.handlers.file.mode=w"],
        ["hydra.searchpath=[file://THEIRS]", "experiment=theirs"],
        ["--config-dir=THEIRS", "experiment=theirs"],
        ["--config-d", "THEIRS", "experiment=theirs"],
        ["-cp", "THEIRS"],
        ["--config-path=THEIRS"],
        ["--config-name=../../THEIRS/experiment/theirs"],
        ["--experimental-rerun=THEIRS/x.pickle"],
        ["experiment=UPTHEIRS/experiment/theirs"],
        ["+loss@_global_=UPTHEIRS/experiment/theirs"],
        ["hydra/launcher=UPTHEIRS/experiment/theirs"],
        ["-m", "experiment=demo,UPTHEIRS/experiment/theirs"],
        ["-m", "+hydra.sweeper.params.experiment=UPTHEIRS/experiment/theirs"],
        ["-m", "+hydra.sweeper.params.hydra='{job_logging:{handlers:{x:{filename:MADE}}}}'"],
        ["-m", "hydra/launcher=processes", "+hydra.launcher.n_jobs='${oc.select:no,{_target_:x}}'"],
        ["hydra.job.env_set.PATH=THEIRS"],
        ["+data@hydra.callbacks.e=folder"],
        ["data._target_=torch.load"],
        ["-m", "data.parts={a:[{b:{_target_:x}}]},{c:1}"],
    ],
)
def test_what_names_code_or_others_options_is_refused_in_one_line(tmp_path, monkeypatch, capfd, arguments):
    register()
    made, theirs = tmp_path / "made", tmp_path / "theirs"
    (theirs / "experiment").mkdir(parents=True)
    (theirs / "experiment/theirs.yaml").write_text(THEIRS.replace("MADE", str(made)))
    for name, value in {"UPTHEIRS": "../" * 12 + str(theirs)[1:], "THEIRS": str(theirs), "MADE": str(made)}.items():
        arguments = [re.sub(rf"\b{name}\b", value, argument) for argument in arguments]
    monkeypatch.setattr(mde.app.entry, "_failed", [])
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments, f"hydra.run.dir={tmp_path / 'run'}"])
    with pytest.raises(SystemExit) as ended:
        run(tiny_job.main)
    assert ended.value.code == 2
    assert re.fullmatch(r"error: [^\n]*(conf/|names code|interpolated)[^\n]*\n", capfd.readouterr().err)
    assert not made.exists()
    assert not (tmp_path / "run").exists()


def test_what_the_documents_use_is_taken():
    for arguments in [
        ["hydra.run.dir=out/${now:%H-%M}", "hydra.verbose=true", "hydra.job.chdir=false", "hydra.mode=MULTIRUN"],
        [
            "hydra.run.dir=out",
            "hydra.output_subdir=null",
            "hydra.job.name=train_ddp_process_1",
        ],  # as Lightning gives it
        ["-m", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=1", "trainer=gpu"],
        ["-m", "hydra/launcher=ray_local", "hydra.launcher.ray.init.address=auto", "~hydra.launcher.ray.init.num_cpus"],
        ["-m", "hydra/launcher=processes", "hydra.launcher.n_jobs=4", "hydra.sweep.subdir=${hydra.job.num}"],
        ["-m", "sweep=optuna", "hydra.sweeper.n_jobs=2", "hydra.sweeper.params.sparsity=interval(0.2,0.8)"],
        ["hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0", "hydra/job_logging=disabled"],
        ["--cfg", "job", "--resolve"],
        ["--info", "defaults"],
        ["data@data.parts.labelled=folder", "data.root=../frames", "checkpoint=a/b.pt", "resume=../run"],
        [
            "+prune.limits={encoder.blocks.3*:0}",
            "evaluate=[a/b,c]",
            "data={root:/frames}",
            "data=glob(*)",
            "loss=l1,mse",
        ],
        ["not=in=the(grammar"],
    ]:
        check_arguments(arguments)


def test_every_option_of_hydras_that_is_written_down_here_is_taken():
    written = [
        path
        for pattern in ("docs/*.md", "conf/**/*.yaml", "benchmarks/*.py", "README.md")
        for path in ROOT.glob(pattern)
    ]
    text = "\n".join(map(Path.read_text, [*written, ROOT / "Makefile"]))
    options = set(re.findall(r"(?<![\w.$/{])~?hydra[./][\w./]+=[\w./]+", text))
    assert len(options) > 5
    for option in options:
        try:
            check_arguments([option])
        except MdeError as error:
            pytest.fail(str(error))
