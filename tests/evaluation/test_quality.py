import numpy as np
import pytest
import torch
from PIL import Image

from mde.data.folder import FolderFrames
from mde.data.sample import Frames, Sample, Splits
from mde.data.synthetic import SyntheticFrames
from mde.errors import MdeError
from mde.evaluation.quality import (
    check_truth,
    evaluate,
    evaluation_sets,
    network_predictor,
    ramp_predictor,
    spread,
)
from mde.models import build_model
from tests.conftest import write_frames


class Given:
    """Frames that a test makes."""

    name, cap = "given", 10.0

    def __init__(self, *depths: torch.Tensor):
        self.depths = depths

    def __len__(self) -> int:
        return len(self.depths)

    def __getitem__(self, index: int) -> Sample:
        depth = self.depths[index]
        return Sample(torch.zeros(3, 24, 32, dtype=torch.uint8), depth, depth > 0, self.name, str(index))


def test_a_prediction_that_is_affine_in_inverse_depth_is_perfect_at_any_size(tmp_path):
    rows = torch.linspace(1, 0.3, 24)[None, :, None].expand(1, 24, 32)

    def half_size(sample: Sample) -> torch.Tensor:
        return 3 * torch.nn.functional.interpolate(rows[None], (12, 32), mode="bilinear") + 7

    quality = evaluate(half_size, Given(1 / rows, 2 / rows))
    assert quality["frames"] == 2
    assert quality["delta1"] == 1
    assert quality["abs_rel"] < 0.01  # the first and the last row are extrapolated


def test_a_network_that_predicts_depth_is_resized_and_fitted_in_depth():
    rows = torch.linspace(1, 4, 24)[None, :, None].expand(1, 24, 32)

    def half_size(sample: Sample) -> torch.Tensor:
        return 1 / (3 * torch.nn.functional.interpolate(rows[None], (12, 32), mode="bilinear") + 7)

    inside = rows.clone()
    inside[:, [0, -1]] = 0  # extrapolated
    in_depth = evaluate(half_size, Given(inside), align="depth")
    assert in_depth["alignment"] == "per_frame_in_depth"
    assert in_depth["abs_rel"] < 1e-5
    assert evaluate(half_size, Given(inside))["abs_rel"] > 0.01


def test_each_frame_is_handed_out_with_its_own_figures_and_scene(tmp_path):
    frames, found = FolderFrames(write_frames(tmp_path / "frames")), []
    quality = evaluate(
        ramp_predictor, frames, on_frame=lambda sample, figures: found.append((sample.frame, sample.scene, figures))
    )
    assert [(frame, scene) for frame, scene, _ in found] == list(zip(frames.ids, frames.scenes, strict=True))
    assert np.mean([figures["delta1"] for *_, figures in found]) == pytest.approx(quality["delta1"])


def test_frames_without_a_valid_pixel_are_counted_and_left_out():
    depth = torch.linspace(1, 4, 24)[None, :, None].repeat(1, 1, 32)
    quality = evaluate(ramp_predictor, Given(depth, torch.zeros_like(depth)))
    assert (quality["frames"], quality["skipped_frames"]) == (1, 1)


def test_a_set_without_any_valid_pixel_is_an_error_that_names_it():
    with pytest.raises(MdeError, match="given: no frame has a depth up to 10 m"):
        evaluate(ramp_predictor, Given(torch.zeros(1, 24, 32)))


def test_two_sets_are_the_same_by_what_is_evaluated_and_by_nothing_else(tmp_path):
    def content(folder: str, limit: int | None = None, **meta: object) -> str:
        root = write_frames(tmp_path / folder, frames=3, **meta)
        return evaluate(ramp_predictor, FolderFrames(root), limit=limit)["content"]

    first = content("first")
    assert content("second", name="another") == first, "the name plays a part"
    others = [content("capped", environment="outdoor"), content("unit", depth_unit_m=0.0011), content("fewer", limit=2)]
    moved = write_frames(tmp_path / "pixel", frames=3)
    for part, pixel in (("rgb", (0, 0, 1)), ("depth", 5)):
        with Image.open(moved / part / "001.png") as image:
            image.putpixel((9, 9), pixel)
            image.save(moved / part / "001.png")
        others.append(evaluate(ramp_predictor, FolderFrames(moved))["content"])
    rendered = [SyntheticFrames(2, (32, 32), world=world) for world in ("rooms", "streets")]
    others += [evaluate(ramp_predictor, frames)["content"] for frames in rendered]
    assert len({first, *others}) == 1 + len(others)


def test_a_set_beyond_its_cap_is_refused_before_anything_is_computed_with_the_remedy_that_fits(tmp_path):
    def sets(name: str, **meta: object) -> list[Frames]:
        frames = FolderFrames(write_frames(tmp_path / name, **meta))
        return evaluation_sets(Splits(name, frames, frames), [])

    assert len(sets("near")) == 1
    with pytest.raises(MdeError, match=r'street: .* up to 10 m, the nearest is 20 m; .*"outdoor"'):
        sets("street", depth_unit_m=0.02)
    assert len(sets("marked", depth_unit_m=0.02, environment="outdoor")) == 1
    with pytest.raises(MdeError, match="far: no frame has a depth up to 10 m; is the depth unit right"):
        sets("far", depth_unit_m=0.1)
    blind = Given(torch.zeros(1, 24, 32))
    with pytest.raises(MdeError, match="given: no frame has a depth up to 10 m; is the depth unit right"):
        check_truth([blind])
    check_truth([Given(torch.zeros(1, 24, 32), torch.ones(1, 24, 32))])  # one frame is enough


def test_another_set_of_the_same_name_is_refused_in_one_line(tmp_path):
    first, second = (write_frames(tmp_path / place / "room") for place in ("kitchen", "office"))
    frames = FolderFrames(first)
    with pytest.raises(MdeError, match=r"another set is called 'room' already; .*\"name\" in its meta\.json"):
        evaluation_sets(Splits("room", frames, frames), [str(second)])


def test_a_set_is_refused_for_the_frames_that_are_evaluated():
    """As many as will be, and the same ones."""
    frames = Given(torch.zeros(1, 24, 32), torch.ones(1, 24, 32))
    assert evaluation_sets(Splits("late", frames, frames), []) == [frames]
    with pytest.raises(MdeError, match="no frame has a depth"):
        evaluation_sets(Splits("late", frames, frames), [], limit=1)
    with pytest.raises(MdeError, match=r"evaluation\.frames=0: must be at least 1"):
        evaluation_sets(Splits("late", frames, frames), [], limit=0)


def test_limits_spread_evenly_and_never_repeat():
    assert spread(10, None) == list(range(10))
    assert spread(3, 8) == [0, 1, 2]
    assert spread(100, 4) == [0, 25, 50, 75]
    assert spread(0, 4) == []


def test_a_network_sees_the_stretched_normalised_image(tmp_path):
    model = build_model("midas_small", encoder="lite0")
    sample = FolderFrames(write_frames(tmp_path / "tiny", size=(64, 96)))[0]
    prediction = network_predictor(model, (64, 96))(sample)
    pixels = sample.image.numpy().transpose(1, 2, 0) / 255.0
    normalised = (pixels - np.array(model.mean)) / np.array(model.std)
    with torch.no_grad():
        expected = model(torch.from_numpy(normalised.transpose(2, 0, 1)[None]).float())
    assert torch.allclose(prediction, expected, atol=1e-5)
    assert network_predictor(model, (32, 64))(sample).shape == (1, 1, 32, 64)
