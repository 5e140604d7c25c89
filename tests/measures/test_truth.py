import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measures_data import EPS, sparse_S
from scipy.sparse import csr_array

from fluxscope.errors import FluxscopeError
from fluxscope.measures.compare import sparse_S as to_sparse
from fluxscope.measures.top_images import rank_images
from fluxscope.measures.truth import best_concepts, concept_matrix, concept_scores, token_iou, token_masks


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0.05, 0.4]))
def test_scores_equal_the_plain_loop(seed, density):
    rng = np.random.default_rng(seed)
    S, present = sparse_S(30, 5, seed, density), rng.random((30, 4)) < 0.4
    ranked = rank_images(S, np.arange(30), EPS, 6)
    scores = concept_scores(to_sparse(S), ranked.image, list("abcd"), present)
    for j in range(5):
        fires = S[:, j] > 0
        top = ranked.image[j][ranked.image[j] >= 0]
        for c in range(4):
            hits = (fires & present[:, c]).sum()
            assert scores.precision[j, c] == pytest.approx(hits / max(fires.sum(), 1))
            assert scores.recall[j, c] == pytest.approx(hits / max(present[:, c].sum(), 1))
            total = fires.sum() + present[:, c].sum()
            assert scores.f1[j, c] == pytest.approx(2 * hits / total if total else 0, abs=1e-6)
            assert scores.top_share[j, c] == pytest.approx(present[top, c].mean() if len(top) else 0)


def test_a_perfect_detector_is_found():
    attributes = [
        {"shape": ["star"] if i % 3 == 0 else ["ring", "heart"], "background": ["navy"]} for i in range(60)
    ]
    concepts, present = concept_matrix(attributes)
    assert concepts == ("background: navy", "shape: heart", "shape: ring", "shape: star")
    S = sparse_S(60, 3, 0, 0.3)
    S[:, 1] = present[:, 3] * (1 + np.arange(60))
    S[:, 2] = 0
    scores = concept_scores(to_sparse(S), rank_images(S, np.arange(60), EPS, 10).image, concepts, present)
    for by in (scores.lift(), scores.f1):
        best, value = best_concepts(scores, by)
        assert (concepts[best[1]], value[1]) == ("shape: star", pytest.approx(1))
        assert (best[2], value[2]) == (-1, 0)
    assert scores.lift()[:, 0].max() <= 0  # what every image has is no discovery


def test_token_masks():
    masks = np.zeros((2, 32, 48), bool)
    masks[0, :16, 16:32] = True
    masks[1, 16:18, :16] = True  # an eighth of the token
    covered = token_masks(masks, (2, 3))
    assert covered.shape == (6, 2)
    assert np.flatnonzero(covered[:, 0]).tolist() == [1]
    assert not covered[:, 1].any()
    assert token_masks(masks, (2, 3), 0.1)[3, 1]
    with pytest.raises(FluxscopeError, match="48 x 32 pixels don't divide into 3 x 3 tokens"):
        token_masks(masks, (3, 3))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0.0, 0.5]))
def test_token_iou_equals_the_plain_loop(seed, above):
    codes = sparse_S(40, 4, seed)
    covered = np.random.default_rng(seed).random((40, 3)) < 0.3
    iou = token_iou(csr_array(codes), covered, above)
    for j in range(4):
        fires = codes[:, j] > above * codes[:, j].max()
        for c in range(3):
            either = (fires | covered[:, c]).sum()
            assert iou[j, c] == pytest.approx((fires & covered[:, c]).sum() / either if either else 0)


def test_other_images_are_refused():
    with pytest.raises(FluxscopeError, match="3 rows of codes, 2 of truth"):
        concept_scores(csr_array(np.ones((3, 1))), np.array([[0]]), ["a"], np.ones((2, 1), bool))
