"""`train.py` from the composed configuration to a finished run directory."""

import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import timm.layers
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError
from torch import nn

from mde.builders import builder, built
from mde.data.datamodule import DepthData, parts_of
from mde.data.sample import Frames, Splits
from mde.errors import MdeError
from mde.evaluation.quality import (
    Predictor,
    check_truth,
    evaluate,
    evaluation_sets,
    health_on,
    network_predictor,
    ramp_predictor,
)
from mde.export.rewrites import deployable
from mde.models import build_model, load_model, read_metadata, save_model, trained_size
from mde.models.build import UNTRAINED
from mde.models.checkpoints import narrow_to, provenance, read_checkpoint
from mde.models.health import lost_skips
from mde.models.network import DepthNetwork, check_size
from mde.models.registry import as_published
from mde.models.residual import take_out
from mde.models.scale import rescale
from mde.quantization.fake import SCALES, load_fake_quantized
from mde.records import describe_model, new_record, read_record, write_record
from mde.report.dispensable import dispensable
from mde.report.pictures import save_sheets
from mde.report.run_page import write_report
from mde.report.terminal import say, show_cost, show_quality
from mde.report.wandb_results import log_results
from mde.report.wandb_run import end_wandb
from mde.runs import LAST, load_options, save_options
from mde.speed.interleaved import READING_ONNX, engines_here, measure_latency
from mde.training.callbacks import Compression, Validation
from mde.training.estimate import TRIAL_STEPS, step_seconds
from mde.training.module import DepthModule
from mde.training.objective import Objective
from mde.training.quantization_aware import build_quantization
from mde.training.teacher import Teacher, build_teacher, show, taught
from mde.training.trainer import build_trainer, precision, uses_gpu

RATES = {"encoder_lr": 4e-4, "decoder_lr": 1e-3}  # of a decoder that knows nothing yet; half for trained weights
SIZE = [160, 224]  # where neither the command line nor the weights say one: what two CPU cores train in minutes


def train(config: DictConfig) -> Path:
    """Trains as configured and returns the run directory, complete with network, record, pictures and page.

    The record's status is "running" meanwhile, and "incomplete" when the run ended before its last step: by
    trainer.max_minutes, by a signal, or by an error, which is raised again. `resume=` continues the last checkpoint.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    config = prepared(config)
    size = config.size[0], config.size[1]
    L.seed_everything(config.seed, workers=True, verbose=False)
    quantization = build_quantization(config, run_dir)
    splits: Splits = built("data", config.data)
    limit = config.evaluation.frames
    evaluated, validating = evaluation_sets(splits, config.evaluate, limit), parts_of(splits.validation)
    check_truth(validating, limit)
    teacher = build_teacher(config, splits)
    model = build_model(config.model.name, weights=config.weights, **network_options(config))
    if config.weights not in UNTRAINED:
        rescale(model)  # half precision holds official weights and those of older versions from the first step
    config.model.name = model.name
    config.model.border = model.options.get("border")  # written down: a resumed run keeps it
    compression: Compression | None = builder("prune", config.prune)(config, run_dir) or quantization
    validation = Validation(
        validating,
        size,
        config.trainer.validate_every,
        config.protocol,
        run_dir / "pictures",
        limit,
    )
    trainer = build_trainer(config, run_dir, [compression, validation] if compression else [validation])
    if (run_dir / LAST).exists():
        narrow_like(model, run_dir / LAST)
    module, data = learning(config, trainer, model, splits, size, teacher)
    described = describe_model(model, size) | {
        "trained_on": trained_on(config.weights, splits),
        "steps": config.trainer.max_steps,
    }
    record = new_record("running", parent=config.weights, model=described, notes=[splits.note] if splits.note else [])
    record |= {"teacher": config.teacher or "", "teachers": teachers_of(config.weights, teacher)}
    record["licence"] = provenance(config.weights).get("licence")  # read now: the file may be gone at the end
    if config.resume:  # how it began; this command only goes on
        record["environment"]["command"] = read_record(run_dir)["environment"].get("command")
    if teacher:
        record["notes"].append(f"Teacher: {teacher.name}; licence: {teacher.about['licence']}.")
    if trainer.is_global_zero:
        save_options(run_dir, config)
        write_record(run_dir, record)
        announce(config, module, trainer, data)
    try:
        if config.trainer.max_steps:
            fit(run_dir, trainer, module, data)
        elif compression:
            compression.follow(0, module, data)
        if trainer.is_global_zero and trainer.global_step >= config.trainer.max_steps:
            finish(config, run_dir, model, record, validating if searched(config) else evaluated, compression)
            log_results(trainer.loggers, record, config.prune.kind, run_dir, trainer.global_step)
    finally:
        end_wandb()
        if trainer.is_global_zero and record["status"] != "complete":
            record["status"] = "incomplete"
            with dispensable("the record's last state"):  # a full disk: what ended the run is said, not this
                write_record(run_dir, record)
                write_report(run_dir)
            rest = (
                f"to continue: python {Path(sys.argv[0]).name} resume={run_dir}"
                if (run_dir / LAST).exists()
                else "nothing to continue"
            )
            say(f"stopped at step {trainer.global_step}; {rest}")
    return run_dir


def learning(
    config: DictConfig,
    trainer: L.Trainer,
    model: DepthNetwork,
    splits: Splits,
    size: tuple[int, int],
    teacher: Teacher | None,
) -> tuple[DepthModule, DepthData]:
    """What is optimised, and the data for it."""
    if config.batch_size % trainer.world_size:
        raise MdeError(f"batch_size={config.batch_size}: not a multiple of the {trainer.world_size} processes")
    if trainer.world_size > 1 and uses_gpu(config.trainer):
        # timm's, because torch's own drops the activation inside timm's BatchNormAct2d.
        model = timm.layers.convert_sync_batchnorm(model)
    module = DepthModule(
        model.to(memory_format=torch.channels_last),
        Objective(config.loss.data, config.loss.gradient, config.loss.start_steps, config.loss.teacher),
        config.optimizer,
        config.trainer.max_steps,
        config.trainer.freeze_batchnorm and config.weights != "none",  # which has no statistics to keep
    )
    data = DepthData(
        taught(splits, teacher) if teacher else splits,
        size=size,
        mean=model.mean,
        std=model.std,
        batch_size=config.batch_size,
        max_steps=config.trainer.max_steps,
        workers=config.workers,
        seed=config.seed,
        beforehand=partial(show, teacher, splits.train, config.workers) if teacher else None,
    )
    return module, data


def trained_on(weights: str, splits: Splits) -> str:
    """The sets that the network learned from, joined by "+", those of the weights that it began with first."""
    before = [] if weights in UNTRAINED else str(provenance(weights).get("trained_on", "not stated")).split("+")
    return "+".join(dict.fromkeys([*before, *splits.name.split("+")]))


def teachers_of(weights: str, teacher: Teacher | None) -> list[dict[str, Any]]:
    """What every network is that this one learned from: the teacher and its own teachers, and those of its weights."""
    every = [*provenance(weights).get("teachers", []), *(teacher.lineage if teacher else [])]
    return list({about["sha256"]: about for about in every}.values())


def fit(run_dir: Path, trainer: L.Trainer, module: DepthModule, data: DepthData) -> None:
    """Optimises in place, from the run directory's last checkpoint where there is one, and leaves a last checkpoint.

    SIGTERM ends the process with the status that shells expect.
    """
    last = run_dir / LAST
    try:
        trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    except SIGTERMException as error:  # has none of its own, and a script would go on with half a run
        raise SystemExit(128 + signal.SIGTERM) from error
    trainer.save_checkpoint(last)


def announce(config: DictConfig, module: DepthModule, trainer: L.Trainer, data: DepthData) -> None:
    """Says what will be trained, on what, and on a CPU for how long."""
    steps, batch_size = config.trainer.max_steps, config.batch_size // trainer.world_size
    parameters = sum(parameter.numel() for parameter in module.model.parameters())
    say(
        f"{module.model.name}, {parameters / 1e6:.1f} M parameters, input {config.size[0]} x {config.size[1]}, "
        f"batch {config.batch_size}, {steps} steps on {data.splits.name}, {config.trainer.precision}"
    )
    if not uses_gpu(config.trainer):
        if steps > 5 * TRIAL_STEPS:
            minutes = step_seconds(module, trainer, data.training_set, batch_size, config.workers) * steps / 60
            say(f"about {max(1, round(minutes))} min of training, if nothing else keeps this machine busy")
        if data.beforehand:
            say("before it the teacher looks at every frame to be drawn that it has not seen yet")
        if trainer.world_size > 1:
            say("several processes on the CPU: BatchNorm statistics are per process (SyncBatchNorm needs GPUs)")


def narrow_like(model: DepthNetwork, checkpoint: Path) -> None:
    """Gives `model` the blocks and widths of the network in a Lightning checkpoint, which may have been pruned in
    training. MdeError for a damaged one, and for one that is not of such a run.
    """
    content = read_checkpoint(checkpoint, mmap=True)
    entries = content if isinstance(content, dict) else {}
    missing = [name for name, kind in RESUMED.items() if not isinstance(entries.get(name), kind)]
    if missing:
        raise MdeError(f"{checkpoint}: no checkpoint of this program's training, it has no {missing[0]}; {RESTORE}")
    for state in content["callbacks"].values():
        taken_out = state.get("taken_out", ()) if isinstance(state, dict) else ()
        take_out(model, [name for name in taken_out if name not in model.taken_out])
    tensors = {name: tensor for name, tensor in content["state_dict"].items() if isinstance(tensor, torch.Tensor)}
    shapes = {name.removeprefix("model."): tuple(tensor.shape) for name, tensor in tensors.items()}
    narrow_to(model, shapes)
    other = [name for name, tensor in model.state_dict().items() if shapes.get(name) != tuple(tensor.shape)]
    if other:
        raise MdeError(f"{checkpoint}: of another network than {model.name} as configured ({other[0]}); {RESTORE}")


def searched(config: DictConfig) -> bool:
    """Whether this run is a job of a search: judged on validation frames; the search's end tests what it chose."""
    return config.sweep.search and HydraConfig.get().mode == RunMode.MULTIRUN


def finish(
    config: DictConfig,
    run_dir: Path,
    model: DepthNetwork,
    record: dict[str, Any],
    sets: list[Frames],
    compression: Compression | None,
) -> None:
    """Saves the network, evaluates it once on every set, and completes record and page."""
    path, size = run_dir / "model.safetensors", (config.size[0], config.size[1])
    about = {key: record["model"][key] for key in ("input", "trained_on", "steps")} | {"teachers": record["teachers"]}
    about |= {"licence": record["licence"]} if record["licence"] else {}
    save_model(model.cpu(), path, parent=config.weights, **about, **(compression.metadata() if compression else {}))
    model = load_model(path)  # what is evaluated is what was saved
    if config.quantize.kind == "qat":
        record["notes"].append("Accuracy is that in INT8, computed by the fake-quantized network; before: in float.")
    record["model"] |= describe_model(model, size, path)
    if compression:
        dense = load_model(compression.dense_file)
        if config.recovery.kind == "distill" and config.prune.kind != "none":
            record["teacher"] = ", ".join(filter(None, [record["teacher"], str(compression.dense_file)]))
        record["before"] = {"model": describe_model(dense, size, compression.dense_file), "quality": {}}
    predict = network_predictor(evaluable(config, run_dir), size)
    if searched(config):
        record["validation"] = qualities(predict, sets, config, "validation")
        with dispensable("pictures", record["notes"]):
            save_sheets(sets, predict, run_dir)
    else:
        final_evaluation(config, run_dir, record, sets, compression.dense_file if compression else None)
    record["health"] = health_on(model, sets[0], size)
    record["notes"] += lost_skips(record["health"]["skip_share"])
    if HydraConfig.get().mode == RunMode.RUN:  # jobs of a sweep may run side by side: it measures them at its end
        add_latency(record, model, dense if compression else None, config)
    record["status"] = "complete"
    write_record(run_dir, record)
    show_quality(record)
    show_cost(record)
    with dispensable("report.html"):
        say(f"report: {write_report(run_dir)}")


def evaluable(config: DictConfig, run_dir: Path) -> DepthNetwork:
    """The run's network as it is evaluated: after quantization-aware training in INT8."""
    path = run_dir / "model.safetensors"
    return load_fake_quantized(path) if config.quantize.kind == "qat" else load_model(path)


def final_evaluation(
    config: DictConfig, run_dir: Path, record: dict[str, Any], sets: list[Frames], dense_file: Path | None
) -> None:
    """Evaluates the run's network on every set, beside what it was before (`dense_file`) and the ramp, and draws it."""
    size = (config.size[0], config.size[1])
    predict = network_predictor(evaluable(config, run_dir), size)
    record["quality"] = qualities(predict, sets, config, "evaluating")
    if dense_file is not None:
        dense = load_model(dense_file)
        known = known_qualities(config, dense, record["quality"])
        rest = [frames for frames in sets if frames.name not in known]
        found = qualities(network_predictor(dense, size), rest, config, "before: evaluating")
        record["before"]["quality"] = known | found
    record["baselines"] = {"vertical_ramp": qualities(ramp_predictor, sets, config, None)}
    with dispensable("pictures", record["notes"]):
        save_sheets(sets, predict, run_dir)


def known_qualities(
    config: DictConfig, dense: DepthNetwork, quality: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """What the run that trained `dense` found on the same frames as those of `quality`: not measured twice.

    The same frames by their content, whatever the set is called here or there. Older records do not tell it.
    """
    origin = Path(config.weights)
    if origin.suffix != ".safetensors" or not (origin.parent / "metrics.json").exists():
        return {}
    try:
        record = read_record(origin.parent)
        if record["status"] != "complete" or record["model"]["input"] != list(config.size):
            return {}
        found = {alike(entry): entry for entry in record["quality"].values() if entry["content"]}
        known = {name: found[alike(entry)] for name, entry in quality.items() if alike(entry) in found}
        precision = record.get("deployment", {}).get("precision", "fp32")
    except (MdeError, KeyError, TypeError, AttributeError):  # of another program, or of an older version
        return {}
    if not known or precision != "fp32" or SCALES in read_metadata(origin):
        return {}  # what it found is no accuracy of the floats in `weights`
    before = load_model(origin)
    tensors = before.state_dict()
    same = before.options == dense.options and all(
        torch.equal(tensor, tensors[name]) for name, tensor in dense.state_dict().items() if name in tensors
    )
    return known if same else {}


def alike(entry: dict[str, Any]) -> tuple[str, ...]:
    """What two quality entries have in common whose figures compare."""
    return tuple(entry[key] for key in ("content", "protocol", "alignment"))


def qualities(
    predict: Predictor, sets: list[Frames], config: DictConfig, title: str | None
) -> dict[str, dict[str, Any]]:
    """The quality entry of every set; `title` begins that of each progress bar, None: there is none."""
    run = partial(evaluate, predict, protocol=config.protocol, limit=config.evaluation.frames)
    return {frames.name: run(frames, progress=title and f"{title} on {frames.name}") for frames in sets}


def add_latency(record: dict[str, Any], model: DepthNetwork, dense: DepthNetwork | None, config: DictConfig) -> None:
    """Measures network, dense network and the published graph side by side, and puts their times into the record."""
    if not config.measure.rounds:
        return
    if absent := [name for name in READING_ONNX if name not in engines_here()]:
        reason = "it, or onnx and onnxslim, are not installed here"
        record["notes"].append(f"Latency was not measured in {' and '.join(absent)}: {reason}.")
    if not engines_here():
        return
    graphs: dict[str, nn.Module] = {"reference": build_model(model.name, **as_published(model.options))}
    graphs |= {"before": deployable(dense)} if dense is not None else {}
    graphs |= {"model": deployable(model)}
    latency = measure_latency(graphs, (config.size[0], config.size[1]), **config.measure)
    record["latency"] = latency["model"]
    record["reference_latency"] = latency["reference"]
    if dense is not None:
        record["before"]["latency"] = latency["before"]


def prepared(config: DictConfig) -> DictConfig:
    """The configuration to run, checked, with "auto" and null replaced by what they stand for.

    With resume=DIR the options are those of that run, with this command line's on top.
    """
    if config.resume:
        config = resumed(config)
    config.trainer.precision = precision(config.trainer)
    fill_in(config)
    check_size(config.size)
    for option, least in {
        "batch_size": 1,
        "workers": 0,
        "trainer.max_steps": 1 if config.prune.kind == config.quantize.kind == "none" else 0,  # 0: evaluate only
        "trainer.validate_every": 1,
        "trainer.devices": 1,
        "measure.rounds": 0,
    }.items():
        if OmegaConf.select(config, option) < least:
            raise MdeError(f"{option}={OmegaConf.select(config, option)}: must be at least {least}")
    return config


def fill_in(config: DictConfig) -> None:
    """Replaces what null leaves to the weights: size, learning rates, and how long plain L1 leads."""
    untrained = config.weights in UNTRAINED
    if config.size is None:
        config.size = SIZE if untrained else list(trained_size(config.weights, config.model.name))
    if config.loss.start_steps is None:
        config.loss.start_steps = 100 if untrained else 0
    for option, rate in RATES.items():
        if config.optimizer[option] is None:
            config.optimizer[option] = rate * (1 if untrained else 0.5)


def resumed(config: DictConfig) -> DictConfig:
    """The options of the run in config.resume, with this command line's other options on top."""
    run_dir = Path(config.resume)
    if not (run_dir / "config.yaml").exists() or not (run_dir / LAST).exists():
        raise MdeError(f"resume={run_dir}: holds no {LAST} beside its config.yaml; name a run that was interrupted")
    if run_dir.resolve() != Path(HydraConfig.get().runtime.output_dir).resolve():
        raise MdeError(f"resume={run_dir}: goes on in its own directory; leave hydra.run.dir and -m out")
    merged = load_options(run_dir, OmegaConf.get_type(config))
    for item in OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task)):
        key = item.key_or_group
        if key == "data" and item.package is None and config.data._target_ == merged.data._target_:
            continue  # what the run has already
        if key in GROUPS or key == "model.border":  # which weights would fit
            raise MdeError(f"{item.input_line}: cannot be exchanged in a resumed run; leave it out or start anew")
        try:
            OmegaConf.update(merged, key, item.value())
        except (ConfigAttributeError, ConfigKeyError) as error:
            raise MdeError(f"unknown option '{key}' of the run in {run_dir}") from error
    record = read_record(run_dir)
    if record["status"] == "complete" and merged.trainer.max_steps <= (steps := record["model"].get("steps", 0)):
        raise MdeError(f"resume={run_dir}: complete after {steps} steps; give a larger trainer.max_steps to go on")
    return merged


# What Lightning goes on from.
RESUMED: dict[str, type] = {"state_dict": dict, "callbacks": dict, "loops": dict}
RESUMED |= {"optimizer_states": list, "lr_schedulers": list, "global_step": int, "epoch": int}
RESTORE = "put back the run's own, or start anew"
# What shapes a run and cannot change in the middle of it.
GROUPS = ["model", "data", "loss", "optimizer", "trainer", "logger", "experiment"]
GROUPS += ["prune", "importance", "schedule", "recovery", "sparsity", "quantize", "teacher"]


def network_options(config: DictConfig) -> dict[str, Any]:
    """The network's options that were asked for; where the weights leave them open, lite0, which a CPU can train, and
    the border that engines are fastest with.
    """
    options = {name: value for name, value in config.model.items() if name != "name"}
    if config.model.name in (None, "midas_small") and config.weights in UNTRAINED:
        options |= {"encoder": options["encoder"] or "lite0", "border": options["border"] or "replicate"}
    return options
