import numpy as np
import pytest

from fluxscope.draw.training_plots import Frontier, feature_density, sparsity_frontier, training_curves

BATCHES = [
    {"step": step, "loss": 1 / step, "explained_variance": 1 - 1 / step, "l0": 16.0, "dead_share": 0.01}
    for step in (1, 100, 200)
]
HELD_OUT = {"step": 200, "held_out": {"explained_variance": 0.5, "l0": 16.0, "dead": 0.02}}
TOPK = Frontier(["", ""], [2.0, 8.0], [0.5, 0.8], [0.6, 0.9], [0.1, 0.2], [0.0, -3.0])
L1 = Frontier(["L1 0.1", "L1 0.4"], [40.0, 9.0], [0.9, 0.7], [], [0.3, 0.2], [])

DRAWINGS = {
    "a whole run": lambda: training_curves([*BATCHES, HELD_OUT]),
    "no evaluation yet": lambda: training_curves(BATCHES),
    "one step": lambda: training_curves(BATCHES[:1]),
    "densities": lambda: feature_density(np.array([0, 1e-4, 0.01, 0.5, 1], np.float32), 10_000),
    "all dead": lambda: feature_density(np.zeros(4, np.float32), 100),
    "one token": lambda: feature_density(np.ones(4, np.float32), 1),
    "a frontier": lambda: sparsity_frontier({"double.15.ff": TOPK}),
    "two, one of them not spliced": lambda: sparsity_frontier({"double.5.ff": TOPK, "double.15.ff": L1}),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_plots_are_pictures_and_leave_no_trace(name):
    import matplotlib

    before = dict(matplotlib.rcParams)
    picture = DRAWINGS[name]()
    assert picture.mode == "RGB"
    assert min(picture.size) > 300
    assert np.asarray(picture).std() > 5
    assert dict(matplotlib.rcParams) == before


def test_the_number_of_dead_features_is_in_the_picture():
    """Dead features have a bar of their own: without them the picture is another."""
    alive = np.full(200, 0.02, np.float32)
    some_dead = np.concatenate([alive, np.zeros(50, np.float32)])
    with_dead, without = (np.asarray(feature_density(each, 1000)).astype(int) for each in (some_dead, alive))
    vermillion = [((picture - [213, 94, 0]) ** 2).sum(-1) < 300 for picture in (with_dead, without)]
    assert vermillion[0].sum() > vermillion[1].sum() + 500
