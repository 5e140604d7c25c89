"""Every checkpoint format keeps what it promises, with every architecture it has a place for."""

from pathlib import Path

import pytest
import torch

from fluxscope.errors import CheckpointError
from fluxscope.sae import ARCHITECTURES, LinearSae
from fluxscope.sae.formats import FORMATS, Format, describe, load, save
from tests.sae.synthetic import settings

D, F = 12, 48
WRITABLE = [form for form in FORMATS if form.write]
HOLDS = {
    "fluxscope": {"topk", "relu", "batch_topk", "matryoshka_batch_topk", "jumprelu"},
    "dictionary_learning": {"topk", "relu", "batch_topk", "matryoshka_batch_topk", "jumprelu"},
    "sae_lens": {"topk", "relu", "batch_topk", "matryoshka_batch_topk", "jumprelu"},
    "sparsify": {"topk"},
}


def trained_looking(architecture: str) -> LinearSae:
    """An SAE away from its start, with biases as large as real activations'."""
    torch.manual_seed(0)
    sae = settings(architecture, k=5).build(D, F).requires_grad_(False)
    sae.pre_bias.normal_(0, 10)
    sae.encoder.bias.normal_(0, 0.3)
    sae.encoder.weight.add_(0.1 * torch.randn(F, D))
    sae.calibrate([activations(sae)])
    if architecture == "jumprelu":
        sae.threshold.uniform_(0.1, 0.5)
    return sae


def activations(sae: LinearSae, n: int = 100) -> torch.Tensor:
    return sae.pre_bias + torch.randn(n, D, generator=torch.Generator().manual_seed(1))


def test_the_table_covers_every_format_and_architecture() -> None:
    assert set(HOLDS) == {form.name for form in WRITABLE}
    assert HOLDS["fluxscope"] == {entry.name for entry in ARCHITECTURES}


@pytest.mark.parametrize("architecture", [entry.name for entry in ARCHITECTURES])
@pytest.mark.parametrize("form", WRITABLE, ids=lambda form: form.name)
def test_round_trips_keep_codes_and_reconstructions(tmp_path: Path, form: Format, architecture: str) -> None:
    sae = trained_looking(architecture)
    target = tmp_path / "sae_best.pt" if form.name == "fluxscope" else tmp_path / "folder"
    if architecture not in HOLDS[form.name]:
        with pytest.raises(CheckpointError, match=architecture):
            save(target, sae, form=form.name)
        return
    written = save(target, sae, {"layer": 15}, form.name)
    again, info = load(written)
    assert (info.format, info.path) == (form.name, written)
    x = activations(sae)
    code, its_code = sae.encode(x), again.encode(x)
    assert (code > 0).any()
    scale = float(code.max())
    torch.testing.assert_close(its_code, code, rtol=0, atol=1e-6 * max(scale, 10))
    torch.testing.assert_close(again.decode(its_code), sae.decode(code), rtol=1e-6, atol=1e-5)
    if info.probe:
        assert info.probe.code_error < 1e-5
        assert info.probe.reconstruction_error < 1e-6
    assert dict(describe(written))["format"] == form.name


@pytest.mark.parametrize("form", WRITABLE, ids=lambda form: form.name)
def test_damage_is_named(tmp_path: Path, form: Format) -> None:
    target = tmp_path / "sae_best.pt" if form.name == "fluxscope" else tmp_path / "folder"
    written = save(target, trained_looking("topk"), form=form.name)
    whole = written.read_bytes()
    written.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"damaged|cut short"):
        load(written)
    written.unlink()
    with pytest.raises(CheckpointError, match="not found"):
        load(written)
