"""Files as other libraries write them, built here from their published layouts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fluxscope.commands.checkpoints import convert
from fluxscope.errors import CheckpointError
from fluxscope.sae import BatchTopKSparseAutoencoder, SparseAutoencoder, TopKSparseAutoencoder
from fluxscope.sae.formats import Stated, hub, load
from fluxscope.sae.timestep_sae import TimestepSparseAutoencoder, sinusoidal_embedding

D, F, K = 6, 16, 3


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def four() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """W_enc (f, d), b_enc, W_dec (f, d), b_dec."""
    return torch.randn(F, D), torch.randn(F), torch.randn(F, D), 5 * torch.randn(D)


def topk(pre: torch.Tensor) -> torch.Tensor:
    kept = torch.relu(pre).topk(K, dim=-1)
    return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)


def sae_lens_folder(path: Path, **config: Any) -> Path:
    encoder, bias, decoder, decoder_bias = four()
    path.mkdir(exist_ok=True)
    tensors = {"W_enc": encoder.T.contiguous(), "b_enc": bias, "W_dec": decoder, "b_dec": decoder_bias}
    save_file(tensors, path / "sae_weights.safetensors")
    cfg = {"architecture": "topk", "d_in": D, "d_sae": F, "k": K, "dtype": "torch.float32"} | config
    (path / "cfg.json").write_text(json.dumps(cfg))
    return path


def test_openai(tmp_path: Path) -> None:
    encoder, bias, decoder, decoder_bias = four()
    state = {
        "pre_bias": decoder_bias,
        "latent_bias": bias,
        "encoder.weight": encoder,
        "decoder.weight": decoder.T.contiguous(),
        "stats_last_nonzero": torch.zeros(F),
        "activation": "TopK",
        "activation_state_dict": {"k": K},
    }
    torch.save(state, tmp_path / "17.pt")
    with pytest.raises(CheckpointError, match="mean 0 and spread 1") as caught:
        load(tmp_path / "17.pt")
    assert "--raw" in caught.value.hint
    sae, info = load(tmp_path / "17.pt", stated=Stated(raw=True))
    x = torch.randn(10, D)
    assert (info.format, info.k) == ("openai", K)
    torch.testing.assert_close(sae.encode(x), topk((x - decoder_bias) @ encoder.T + bias))
    state["activation"] = "Swish"
    torch.save(state, tmp_path / "18.pt")
    with pytest.raises(CheckpointError, match="Swish"):
        load(tmp_path / "18.pt")


@pytest.mark.parametrize(
    ("header", "architecture"),
    [
        ({"schema": 2, "cfg": {"activation": {"cls": "TopK", "params": {"top_k": K}}}}, "topk"),
        ({"schema": 1, "cls": "TopK", "cfg": {"top_k": K}}, "topk"),
        ({"d_vit": D, "exp_factor": 2, "l1_coeff": 4e-4}, "relu"),
    ],
)
def test_saev(tmp_path: Path, header: dict, architecture: str) -> None:
    encoder, bias, decoder, decoder_bias = four()
    path = tmp_path / "sae.pt"
    with path.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save({"W_enc": encoder.T, "b_enc": bias, "W_dec": decoder, "b_dec": decoder_bias}, file)
    sae, info = load(tmp_path)
    x = torch.randn(10, D)
    pre = x @ encoder.T + bias
    assert (info.format, info.architecture) == ("saev", architecture)
    torch.testing.assert_close(sae.encode(x), topk(pre) if architecture == "topk" else torch.relu(pre))


def test_sae_lens_topk_with_norms_to_fold_and_input_not_centred(tmp_path: Path) -> None:
    folder = sae_lens_folder(tmp_path / "a", rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False)
    torch.manual_seed(0)
    encoder, bias, decoder, decoder_bias = four()
    sae, info = load(folder)
    x = torch.randn(10, D)
    norms = decoder.norm(dim=1)
    code = topk((x @ encoder.T + bias) * norms)
    torch.testing.assert_close(sae.encode(x), code, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.decode(code), (code / norms) @ decoder + decoder_bias)
    assert info.probe is not None
    assert info.probe.code_error < 1e-5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
        ({"normalize_activations": "expected_average_only_in"}, "expected_average_only_in"),
        ({"architecture": "gated"}, "gated"),
        ({"k": None}, "k = None"),
    ],
)
def test_sae_lens_files_that_would_be_misread_are_refused(tmp_path: Path, config: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(sae_lens_folder(tmp_path / "a", **config))


@pytest.mark.parametrize("told", [None, False, "none"])
def test_sae_lens_ways_to_say_no_normalisation(tmp_path: Path, told: object) -> None:
    assert load(sae_lens_folder(tmp_path / "a", normalize_activations=told))[0].hidden_dim == F


def sparsify_folder(path: Path, **config: Any) -> Path:
    encoder, bias, decoder, decoder_bias = four()
    path.mkdir()
    tensors = {"encoder.weight": encoder, "encoder.bias": bias, "W_dec": decoder, "b_dec": decoder_bias}
    save_file(tensors, path / "sae.safetensors")
    cfg = {"activation": "topk", "expansion_factor": 1, "num_latents": F, "k": K, "d_in": D} | config
    (path / "cfg.json").write_text(json.dumps(cfg))
    return path


def test_a_sparsify_transcoder_is_not_centred(tmp_path: Path) -> None:
    sae, _ = load(sparsify_folder(tmp_path / "a", transcode=True))
    torch.manual_seed(0)
    encoder, bias, _, _ = four()
    x = torch.randn(10, D)
    torch.testing.assert_close(sae.encode(x), topk(x @ encoder.T + bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": "groupmax"}, "groupmax"),
        ({"skip_connection": True}, "skip"),
        ({"num_latents": 0, "expansion_factor": 4}, "24 latents"),
        ({"k": 17}, "k = 17"),
    ],
)
def test_sparsify_files_that_would_be_misread_are_refused(tmp_path: Path, config: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(sparsify_folder(tmp_path / "a", **config))


def test_a_batch_topk_of_dictionary_learning_that_was_never_calibrated(tmp_path: Path) -> None:
    encoder, bias, decoder, decoder_bias = four()
    state = {
        "encoder.weight": encoder,
        "encoder.bias": bias,
        "decoder.weight": decoder.T.contiguous(),
        "b_dec": decoder_bias,
        "k": torch.tensor(K, dtype=torch.int32),
        "threshold": torch.tensor(-1.0),
    }
    torch.save(state, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "BatchTopKSAE", "k": K}}))
    sae, info = load(tmp_path)
    assert isinstance(sae, BatchTopKSparseAutoencoder)
    assert info.probe is None
    with pytest.raises(CheckpointError, match="no threshold"):
        sae.encode(torch.randn(2, D))
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoderTopK"}}))
    assert isinstance(load(tmp_path)[0], TopKSparseAutoencoder)


def diffract_state(conditioned: TimestepSparseAutoencoder) -> dict[str, torch.Tensor]:
    """The names and shapes that the authors' module gives its state dict."""
    layers = ("time_mlp.0", "time_mlp.2", "mod_linear", "encoder", "decoder")
    names = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert set(conditioned.state_dict()) == names
    return {name: tensor.clone().contiguous() for name, tensor in conditioned.state_dict().items()}


@pytest.mark.parametrize("names", [("k", "threshold"), ("threshold",)])
def test_a_threshold_of_another_shape_is_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    """A BatchTopK's is one number, a JumpReLU's one a latent; here they are neither."""
    encoder, bias, decoder, decoder_bias = four()
    state = {"W_enc": encoder.T, "b_enc": bias, "W_dec": decoder, "b_dec": decoder_bias}
    extra = {"k": torch.tensor(K), "threshold": torch.zeros(3)}
    sizes = {"group_sizes": torch.tensor([4, F - 4])}
    torch.save(state | sizes | {name: extra[name] for name in names}, tmp_path / "ae.pt")
    with pytest.raises(CheckpointError, match="threshold in .* is 3, expected"):
        load(tmp_path / "ae.pt")


def test_diffract_is_an_ordinary_sae_at_each_timestep(tmp_path: Path) -> None:
    conditioned = TimestepSparseAutoencoder(D, F, embedding_dim=8)
    path = tmp_path / "sae_img_12.pt"
    torch.save(diffract_state(conditioned), path)
    with pytest.raises(CheckpointError, match="timestep") as caught:
        load(path)
    assert "--timestep" in caught.value.hint
    x = torch.randn(10, D)
    for timestep in (0.0, 0.25, 1.0):
        sae, info = load(path, timestep=timestep)
        assert isinstance(sae, SparseAutoencoder)
        assert (info.format, info.layer, info.config["site"]) == ("diffract", 12, "double.12.ff")
        torch.testing.assert_close(
            sae.encode(x), conditioned.encode(x, timestep).detach(), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(sae(x)[0], conditioned.decode(conditioned.encode(x, timestep)).detach())
    assert not torch.allclose(load(path, timestep=0.5)[0].encode(x), sae.encode(x))
    convert(path, tmp_path / "sae_best.pt", timestep=0.25, quiet=True)
    torch.testing.assert_close(
        load(tmp_path / "sae_best.pt")[0].encode(x), load(path, timestep=0.25)[0].encode(x)
    )
    torch.save(diffract_state(conditioned), tmp_path / "transcoder_txt_3.pt")
    _, info = load(tmp_path / "transcoder_txt_3.pt", timestep=0.5)
    assert (info.layer, info.config["transcoder_of"]) == (3, "double.3.ff_context")
    assert "site" not in info.config


def test_diffract_timestep_layers_of_another_shape_are_named(tmp_path: Path) -> None:
    state = diffract_state(TimestepSparseAutoencoder(D, F, embedding_dim=8))
    state["mod_linear.weight"] = state["mod_linear.weight"].T.contiguous()
    torch.save(state, tmp_path / "sae.pt")
    with pytest.raises(CheckpointError, match=r"mod_linear\.weight .*transposed"):
        load(tmp_path, timestep=0.5)


def test_the_timestep_is_embedded_as_diffusers_does_it() -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    for timestep in (0.0, 0.37, 1.0):
        theirs = get_timestep_embedding(torch.tensor([timestep]), 16)[0]
        torch.testing.assert_close(sinusoidal_embedding(timestep, 16).float(), theirs, rtol=1e-4, atol=1e-6)


def test_a_timestep_for_a_file_that_needs_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not conditioned"):
        load(sparsify_folder(tmp_path / "a"), timestep=5.0)


def test_unknown_files_are_described(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "vision.pt")
    with pytest.raises(CheckpointError, match="known format") as caught:
        load(tmp_path / "vision.pt")
    assert "conv.weight" in caught.value.hint
    with pytest.raises(CheckpointError, match="holds no SAE"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["hf://owner/name", "hf://x", "hf://owner/name/../../ae.pt"])
def test_hub_names_without_a_file(name: str) -> None:
    with pytest.raises(CheckpointError, match="names no file"):
        hub.resolve(name)


def test_local_paths_are_left_alone() -> None:
    assert hub.resolve("a/b.pt") == Path("a/b.pt")
