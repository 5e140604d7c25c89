import numpy as np
import pytest

from fluxscope.draw.truth_plot import detectors_and_concepts, rows_to_draw

CONCEPTS = ["shape: star", "color: red", "pair: red star", "pair: blue ring", "place: object"]


def test_pairs_are_drawn_as_their_mean_and_the_attributes_mean_comes_first():
    values = np.arange(10).reshape(5, 2) / 10
    names, rows = rows_to_draw(CONCEPTS, values)
    expected = ["mean of 2 attributes", "shape: star", "color: red", "place: object", "mean of 2 pairs"]
    assert names == expected
    assert rows == pytest.approx(np.array([[0.1, 0.2], [0, 0.1], [0.2, 0.3], [0.8, 0.9], [0.5, 0.6]]))
    names, rows = rows_to_draw(["shape: star"], np.ones((1, 3)))
    assert (names, rows.shape) == (["mean of 1 attributes", "shape: star"], (2, 3))


def test_a_better_detector_is_brighter():
    def picture(value):
        drawn = detectors_and_concepts(["shape: star", "color: red"], [("here", "sae", [value, value])] * 3)
        return np.asarray(drawn.convert("L"), float)

    dark, light = picture(0.1), picture(0.95)
    assert dark.shape == light.shape
    changed = dark != light
    assert light[changed].mean() > dark[changed].mean() + 50
