"""What other libraries wrote, all kinds and options that they have: read as they read it, or refused by name.

`make_foreign_checkpoints.py` let each library write the files under foreign/, and keep beside them what it
makes of a batch itself.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxscope.errors import CheckpointError
from fluxscope.sae.formats import Stated, load, odd_sparsity

FOREIGN = Path(__file__).parent / "foreign"
CASES = sorted(path.relative_to(FOREIGN).as_posix() for path in FOREIGN.glob("*/*"))

OPEN = {
    "dictionary_learning/topk_without_config": Stated("topk"),
    "dictionary_learning/batch_topk_without_config": Stated("batch_topk"),
    "dictionary_learning/topk_of_another_k": Stated(k=4),
    "openai/topk": Stated(raw=True),
    "openai/topk_of_the_config": Stated(raw=True),
}
"""Files that do not say it themselves, with what the user says."""

READ_AS = {
    "dictionary_learning/standard": "relu",
    "dictionary_learning/standard_april": "relu",
    "dictionary_learning/topk": "topk",
    "dictionary_learning/topk_of_another_k": "topk",
    "dictionary_learning/topk_without_config": "topk",
    "dictionary_learning/batch_topk": "batch_topk",
    "dictionary_learning/batch_topk_without_config": "batch_topk",
    "dictionary_learning/matryoshka": "matryoshka_batch_topk",
    "dictionary_learning/jumprelu": "jumprelu",
    "openai/relu": "relu",
    "openai/relu_tied": "relu",
    "openai/topk": "topk",
    "openai/topk_of_the_config": "topk",
    "sae_lens/standard": "relu",
    "sae_lens/standard_not_centred": "relu",
    "sae_lens/standard_trained": "relu",
    "sae_lens/standard_checkpoint_scaled": "relu",
    "sae_lens/topk": "topk",
    "sae_lens/topk_rescaled": "topk",
    "sae_lens/topk_rescaled_zero_row": "topk",
    "sae_lens/topk_trained": "topk",
    "sae_lens/topk_checkpoint": "topk",
    "sae_lens/topk_checkpoint_not_rescaled": "topk",
    "sae_lens/batch_topk_trained": "jumprelu",
    "sae_lens/batch_topk_checkpoint": "jumprelu",
    "sae_lens/batch_topk_checkpoint_not_rescaled": "jumprelu",
    "sae_lens/matryoshka_trained": "jumprelu",
    "sae_lens/matryoshka_checkpoint": "jumprelu",
    "sae_lens/jumprelu": "jumprelu",
    "sae_lens/jumprelu_not_centred": "jumprelu",
    "sae_lens/jumprelu_trained": "jumprelu",
    "sae_lens/jumprelu_checkpoint": "jumprelu",
    "sae_lens_5/standard_relu": "relu",
    "sae_lens_5/standard_topk": "topk",
    "sae_lens_5/standard_not_centred": "relu",
    "sae_lens_5/standard_finetuned": "relu",
    "sae_lens_5/topk": "topk",
    "sae_lens_5/jumprelu": "jumprelu",
    "sae_lens_5/jumprelu_finetuned": "jumprelu",
    "sae_lens_3/standard_relu": "relu",
    "sae_lens_3/standard_topk": "topk",
    "sae_lens_3/standard_not_centred": "relu",
    "sae_lens_3/standard_finetuned": "relu",
    "sae_lens_3/jumprelu": "jumprelu",
    "sae_lens_3/jumprelu_finetuned": "jumprelu",
    "sae_lens_2/relu": "relu",
    "sae_lens_2/not_centred": "relu",
    "sae_lens_2/finetuned": "relu",
    "sae_lens_0/relu": "relu",
    "sae_lens_0/not_centred": "relu",
    "sae_lens_0/finetuned": "relu",
    "sparsify/topk": "topk",
    "sparsify/topk_num_latents": "topk",
    "sparsify/topk_multi": "topk",
    "sparsify/transcoder": "topk",
}

REFUSED = {
    "dictionary_learning/gated": "gated",
    "openai/topk_identity": "Identity",
    "openai/identity": "Identity",
    "sae_lens/layer_norm": "layer_norm",
    "sae_lens/constant_norm": "constant_norm_rescale",
    "sae_lens/average_norm": "expected_average_only_in",
    "sae_lens/gated": "gated",
    "sae_lens/abstopk": "abstopk",
    "sae_lens/matching_pursuit": "matching_pursuit",
    "sae_lens/transcoder": "transcoder",
    "sae_lens/skip_transcoder": "transcoder",
    "sae_lens/jumprelu_transcoder": "jumprelu_transcoder",
    "sae_lens_5/gated": "gated",
    "sae_lens_5/standard_tanh_relu": "tanh-relu",
    "sae_lens_3/gated": "gated",
    "sae_lens_3/standard_tanh_relu": "tanh-relu",
    "sae_lens_2/tanh_relu": "tanh-relu",
    "sae_lens_0/tanh_relu": "tanh-relu",
    "sparsify/groupmax": "groupmax",
    "sparsify/skip": "skip connection",
}


def expected(case: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, code, reconstruction) as the library has them."""
    with np.load(FOREIGN / case / "expected.npz") as kept:
        x, code, output = (torch.from_numpy(kept[name]) for name in ("x", "code", "output"))
    return x, code, output


def test_every_case_is_read_or_refused() -> None:
    assert sorted([*READ_AS, *REFUSED]) == CASES
    assert set(OPEN) <= set(READ_AS)


@pytest.mark.parametrize("case", READ_AS)
def test_codes_and_reconstructions_are_the_librarys(case: str) -> None:
    sae, info = load(FOREIGN / case, stated=OPEN.get(case, Stated()))
    x, code, output = expected(case)
    assert info.architecture == READ_AS[case]
    assert 0 < int((code > 0).sum()) < code.numel()
    found = sae.encode(x)
    assert torch.equal(found > 0, code > 0), "other features are active"
    torch.testing.assert_close(found, code, rtol=1e-5, atol=1e-6)
    if output.isnan().any():  # SAELens divides by the norm of a row of zeros
        assert case == "sae_lens/topk_rescaled_zero_row"
        assert sae.decode(found).isfinite().all()
        return
    torch.testing.assert_close(sae.decode(found), output, rtol=1e-5, atol=2e-6)
    assert info.probe is not None
    assert info.probe.code_error < 1e-5


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_refused_by_its_name(case: str) -> None:
    with pytest.raises(CheckpointError, match=REFUSED[case]) as caught:
        load(FOREIGN / case)
    if "norm" not in case:
        assert "TopK, BatchTopK, Matryoshka BatchTopK and JumpReLU" in caught.value.hint


@pytest.mark.parametrize("case", OPEN)
def test_what_a_file_leaves_open_is_never_guessed(case: str) -> None:
    """Without the user's word it is refused, with the flag that says it."""
    with pytest.raises(CheckpointError) as caught:
        load(FOREIGN / case)
    flags = {"topk_of_another_k": "--k", "openai": "--raw"}
    wanted = next((flag for name, flag in flags.items() if name in case), "--architecture")
    assert wanted in caught.value.hint


def test_the_other_answer_to_an_open_question_gives_the_other_sae() -> None:
    case = "dictionary_learning/topk_without_config"
    sae, _ = load(FOREIGN / case, stated=Stated("batch_topk"))
    x, code, _ = expected(case)
    assert not torch.allclose(sae.encode(x), code)
    with pytest.raises(CheckpointError, match="tensors are those of topk or batch_topk"):
        load(FOREIGN / case, stated=Stated("relu"))


@pytest.mark.parametrize(
    ("case", "stated", "message"),
    [
        ("dictionary_learning/topk", Stated("batch_topk"), "is topk, not batch_topk"),
        ("dictionary_learning/topk", Stated(k=5), "k of .* is 4, not 5"),
        ("dictionary_learning/jumprelu", Stated("relu"), "is jumprelu, not relu"),
        ("sae_lens/topk", Stated(k=5), "is 4, not 5"),
        ("sparsify/topk", Stated(k=5), "is 4, not 5"),
        ("openai/topk", Stated("relu"), "is topk, not relu"),
    ],
)
def test_the_user_does_not_overrule_what_a_file_says(case: str, stated: Stated, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(FOREIGN / case, stated=stated)


def test_a_transcoder_is_called_one() -> None:
    _, info = load(FOREIGN / "sparsify/transcoder")
    assert any("transcoder" in caution for caution in info.cautions)
    assert load(FOREIGN / "sparsify/topk")[1].cautions == ()


@pytest.mark.parametrize("l0", [0.9, 1.1, 4.0, 15.9, 16.1])
def test_an_l0_far_from_the_k_of_any_librarys_config_is_odd(l0: float) -> None:
    odd = l0 in (0.9, 16.1)
    configs = ({"topk_k": 4}, {"source_config": {"trainer": {"k": 4}}}, {"source_config": {"k": 4.0}})
    for config in (*configs, {"source_config": {"activation_fn_kwargs": {"k": 4}}}):
        assert bool(odd_sparsity(l0, config, "these")) == odd
    assert odd_sparsity(l0, {"source_config": {"trainer": [4], "k": None}}, "these") == ()


def test_a_threshold_that_leaves_all_features_active_is_told(tmp_path: Path) -> None:
    """A BatchTopK whose file says k = 4 and a threshold below all activations."""
    folder = shutil.copytree(FOREIGN / "dictionary_learning/batch_topk", tmp_path / "sae")
    state = torch.load(folder / "ae.pt", weights_only=True)
    state["threshold"].fill_(0)
    state["encoder.bias"].fill_(10)
    torch.save(state, folder / "ae.pt")
    cautions = load(folder)[1].doubts
    assert "on random activations 32.0 features are active, its config says k = 4" in cautions[0]
