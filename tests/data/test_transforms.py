import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mde.data import transforms
from mde.data.sample import Sample
from mde.data.sampler import StreamSampler
from mde.data.transforms import TrainingSet, augment, crop, flip, normalise, resize_image

HEIGHT, WIDTH = 48, 64
GAIN = 4  # colour counts per pixel
READING = 0.2  # pixels: how well a position is known from colour (1/8 for rounding, the rest for the resizing filter)
SIZE = (30, 40)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
K = torch.tensor([[52.0, 0, 33.5], [0, 50.0, 22.0], [0, 0, 1]])


def coordinates_as_colour(depth_step=1):
    """Red is the column, green the row; depth is 1 m + 1 cm a column, on a grid `depth_step` times coarser."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    image = torch.stack([GAIN * x, GAIN * y, torch.full_like(x, 128)]).to(torch.uint8)
    centres = (torch.arange(WIDTH // depth_step) + 0.5) * depth_step - 0.5
    depth = (1 + 0.01 * centres).expand(1, HEIGHT // depth_step, -1).clone()
    return Sample(image, depth, torch.ones_like(depth, dtype=torch.bool), "set", "0", K.clone())


def columns_and_rows(image):
    """Where each pixel of a view of `coordinates_as_colour` came from, without the border that resizing clamps."""
    column, row, _ = image[:, 2:-2, 2:-2].double() / GAIN
    return column, row


@pytest.fixture
def plain_colour(monkeypatch):
    monkeypatch.setattr(transforms, "jitter_colour", lambda image: image)


class Scenes:
    """Random frames of two sizes, the second with depth at half the size, a third of it unknown."""

    name, cap = "scenes", 10.0

    def __len__(self):
        return 6

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        height, width = ((60, 80), (44, 100))[index % 2]
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        step = 1 + index % 2
        depth = torch.rand(1, height // step, width // step, generator=generator) * 9 + 0.5
        depth[torch.rand(depth.shape, generator=generator) < 1 / 3] = 0
        return Sample(image, depth, depth > 0, self.name, str(index))


# Resizing


def triangle_filter(length, size):
    """Rows of weights (size, length): an antialiased bilinear filter, written out."""
    scale = length / size
    support = max(scale, 1.0)
    weights = np.zeros((size, length))
    for i in range(size):
        for j in range(length):
            weights[i, j] = max(0.0, 1 - abs((j + 0.5) - (i + 0.5) * scale) / support)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(7, 9), (20, 31), (40, 50), (13, 50)])
def test_resizing_is_the_antialiased_triangle_filter(size):
    image = torch.rand(2, 3, 20, 31, dtype=torch.float64)
    rows, columns = triangle_filter(20, size[0]), triangle_filter(31, size[1])
    expected = rows @ image.numpy() @ columns.T
    np.testing.assert_allclose(resize_image(image, size).numpy(), expected, atol=1e-6)


def test_uint8_becomes_0_to_1_and_a_single_image_resizes_like_a_batch():
    image = torch.randint(0, 256, (3, 20, 31), dtype=torch.uint8)
    assert torch.equal(resize_image(image, (20, 31)), image.float() / 255)
    assert torch.equal(resize_image(image, (8, 8)), resize_image(image[None], (8, 8))[0])
    assert torch.allclose(resize_image(image, (8, 8)), resize_image(image.float(), (8, 8)) / 255, atol=1e-6)


def test_normalising_is_per_channel():
    image = torch.rand(2, 3, 4, 5)
    expected = np.stack([(image[:, c].numpy() - MEAN[c]) / STD[c] for c in range(3)], axis=1)
    np.testing.assert_allclose(normalise(image, MEAN, STD).numpy(), expected, rtol=1e-4, atol=1e-5)


# Consistency of image, depth and intrinsics


@pytest.mark.usefixtures("plain_colour")
@pytest.mark.parametrize("depth_step", [1, 4])
def test_image_and_depth_still_correspond_after_augmentation(depth_step):
    sample = coordinates_as_colour(depth_step)
    means = []
    for seed in range(40):
        view = augment(sample, SIZE, seed)
        column, _ = columns_and_rows(view.image)
        seen = (view.depth[0].double()[2:-2, 2:-2] - 1) / 0.01  # the column that the depth belongs to
        assert (seen - column).abs().max() <= depth_step / 2 + READING
        means.append((seen - column).mean())
    assert torch.stack(means).mean().abs() < 0.1 * depth_step


@pytest.mark.usefixtures("plain_colour")
@pytest.mark.parametrize(("height", "width"), [(HEIGHT, WIDTH), (96, 96), (12, 20)])
def test_a_teachers_map_of_any_shape_is_still_that_of_the_image_after_augmentation(height, width):
    sample = coordinates_as_colour()
    columns = (torch.arange(width) + 0.5) * (WIDTH / width) - 0.5  # of the image, under each cell
    rows = (torch.arange(height) + 0.5) * (HEIGHT / height) - 0.5
    for seed in range(30):
        for axis, cells in enumerate([columns.expand(height, -1), rows[:, None].expand(-1, width)]):
            sample.teacher = cells[None].clone()
            view = augment(sample, SIZE, seed)
            assert view.teacher.shape == (1, *SIZE)
            expected = columns_and_rows(view.image)[axis]
            inside = (expected > cells.min()) & (expected < cells.max())  # beyond its outermost cells it stays constant
            assert inside.float().mean() > 0.8
            error = (view.teacher[0, 2:-2, 2:-2].double() - expected)[inside].abs().max()
            assert error < READING + 0.1


@pytest.mark.usefixtures("plain_colour")
def test_rays_of_the_new_intrinsics_are_the_old_rays():
    sample = coordinates_as_colour()
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)]).double()[:, 2:-2, 2:-2]
    mirrored = []
    for seed in range(25):
        view = augment(sample, SIZE, seed)
        column, row = columns_and_rows(view.image)
        new = torch.einsum("ij,jhw->ihw", view.intrinsics.double().inverse(), pixels)
        old = torch.einsum("ij,jhw->ihw", K.double().inverse(), torch.stack([column, row, torch.ones_like(row)]))
        mirrored.append(bool(column[0, 0] > column[0, -1]))
        if mirrored[-1]:
            old[0] = -old[0]  # the mirrored world
        focal = torch.tensor([K[0, 0], K[1, 1], 1.0]).double()[:, None, None]
        error = (new - old) * focal  # in pixels of the original image
        assert error.abs().max() < READING
        assert view.intrinsics[0, 0] > 0
        assert view.intrinsics[1, 1] > 0
    assert 5 < sum(mirrored) < 20


def test_depth_and_mask_keep_only_values_that_were_measured():
    sample = Scenes()[1]
    for seed in range(10):
        view = augment(sample, SIZE, seed)
        assert torch.isin(view.depth, sample.depth).all()
        assert torch.equal(view.mask, view.depth > 0)
        assert 0.5 < view.mask.float().mean() < 0.8


def test_known_sky_stays_infinite_and_valid():
    sample = coordinates_as_colour()
    sample.depth[:, : HEIGHT // 2] = torch.inf
    view = crop(sample, (0, 0, HEIGHT, WIDTH), SIZE)
    assert torch.isinf(view.depth[:, : SIZE[0] // 2]).all()
    assert torch.isfinite(view.depth[:, SIZE[0] // 2 :]).all()
    assert view.mask.all()


def test_a_crop_is_the_box_cut_out():
    sample = coordinates_as_colour()
    view = crop(sample, (5, 10, 30, 40), SIZE)  # same size: nothing is resampled
    assert torch.equal(view.image, sample.image[:, 5:35, 10:50])
    assert torch.equal(view.depth, sample.depth[:, 5:35, 10:50])
    assert view.teacher is None
    assert view.intrinsics[:2, 2].tolist() == [K[0, 2] - 10, K[1, 2] - 5]


def test_flipping_twice_changes_nothing():
    sample = coordinates_as_colour()
    sample.teacher = torch.rand(1, 7, 9)
    twice = flip(flip(sample))
    assert torch.equal(twice.teacher, sample.teacher)
    assert torch.equal(flip(sample).teacher, sample.teacher.flip(2))
    assert torch.equal(twice.image, sample.image)
    assert torch.equal(twice.depth, sample.depth)
    assert torch.allclose(twice.intrinsics, K)


def test_a_fine_pattern_does_not_alias_into_a_small_view():
    y, x = torch.meshgrid(torch.arange(480), torch.arange(640), indexing="ij")
    checkers = ((x + y) % 2 * 255).to(torch.uint8).expand(3, -1, -1)
    depth = torch.ones(1, 480, 640)
    view = crop(Sample(checkers, depth, depth > 0, "set", "0"), (3, 5, 450, 600), (60, 81))
    assert view.image[:, 1:-1, 1:-1].float().std() < 3


def test_augmentation_does_not_change_the_frame_it_is_given():
    sample, untouched = coordinates_as_colour(), coordinates_as_colour()
    augment(sample, SIZE, 0)
    assert torch.equal(sample.image, untouched.image)
    assert torch.equal(sample.depth, untouched.depth)
    assert torch.equal(sample.intrinsics, untouched.intrinsics)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (375, 1242)])
def test_frames_of_any_size_and_without_intrinsics_are_augmented(shape):
    depth = torch.full((1, *shape), 2.0)
    sample = Sample(torch.zeros(3, *shape, dtype=torch.uint8), depth, depth > 0, "set", "0")
    for seed in range(5):
        view = augment(sample, SIZE, seed)
        assert view.image.shape == (3, *SIZE)
        assert view.mask.all()
        assert view.intrinsics is None


# Randomness


def test_augmentation_is_a_function_of_the_seed_and_leaves_the_global_generator_alone():
    sample = Scenes()[0]
    torch.manual_seed(1)
    first = [augment(sample, SIZE, seed) for seed in range(6)]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = [augment(sample, SIZE, seed) for seed in reversed(range(6))][::-1]
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.depth, b.depth)
    assert not torch.equal(first[0].depth, first[1].depth)


def test_colour_changes_do_not_move_anything(monkeypatch):
    sample = coordinates_as_colour()
    coloured = [augment(sample, SIZE, seed) for seed in range(8)]
    monkeypatch.setattr(transforms, "jitter_colour", lambda image: image)
    plain = [augment(sample, SIZE, seed) for seed in range(8)]
    assert all(torch.equal(a.depth, b.depth) for a, b in zip(coloured, plain, strict=True))
    changed = [not torch.equal(a.image, b.image) for a, b in zip(coloured, plain, strict=True)]
    assert sum(changed) >= 4


def test_a_training_item_has_the_documented_form():
    item = TrainingSet(Scenes(), SIZE, MEAN, STD, seed=0)[(5, 1)]
    assert {key: getattr(value, "shape", ()) for key, value in item.items()} == {
        "image": (3, *SIZE),
        "depth": (1, *SIZE),
        "mask": (1, *SIZE),
    }
    assert (item["image"].dtype, item["depth"].dtype, item["mask"].dtype) == (torch.float32, torch.float32, torch.bool)
    low, high = -0.5 / 0.225, 0.6 / 0.224  # what 0 and 1 are after normalising, roughly
    assert low < item["image"].mean() < high
    assert item["image"].std() > 0.1


def test_without_augmentation_the_whole_frame_is_stretched():
    frames = Scenes()
    item = TrainingSet(frames, (30, 40), MEAN, STD, seed=0, augment=False)[(5, 0)]
    assert torch.allclose(item["image"], normalise(resize_image(frames[0].image, (30, 40)), MEAN, STD), atol=0.01)
    assert torch.equal(item["depth"], frames[0].depth[:, 1::2, 1::2])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_stream_does_not_depend_on_workers_or_on_where_it_starts(workers):
    dataset = TrainingSet(Scenes(), SIZE, MEAN, STD, seed=7)
    expected = [dataset[key] for key in StreamSampler([6], [1.0], 7, 16)]
    resumed = StreamSampler([6], [1.0], 7, 16, start=8)
    for step, batch in enumerate(DataLoader(dataset, 4, sampler=resumed, num_workers=workers)):
        wanted = expected[8 + 4 * step : 12 + 4 * step]
        assert torch.equal(batch["image"], torch.stack([item["image"] for item in wanted]))
        assert torch.equal(batch["depth"], torch.stack([item["depth"] for item in wanted]))


def test_the_same_frame_is_augmented_anew_in_every_draw_and_for_every_seed():
    dataset = TrainingSet(Scenes(), SIZE, MEAN, STD, seed=7)
    other = TrainingSet(Scenes(), SIZE, MEAN, STD, seed=8)
    assert not torch.equal(dataset[(0, 0)]["depth"], dataset[(1, 0)]["depth"])
    assert not torch.equal(dataset[(0, 0)]["depth"], other[(0, 0)]["depth"])
