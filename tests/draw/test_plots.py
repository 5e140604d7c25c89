import numpy as np
import pytest

from fluxscope.draw import layer_plots, plots

RNG = np.random.default_rng(0)
DIRECTIONS = RNG.standard_normal((3, 40)).astype(np.float32)
FREQUENCY = np.array([0, 0, 0.0125, 0.1, 1], np.float32)

DRAWINGS = {
    "decoder_directions": lambda: plots.decoder_directions(np.arange(3), DIRECTIONS, DIRECTIONS),
    "one direction": lambda: plots.decoder_directions(np.arange(1), DIRECTIONS[:1], DIRECTIONS[:1]),
    "similarity_matrix": lambda: plots.similarity_matrix(np.eye(3), [4, 5, 6]),
    "rectangular matrix": lambda: plots.similarity_matrix(np.zeros((2, 30)), [1, 2], range(30)),
    "all dead": lambda: plots.frequency_comparison({"a": np.zeros(4)}, 1),
    "frequency_comparison": lambda: plots.frequency_comparison({"a": FREQUENCY, "b": FREQUENCY}, 80),
    "partner_histogram": lambda: layer_plots.partner_histogram(
        {"S": RNG.random(50), "token maps": np.array([0.5, np.nan]), "none": np.full(3, np.nan)},
        {"S": RNG.random(50) / 2},
    ),
    "steps_profile": lambda: layer_plots.steps_profile(
        np.array([1, 7, 14]), RNG.random((8, 3)), range(8), np.array([0.5, 0.7, 0.9]), 20, 14
    ),
    "a silent feature": lambda: layer_plots.steps_profile(
        np.array([14]), np.zeros((1, 1)), [5], np.array([-0.2]), 20, 14
    ),
    "l0_comparison": lambda: plots.l0_comparison({"a": RNG.random(9) * 50, "b": np.full(9, 7.0)}),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_plots_are_pictures_and_leave_no_trace(name):
    import matplotlib

    before = dict(matplotlib.rcParams)
    picture = DRAWINGS[name]()
    assert picture.mode == "RGB"
    assert min(picture.size) > 200
    assert np.asarray(picture).std() > 5
    assert dict(matplotlib.rcParams) == before


def test_bins_have_no_gaps_and_hold_every_possible_frequency():
    for n in (1, 7, 80, 20000):
        bins = plots.frequency_bins(n)
        counts = np.arange(1, min(n, 500) + 1) / n
        assert bins[0] < counts[0]
        assert bins[-1] > 1
        assert (np.diff(bins) >= 1 / n - 1e-12).all()
