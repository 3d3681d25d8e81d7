"""Steps and views against independent implementations: torch.optim, SciPy, Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from uturn import load_data
from uturn.attacks.steps import (
    Adam,
    Cosine,
    Info,
    Linear,
    Momentum,
    PerChannel,
    Sign,
    Smooth,
    Step,
    UnitL2,
    Variance,
    When,
    chain,
    now,
)
from uturn.attacks.views import SCALES, Flip, Jpeg, Neighbour, Noise, Resample, ResizePad, Scale
from uturn.data.channels import CHANNELS
from uturn.errors import ArgumentError
from uturn.rng import generator
from uturn.victims.victim import to_pixels

GRADIENTS = torch.randn(6, 2, 3, 9, 7, generator=torch.Generator().manual_seed(0))


def walk(step: Step) -> list[Tensor]:
    """The updates that ``step`` makes of six gradients."""
    state, updates = step.init(torch.zeros(2, 3, 9, 7)), []
    for index, grad in enumerate(GRADIENTS):
        update, state = now(step, When(index, len(GRADIENTS))).update(grad, state, Info(index))
        updates.append(update)
    return updates


def test_adam_is_torchs_adam() -> None:
    parameter = torch.zeros(2, 3, 9, 7, requires_grad=True)
    optimiser = torch.optim.Adam([parameter], lr=0.7, eps=1e-12, maximize=True)
    for grad, update in zip(GRADIENTS, walk(Adam(0.7)), strict=True):
        before = parameter.detach().clone()
        parameter.grad = grad.clone()
        optimiser.step()
        torch.testing.assert_close(update, parameter.detach() - before, rtol=1e-4, atol=1e-5)


def test_adam_does_not_depend_on_the_scale_of_the_gradient() -> None:
    state = Adam().init(torch.zeros(2, 3, 9, 7))
    tiny = Adam().update(1e-12 * GRADIENTS[0], state, Info(0))[0]
    torch.testing.assert_close(tiny, Adam().update(GRADIENTS[0], state, Info(0))[0])


def test_momentum_is_the_published_sum() -> None:
    expected = torch.zeros(2, 3, 9, 7)
    for grad, plain, look in zip(
        GRADIENTS, walk(Momentum(0.8)), walk(Momentum(0.8, nesterov=True)), strict=True
    ):
        unit = grad / grad.abs().mean((1, 2, 3), keepdim=True)
        expected = 0.8 * expected + unit
        torch.testing.assert_close(plain, expected)
        torch.testing.assert_close(look, 0.8 * expected + unit)


def test_smoothing_is_scipys_gaussian() -> None:
    ours = Smooth(1.5).update(GRADIENTS[0], None, Info(0))[0]
    theirs = gaussian_filter(
        GRADIENTS[0].double().numpy(), (0, 0, 1.5, 1.5), mode="constant", radius=(0, 0, 5, 5)
    )
    torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), rtol=1e-5, atol=1e-6)


def test_unit_l2_has_its_length_and_a_zero_gradient_stays() -> None:
    for update in walk(UnitL2(5.0)):
        torch.testing.assert_close(update.flatten(1).norm(dim=1), torch.full((2,), 5.0))
    still = UnitL2(5.0).update(torch.zeros(1, 3, 2, 2), None, Info(0))[0]
    assert not still.any()


def test_schedules_run_from_start_to_end() -> None:
    for schedule in (Cosine(3, 0.5), Linear(3, 0.5)):
        sizes = [schedule(When(i, 7)) for i in range(7)]
        assert (sizes[0], sizes[-1]) == (3, pytest.approx(0.5))
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[3] == pytest.approx(1.75)
        assert schedule(When(0, 1)) == 3


def test_a_chain_passes_on() -> None:
    composed = walk(chain(Momentum(), Sign(Linear(2, 1))))
    for index, (update, direction) in enumerate(zip(composed, walk(Momentum()), strict=True)):
        torch.testing.assert_close(update, (2 - index / 5) * direction.sign())


def test_variance_tuning_adds_what_varied_one_step_before() -> None:
    """Wang and He: v ← mean of ∇J around x − ∇J(x); the next direction is g + v."""
    state = Variance().init(GRADIENTS[0])
    before = torch.zeros_like(GRADIENTS[0])
    for index in range(3):
        own, *around = GRADIENTS[index], 2 * GRADIENTS[index + 1], 3 * GRADIENTS[index + 2]
        mean = (own + sum(around)) / 3
        out, state = Variance().update(mean, state, Info(index, views=3, first=own))
        torch.testing.assert_close(out, own + before)
        before = sum(around) / 2 - own
    with pytest.raises(ArgumentError, match="Neighbour"):
        Variance().update(GRADIENTS[0], state, Info(0))


def test_per_channel_multiplies() -> None:
    for update, grad in zip(walk(chain(Sign(2), PerChannel((1, 2, 3)))), GRADIENTS, strict=True):
        assert torch.equal(update, 2 * grad.sign() * torch.tensor([1, 2, 3])[:, None, None])


# -- views ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    query = load_data("glyphs").query
    return torch.cat(
        [to_pixels(torch.from_numpy(query.read(i)).permute(2, 0, 1)[None]) for i in (0, 600)]
    )


def draw() -> list[np.random.Generator]:
    return [generator(0, name, "views") for name in ("a", "b")]


def test_the_papers_scales(pixels: Tensor) -> None:
    sizes = [tuple(view(pixels, draw()).shape[-2:]) for view in SCALES]
    assert sizes == [(32, 32), (23, 23), (16, 16)]
    half = np.asarray(
        Image.fromarray((pixels[0] * 255).byte().permute(1, 2, 0).numpy()).resize(
            (16, 16), Image.Resampling.BILINEAR
        )
    )
    ours = Scale(0.5)(pixels, draw())[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(ours - half).max() <= 1.01


def test_flip_mirrors(pixels: Tensor) -> None:
    assert torch.equal(Flip()(pixels, draw())[..., 0], pixels[..., -1])


def test_random_views_follow_the_picture_not_the_batch(pixels: Tensor) -> None:
    for view in (Noise(4), Neighbour(4), ResizePad(0.3, chance=1.0)):
        both = view(pixels, draw())
        assert torch.equal(both, view(pixels, draw()))
        assert torch.equal(both[1:], view(pixels[1:], draw()[1:]))
        assert not torch.equal(both, pixels)
        assert both.shape == pixels.shape
    assert torch.equal(ResizePad(chance=0.0)(pixels, draw()), pixels)


def test_noise_has_its_size(pixels: Tensor) -> None:
    levels = (Noise(4.0)(pixels, draw()) - pixels) * 255
    assert float(levels.std()) == pytest.approx(4, rel=0.05)


def test_neighbours_fill_their_cube(pixels: Tensor) -> None:
    levels = (Neighbour(6.0)(pixels, draw()) - pixels) * 255
    assert 5.9 < float(levels.abs().max()) <= 6.001
    assert float(levels.std()) == pytest.approx(6 / 3**0.5, rel=0.05)


def test_resampling_is_the_channel_that_pictures_must_survive(pixels: Tensor) -> None:
    picture = (pixels[0] * 255).round().byte().permute(1, 2, 0).numpy()
    ours = Resample(0.5)(pixels, draw())[0].permute(1, 2, 0).numpy() * 255
    # Pillow rounds after each of its four passes, by half a level at the most.
    assert np.abs(ours - CHANNELS["resize"](picture)).max() <= 2.01


@pytest.mark.parametrize("quality", [95, 75, 40])
def test_jpeg_comes_close_to_the_real_one(pixels: Tensor, quality: int) -> None:
    pixels = pixels[:, :, :27, :30]  # not whole blocks
    ours = (Jpeg(quality)(pixels, draw())[0].permute(1, 2, 0) * 255).numpy()
    picture = (pixels[0] * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    theirs = np.asarray(Image.open(buffer)).astype(float)
    assert ours.shape == theirs.shape
    lost = np.abs(theirs - picture).mean()
    assert np.abs(ours - theirs).mean() < lost + 1


def test_every_view_lets_gradients_through(pixels: Tensor) -> None:
    for view in (
        *SCALES,
        Flip(),
        Noise(2),
        Neighbour(2),
        Resample(),
        ResizePad(chance=1.0),
        Jpeg(80),
    ):
        leaf = pixels.clone().requires_grad_()
        view(leaf, draw()).square().sum().backward()
        assert leaf.grad is not None
        assert float(leaf.grad.abs().mean()) > 0.01
