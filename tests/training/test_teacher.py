"""A teacher is asked once for an image, its answer moves with the image, and its scale and shift mean nothing."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mde.data.datamodule import DepthData
from mde.data.folder import folder_splits
from mde.data.mix import mix_splits
from mde.data.photos import photos_splits
from mde.data.sample import Splits
from mde.engines import write_target
from mde.engines.request import Request
from mde.errors import MdeError
from mde.export import ImageGraph, deployable
from mde.losses import relative_inverse_depth
from mde.models import read_metadata, save_model
from mde.training.objective import Objective
from mde.training.run import teachers_of
from mde.training.teacher import Teacher, build_teacher, show, taught
from tests.conftest import TINY, write_frames
from tests.export import random_network
from tests.models.conftest import official_state
from tests.test_config import composed
from tests.test_losses import batch, reference_gradient_median, reference_trimmed

torch.set_num_threads(1)
SIZE = (64, 96)


def photos(folder: Path, count: int = 4, size: tuple[int, int] = (48, 64)) -> Path:
    """Pictures of noise, in two folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("wide" if number % 2 else "near") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network as own, official and deployed files; the own one says who taught it."""
    folder, model = tmp_path_factory.mktemp("teachers"), random_network(reference=False)
    elder = {"file": "elder.onnx", "sha256": "e1de", "licence": "MIT"}
    save_model(model, folder / "model.safetensors", input=list(SIZE), trained_on="rooms", teachers=[elder])
    graph = ImageGraph(deployable(model), model.mean, model.std).eval()
    write_target("onnxruntime", Request(model.name, graph, SIZE, "fp32", folder), folder / "model.onnx")
    torch.save(official_state("lite0"), folder / "official.pt")
    return folder


@pytest.fixture
def image() -> Tensor:
    return torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each image that a teacher computes."""
    calls: list[int] = []
    original = Teacher._ask

    def ask(self: Teacher, image: Tensor) -> np.ndarray:
        calls.append(int(image.sum()))
        return original(self, image)

    monkeypatch.setattr(Teacher, "_ask", ask)
    return calls


# What it says of an image


def reference_relative(values: np.ndarray) -> np.ndarray:
    ordered = sorted(values.ravel())
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.02, 0.98))
    return (values - low) / (high - low)


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (250.0, -30.0), (1e-3, 7.0)])
def test_inverse_depth_without_scale_and_shift_is_the_share_of_the_way_between_two_percentiles(scale, shift):
    values = torch.rand(2, 1, 13, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2
    found = relative_inverse_depth(scale * values + shift)
    for number in range(2):
        assert np.allclose(found[number, 0], reference_relative(values[number, 0].numpy()), atol=1e-9)


def test_a_constant_image_and_one_wild_pixel_stay_finite_in_half_precision():
    assert relative_inverse_depth(torch.full((1, 1, 8, 8), 0.3)).eq(0).all()
    wild = torch.linspace(0, 1e-3, 400).reshape(1, 1, 20, 20)
    wild[0, 0, 3, 3] = 1e9
    assert relative_inverse_depth(wild).half().isfinite().all()


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx"])
def test_any_file_of_a_network_teaches_what_the_network_predicts(name, files, image, tmp_path):
    model = random_network(reference=False)
    stretched = torch.nn.functional.interpolate(image[None] / 255, SIZE, mode="bilinear", antialias=True)
    stretched = (stretched * 255).round() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.mean, model.std))
    with torch.no_grad():
        expected = reference_relative(model((stretched - mean) / std)[0, 0].double().numpy())
    found = Teacher(files / name, tmp_path)(image)
    assert found.shape == (1, *SIZE)
    assert found.dtype == torch.float32
    assert np.abs(found[0].numpy() - expected).max() < 2e-3 * max(1, np.abs(expected).max())


def test_an_official_checkpoint_teaches(files, image, tmp_path):
    teacher = Teacher(files / "official.pt", tmp_path)
    assert teacher(image).shape == (1, 256, 256)
    assert teacher.about["network"] == "midas_small"
    assert teacher.about["licence"].startswith("MIT")


def test_the_peer_file_teaches_inverse_depth_though_it_predicts_depth(tmp_path):
    path = Path(os.environ.get("MDE_SHARED", "../shared")) / "peers/fast_depth_224.tflite"
    if not path.exists():
        pytest.skip("set MDE_SHARED to the folder with the peer's file")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    image = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image.permute(1, 2, 0)[None].numpy())
    interpreter.invoke()
    counts = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0, ..., 0].astype(float)
    expected = reference_relative(1 / np.maximum(counts, counts[counts > 0].min()))
    teacher = Teacher(path, tmp_path)
    assert np.abs(teacher(image)[0].numpy() - expected).max() < 1e-3 * np.abs(expected).max()
    assert "MIT" in teacher.about["licence"]


# What is learned from it


def test_the_loss_is_affine_invariant_and_that_of_the_slow_reference_wherever_depth_is_unknown():
    prediction, target, mask = batch(dtype=torch.float32)
    unknown, depth = torch.zeros_like(mask), torch.zeros_like(target)
    everywhere = np.ones(mask.shape[2:], dtype=bool)
    pairs = [(p[0].double().numpy(), t[0].double().numpy()) for p, t in zip(prediction, target, strict=True)]
    terms = [reference_trimmed(p, t, everywhere) + 0.5 * reference_gradient_median(p, t, everywhere) for p, t in pairs]
    objective = Objective("ssi", 0.5, 0, teacher=3.0)
    parts = objective(prediction, depth, unknown, 0, target)
    assert parts["data"] == 0
    assert parts["teacher"].item() == pytest.approx(np.mean(terms), rel=1e-5)
    assert parts["loss"].item() == pytest.approx(3 * np.mean(terms), rel=1e-5)
    for scale, shift in [(40.0, -3.0), (0.01, 5.0)]:
        moved = objective(prediction, depth, unknown, 0, scale * target + shift)["teacher"]
        assert moved.item() == pytest.approx(parts["teacher"].item(), rel=1e-3)
        moved = objective(scale * prediction + shift, depth, unknown, 0, target)["teacher"]
        assert moved.item() == pytest.approx(parts["teacher"].item(), rel=1e-3)


def test_depth_and_teacher_add_up_and_nothing_changes_without_one():
    prediction, target, mask = batch(dtype=torch.float32)
    depth, said = 1 / (target + 0.1), target.flip(-1)
    objective = Objective("trimmed", 0.5, 0, teacher=0.25)
    alone = objective(prediction, depth, mask, 0)
    assert "teacher" not in alone
    both = objective(prediction, depth, mask, 0, said)
    assert both["loss"].item() == pytest.approx((alone["loss"] + 0.25 * both["teacher"]).item(), rel=1e-6)


def test_an_untrained_decoder_first_learns_the_teachers_values_as_those_of_a_room():
    prediction, target, mask = batch(dtype=torch.float32)
    parts = Objective("trimmed", 0.0, start_steps=5)(prediction, target, torch.zeros_like(mask), 4, target)
    expected = (prediction - (1 + 3 * target) / 4).abs().mean()
    assert parts["teacher"].item() == pytest.approx(expected.item(), rel=1e-5)


# What is kept on disk


def test_an_image_is_computed_once_and_the_same_answer_comes_back(files, image, tmp_path, asked):
    teacher = Teacher(files / "model.onnx", tmp_path)
    assert not teacher.knows(image)
    first = teacher(image)
    assert teacher.knows(image)
    assert torch.equal(teacher(image), first)
    assert torch.equal(Teacher(files / "model.onnx", tmp_path)(image), first)  # of a later run
    assert len(asked) == 1
    teacher(255 - image)
    teacher(image.transpose(1, 2))  # the same pixels, laid out otherwise
    assert len(asked) == 3
    assert len(list(tmp_path.rglob("*.npz"))) == 3
    assert not list(tmp_path.rglob("*.part"))


def test_another_network_has_answers_of_its_own(files, image, tmp_path, asked):
    Teacher(files / "model.onnx", tmp_path)(image)
    Teacher(files / "model.safetensors", tmp_path)(image)
    assert len(asked) == 2


@pytest.mark.parametrize("damage", [lambda whole: whole[:-30], lambda whole: b"", lambda whole: _flipped(whole)])
def test_a_damaged_entry_is_computed_again(damage: Callable[[bytes], bytes], files, image, tmp_path, asked):
    teacher = Teacher(files / "model.onnx", tmp_path)
    first = teacher(image)
    (entry,) = tmp_path.rglob("*.npz")
    entry.write_bytes(damage(entry.read_bytes()))
    assert not teacher.knows(image)
    assert torch.equal(teacher(image), first)
    assert len(asked) == 2
    assert teacher.knows(image)


def _flipped(whole: bytes) -> bytes:
    """One bit in the middle of the numbers."""
    place = len(whole) // 2
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


def test_an_answer_that_is_not_finite_is_an_error(files, image, tmp_path, monkeypatch):
    teacher = Teacher(files / "model.onnx", tmp_path)
    monkeypatch.setattr(teacher._runtime, "infer", lambda image: np.full((1, 1, 4, 4), np.nan, np.float32))
    with pytest.raises(MdeError, match=r"model\.onnx: answers NaN"):
        teacher(image)
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("workers", [0, 1])
def test_only_frames_that_are_not_known_are_shown(workers, files, tmp_path, asked):
    frames = photos_splits(photos(tmp_path / "photos")).train
    teacher = Teacher(files / "model.onnx", tmp_path / "cache")
    teacher(frames[2].image)
    show(teacher, frames, workers, [3, 2, 0])
    assert asked == [int(frames[index].image.sum()) for index in (2, 3, 0)]
    assert [teacher.knows(frames[index].image) for index in range(4)] == [True, False, True, True]
    assert teacher._runtime is None  # an engine that is open would be forked into the loader's workers


# Datasets


def test_the_frames_to_be_drawn_are_known_before_a_loader_starts(files, tmp_path):
    class Trainer:
        global_step, global_rank, world_size = 1, 0, 1

    seen: list[list[int]] = []
    splits = photos_splits(photos(tmp_path / "photos"))
    options = {"size": (32, 32), "mean": (0.0,) * 3, "std": (1.0,) * 3, "batch_size": 2, "workers": 0, "seed": 0}
    data = DepthData(splits, max_steps=9, beforehand=seen.append, **options)  # type: ignore[arg-type]
    data.trainer = Trainer()  # type: ignore[assignment]
    drawn = [index for _, index in data.train_dataloader().sampler]
    assert len(drawn) == 16  # of 9 steps one is done
    assert seen == [list(dict.fromkeys(drawn))]


def test_training_items_carry_the_teachers_map_and_other_parts_do_not(files, tmp_path):
    teacher = Teacher(files / "model.onnx", tmp_path / "cache")
    labelled = folder_splits(write_frames(tmp_path / "frames"))
    mixed = mix_splits({"labelled": labelled, "photos": photos_splits(photos(tmp_path / "photos"))})
    for splits in (labelled, mixed):
        found = taught(splits, teacher)
        assert type(found) is type(splits)
        assert found.train.name == splits.train.name
        assert getattr(found, "weights", None) == getattr(splits, "weights", None)
        for index in (0, len(found.train) - 1):
            assert torch.equal(found.train[index].teacher, teacher(splits.train[index].image))
        assert found.validation[0].teacher is None
    data = DepthData(
        taught(mixed, teacher),
        size=(32, 64),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        batch_size=2,
        max_steps=1,
        workers=0,
        seed=0,
    )
    items = [data.training_set[0, index] for index in (0, len(mixed.train) - 1)]
    assert [item["teacher"].shape for item in items] == [(1, 32, 64)] * 2
    assert [bool(item["mask"].any()) for item in items] == [True, False]


def test_a_network_names_its_teacher_that_ones_teachers_and_those_of_its_weights(files, tmp_path):
    own = Teacher(files / "model.safetensors", tmp_path)
    assert [about["file"] for about in own.lineage] == ["elder.onnx", str(files / "model.safetensors")]
    assert own.about["trained_on"] == "rooms"
    deployed = Teacher(files / "model.onnx", tmp_path)  # whose network lies beside it
    assert deployed.lineage[0]["file"] == "elder.onnx"
    assert [about["file"] for about in teachers_of("imagenet", own)] == [
        "elder.onnx",
        str(files / "model.safetensors"),
    ]
    pruned = teachers_of(str(files / "model.safetensors"), None)  # taught by nobody, but its weights were
    assert [about["sha256"] for about in pruned] == ["e1de"]
    assert len(teachers_of(str(files / "model.safetensors"), deployed)) == 2  # the elder once
    assert teachers_of("none", None) == []


# Mistakes


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["teacher=/nowhere.onnx"], r"teacher=/nowhere\.onnx: no such file"),
        (["teacher=imagenet"], "teacher=imagenet: no such file; give a trained network's"),
        (["teacher=FILES/model.onnx", "loss=mse"], "predicts inverse depth, loss=mse learns depth"),
        (["teacher=FILES/model.onnx", "trainer.max_steps=0"], "nothing is trained in 0 steps"),
        (["teacher=FILES/model.onnx", "loss.teacher=0"], "loss.teacher=0.0: must be above 0"),
        ([], "rooms: has training images without depth; give teacher=PATH"),
    ],
)
def test_what_cannot_teach_is_one_line(overrides, line, files):
    frames = Splits("rooms", [], [], labelled=False)  # type: ignore[arg-type]
    with pytest.raises(MdeError, match=line):
        build_teacher(composed(*(item.replace("FILES", str(files)) for item in overrides)), frames)


def test_no_teacher_is_needed_where_every_frame_has_depth():
    assert build_teacher(composed(), Splits("rooms", [], [])) is None  # type: ignore[arg-type]


def test_features_of_a_file_are_refused(files, monkeypatch):
    overrides = [f"teacher={files}/model.onnx", "recovery.features=1"]
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create({"overrides": {"task": overrides}}))
    with pytest.raises(MdeError, match=r"recovery\.features=1: teacher=.* shows its output alone"):
        build_teacher(composed(*overrides), Splits("rooms", [], []))  # type: ignore[arg-type]
    pruned = composed(*overrides, "prune=channel", "sparsity=0.5")  # the dense network has features to show
    assert build_teacher(pruned, Splits("rooms", [], [])) is not None  # type: ignore[arg-type]


# Runs


def test_a_run_on_photos_learns_from_the_teacher_alone_and_names_it(run_train, files, tmp_path):
    run_dir, root = tmp_path / "run", write_frames(tmp_path / "frames")
    options = [f"teacher={files}/model.onnx", "data=photos", f"data.root={photos(tmp_path / 'photos')}"]
    done = run_train(
        *options, f"data.val_root={root}", *TINY, f"hydra.run.dir={run_dir}", "logger=csv", steps=2, directory=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "4 training frames, kept in outputs/cache/teacher" in done.stdout
    record = json.loads((run_dir / "metrics.json").read_text())
    assert record["teacher"] == f"{files}/model.onnx"
    assert [about["file"] for about in record["teachers"]] == ["elder.onnx", f"{files}/model.onnx"]
    assert record["quality"].keys() == {"frames"}
    assert any("licence: not stated" in note for note in record["notes"])
    assert read_metadata(run_dir / "model.safetensors")["teachers"] == record["teachers"]
    assert len(list((tmp_path / "outputs/cache/teacher").rglob("*.npz"))) == 4
    header, *rows = (run_dir / "logs/version_0/metrics.csv").read_text().splitlines()
    logged = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    terms = [(float(row["train/data"]), float(row["train/teacher"])) for row in logged if row["train/teacher"]]
    assert terms
    assert all(data == 0 and teacher > 0 for data, teacher in terms)


def test_a_stopped_run_continues_to_the_same_weights_as_one_that_was_not(run_train, files, tmp_path):
    options = [f"teacher={files}/model.onnx", "data=mix_photos", "data@data.parts.labelled=folder", *TINY]
    options += [f"data.parts.labelled.root={write_frames(tmp_path / 'frames')}", "trainer.max_steps=3"]
    options += [f"data.parts.photos.root={photos(tmp_path / 'photos')}"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_train(*options, f"hydra.run.dir={whole}", steps=3, directory=tmp_path).returncode == 0
    early = run_train(*options, f"hydra.run.dir={stopped}", "trainer.max_minutes=0.00001", steps=3, directory=tmp_path)
    assert "to continue" in early.stdout
    for option in (f"teacher={files}/model.safetensors", "model.border=zeros"):
        exchanged = run_train(f"resume={stopped}", option, steps=3, directory=tmp_path)
        assert f"{option}: cannot be exchanged in a resumed run" in exchanged.stderr
    resumed = run_train(f"resume={stopped}", "trainer.max_minutes=null", steps=3, directory=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    expected, found = load_file(whole / "model.safetensors"), load_file(stopped / "model.safetensors")
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
