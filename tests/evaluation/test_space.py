"""The map of the joint space, on points whose plane is known."""

import pytest
import torch

from cleft.evaluation.space import map_space


def test_the_axes_are_the_two_directions_in_which_images_differ_most():
    images = torch.tensor([[0.0, 3, 0.1, 5], [0, -3, 0.1, 5], [1, 0, 0.1, 5], [-1, 0, 0.1, 5]])
    found = map_space(images, torch.tensor([[0.0, 2, 0, 0], [0, -2, 0, 0]]), [0, 1, 0, 1])
    assert found.images == ((0, 3.0, 0.0), (1, -3.0, 0.0), (0, 0.0, 1.0), (1, 0.0, -1.0))
    assert found.prompts == ((2.0, 0.0), (-2.0, 0.0))
    assert found.shares == (0.9, 0.1)  # 18 and 2 of 20 squared units


def test_the_gap_between_images_and_prompts_is_told_and_taken_out():
    images = torch.tensor([[1.0, 4], [-1, 4]])
    found = map_space(images, torch.tensor([[1.0, 0], [-1, 0]]), [0, 1])
    assert found.gap == 4
    assert [(x, y) for _, x, y in found.images] == list(found.prompts) == [(1, 0), (-1, 0)]


def test_the_map_does_not_hang_on_the_sign_of_a_direction():
    images = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    forth, back = map_space(images, images[:2], [0] * 20), map_space(images.flip(0), images[:2], [0] * 20)
    for mine, theirs in zip(sorted(forth.images), sorted(back.images), strict=True):
        assert mine == pytest.approx(theirs, abs=2e-4)


def test_too_many_images_are_thinned_out_by_class():
    images = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    found = map_space(images, images[:2], [0] * 900 + [1] * 100, most=50)
    classes = [index for index, _, _ in found.images]
    assert (classes.count(0), classes.count(1), found.left_out) == (45, 5, 950)


def test_a_single_image_lies_in_the_middle():
    found = map_space(torch.tensor([[0.6, 0.8, 0]]), torch.tensor([[1.0, 0, 0]]), [0])
    assert found.images == ((0, 0.0, 0.0),)
    assert found.shares == (0, 0)


def test_images_that_are_all_equal_have_no_direction():
    found = map_space(torch.tensor([[0.6, 0.8]] * 3), torch.tensor([[1.0, 0], [0, 1]]), [0, 1, 1])
    assert {(x, y) for _, x, y in found.images} == {(0.0, 0.0)}
