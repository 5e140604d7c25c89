"""Let other SAE libraries write tiny checkpoints of all their kinds, with their own codes beside them.

    sh benchmarks/sae_libraries.sh
    cd tests/conformance; python=../../.sae-libraries/bin/python
    $python make_foreign_checkpoints.py dictionary_learning sparsify sae_lens
    # SAELens as it was (5.11.0, 3.23.4, 2.1.3, 0.6.0): an older version before it on the path
    $python -m pip install --no-deps --target older sae-lens==5.11.0
    PYTHONPATH=older $python make_foreign_checkpoints.py sae_lens_5
    # openai/sparse_autoencoder is on no registry: a copy of it on the path
    PYTHONPATH=sparse_autoencoder $python make_foreign_checkpoints.py openai

Each case is a folder foreign/GROUP/CASE: the files that the library wrote, and expected.npz with what the
library, having read them back, makes of the probe batch: x (n, d), code (n, f), output (n, d). A case that
holds no SAE of ours (gated, a transcoder) has no codes. test_foreign_checkpoints.py compares.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

D, F, K, N = 8, 32, 4, 24
FOREIGN = Path(__file__).parent / "foreign"
Case = Callable[[Path], "Codes"]
Codes = tuple[torch.Tensor, torch.Tensor] | None
"""Code and reconstruction of the probe batch."""


def probe_batch() -> torch.Tensor:
    return 2 * torch.randn(N, D, generator=torch.Generator().manual_seed(0)) + 1


X = probe_batch()


@torch.no_grad()
def main() -> None:
    groups = sys.argv[1:]
    if not groups or set(groups) - set(GROUPS):
        sys.exit(f"name groups of {', '.join(GROUPS)}")
    warnings.simplefilter("ignore")
    for group in groups:
        shutil.rmtree(FOREIGN / group, ignore_errors=True)
        for name, case in GROUPS[group]().items():
            folder = FOREIGN / group / name
            folder.mkdir(parents=True)
            torch.manual_seed(1)
            codes = case(folder)
            if codes is not None:
                arrays = {"x": X, "code": codes[0], "output": codes[1]}
                np.savez_compressed(folder / "expected.npz", **{n: a.numpy() for n, a in arrays.items()})
            print(group, name, "" if codes is None else f"L0 {float((codes[0] != 0).sum()) / N:.1f}")


def unsettle(sae: torch.nn.Module, **values: float) -> None:
    """Parameters away from their starts: biases, gates, thresholds and decoder norms."""
    for name, tensor in [*sae.named_parameters(), *sae.named_buffers()]:
        if name in values:
            tensor.copy_(torch.as_tensor(values[name]) * (0.5 + torch.rand(tensor.shape)))
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.normal_(0, 0.3)
        elif tensor.is_floating_point() and tensor.ndim == 2:
            tensor.add_(0.1 * torch.randn(tensor.shape))


# dictionary_learning


def dictionary_learning() -> dict[str, Case]:
    from dictionary_learning.dictionary import (
        AutoEncoder,
        AutoEncoderNew,
        GatedAutoEncoder,
        JumpReluAutoEncoder,
    )
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    def case(make: Callable[[], Any], k: int | None = K, config: bool = True, **values: float) -> Case:
        def write(folder: Path) -> Codes:
            sae = make()
            unsettle(sae, **values)
            torch.save(sae.state_dict(), folder / "ae.pt")
            trainer = {"dict_class": type(sae).__name__, "layer": 3, "activation_dim": D, "dict_size": F}
            if config:
                text = json.dumps({"trainer": trainer | ({"k": k} if k else {}), "buffer": {}})
                (folder / "config.json").write_text(text)
            again = make()
            again.load_state_dict(torch.load(folder / "ae.pt"))
            code = again.encode(X)
            return code, again.decode(code)

        return write

    def refused(make: Callable[[], Any]) -> Case:
        def write(folder: Path) -> Codes:
            case(make, None)(folder)
            return None

        return write

    sizes = [F // 4, F // 4, F // 2]
    return {
        "standard": case(lambda: AutoEncoder(D, F), None),
        "standard_april": case(lambda: AutoEncoderNew(D, F), None),
        "topk": case(lambda: AutoEncoderTopK(D, F, K), threshold=1.0),
        "topk_without_config": case(lambda: AutoEncoderTopK(D, F, K), config=False, threshold=1.0),
        "topk_of_another_k": case(lambda: AutoEncoderTopK(D, F, K), k=K + 1, threshold=1.0),
        "batch_topk": case(lambda: BatchTopKSAE(D, F, K), threshold=2.0),
        "batch_topk_without_config": case(lambda: BatchTopKSAE(D, F, K), config=False, threshold=2.0),
        "matryoshka": case(lambda: MatryoshkaBatchTopKSAE(D, F, K, sizes), threshold=2.0),
        "jumprelu": case(lambda: JumpReluAutoEncoder(D, F), None, threshold=1.5),
        "gated": refused(lambda: GatedAutoEncoder(D, F)),
    }


# sparsify


def sparsify() -> dict[str, Case]:
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # it needs a GPU
    from sparsify import SparseCoder, SparseCoderConfig

    def case(read: bool = True, d: int = D, **settings: Any) -> Case:
        def write(folder: Path) -> Codes:
            sae = SparseCoder(d, SparseCoderConfig(**{"k": K, "expansion_factor": F // D} | settings))
            unsettle(sae)
            sae.save_to_disk(folder)
            again = SparseCoder.load_from_disk(folder)
            found = again.encode(X)
            code = torch.zeros(N, again.num_latents).scatter(1, found.top_indices, found.top_acts)
            return (code, again.decode(found.top_acts, found.top_indices)) if read else None

        return write

    return {
        "topk": case(),
        "topk_num_latents": case(num_latents=F + 3, expansion_factor=1),
        "topk_multi": case(multi_topk=True, normalize_decoder=False),
        "transcoder": case(transcode=True),
        "groupmax": case(read=False, activation="groupmax"),
        "skip": case(read=False, transcode=True, skip_connection=True),
    }


# SAELens, the present layout


def sae_lens() -> dict[str, Case]:
    import sae_lens as lens

    sizes: dict[str, Any] = {"d_in": D, "d_sae": F}

    def case(kind: Any, config: Any, read: bool = True, zero_row: bool = False, **settings: Any) -> Case:
        def write(folder: Path) -> Codes:
            sae = kind(config(**sizes | settings))
            unsettle(sae, threshold=1.5)
            if zero_row:
                sae.W_dec[5] = 0
            sae.save_model(folder)
            return again(folder) if read else None

        return write

    def again(folder: Path) -> Codes:
        sae = lens.SAE.load_from_disk(folder)
        code = sae.encode(X)
        return code, sae.decode(code)

    def trained(kind: Any, config: Any, inference: bool, **settings: Any) -> Case:
        """A training SAE, saved for inference or as a checkpoint; the codes are those of inference."""

        def write(folder: Path) -> Codes:
            sae = kind(config(**sizes | settings))
            unsettle(sae, topk_threshold=0.3 if settings.get("rescale_acts_by_decoder_norm", True) else 0.8)
            sae.save_inference_model(folder)
            codes = again(folder)
            if not inference:
                sae.save_model(folder)
            return codes

        return write

    def scaled(folder: Path) -> Codes:
        """A training checkpoint whose activations were scaled by a factor that lies in another file."""
        from sae_lens.training.activation_scaler import ActivationScaler

        kind, config = lens.StandardTrainingSAE, lens.StandardTrainingSAEConfig
        sae = kind(config(**sizes, normalize_activations="expected_average_only_in"))
        unsettle(sae)
        sae.save_model(folder)
        ActivationScaler(0.35).save(str(folder / "activation_scaler.json"))
        sae.fold_activation_norm_scaling_factor(0.35)
        code = sae.encode(X)
        return code, sae.decode(code)

    topk, batch, jump = lens.TopKTrainingSAE, lens.BatchTopKTrainingSAE, lens.JumpReLUTrainingSAE
    topk_config, batch_config = lens.TopKTrainingSAEConfig, lens.BatchTopKTrainingSAEConfig
    nested, nested_config = lens.MatryoshkaBatchTopKTrainingSAE, lens.MatryoshkaBatchTopKTrainingSAEConfig
    widths = {"matryoshka_widths": [F // 4, F // 2, F], "k": K}
    plain = {"rescale_acts_by_decoder_norm": False, "k": K}
    coder = {"d_out": D, "apply_b_dec_to_input": False}
    return {
        "standard": case(lens.StandardSAE, lens.StandardSAEConfig),
        "standard_not_centred": case(lens.StandardSAE, lens.StandardSAEConfig, apply_b_dec_to_input=False),
        "standard_trained": trained(lens.StandardTrainingSAE, lens.StandardTrainingSAEConfig, True),
        "standard_checkpoint_scaled": scaled,
        "topk": case(lens.TopKSAE, lens.TopKSAEConfig, k=K),
        "topk_rescaled": case(lens.TopKSAE, lens.TopKSAEConfig, k=K, rescale_acts_by_decoder_norm=True),
        "topk_rescaled_zero_row": case(
            lens.TopKSAE, lens.TopKSAEConfig, zero_row=True, k=K, rescale_acts_by_decoder_norm=True
        ),
        "topk_trained": trained(topk, topk_config, True, k=K),
        "topk_checkpoint": trained(topk, topk_config, False, k=K),
        "topk_checkpoint_not_rescaled": trained(topk, topk_config, False, **plain),
        "batch_topk_trained": trained(batch, batch_config, True, k=float(K)),
        "batch_topk_checkpoint": trained(batch, batch_config, False, k=float(K)),
        "batch_topk_checkpoint_not_rescaled": trained(batch, batch_config, False, **plain),
        "matryoshka_trained": trained(nested, nested_config, True, **widths),
        "matryoshka_checkpoint": trained(nested, nested_config, False, **widths),
        "jumprelu": case(lens.JumpReLUSAE, lens.JumpReLUSAEConfig),
        "jumprelu_not_centred": case(lens.JumpReLUSAE, lens.JumpReLUSAEConfig, apply_b_dec_to_input=False),
        "jumprelu_trained": trained(jump, lens.JumpReLUTrainingSAEConfig, True),
        "jumprelu_checkpoint": trained(jump, lens.JumpReLUTrainingSAEConfig, False),
        "layer_norm": case(
            lens.StandardSAE, lens.StandardSAEConfig, False, normalize_activations="layer_norm"
        ),
        "constant_norm": case(
            lens.TopKSAE, lens.TopKSAEConfig, False, k=K, normalize_activations="constant_norm_rescale"
        ),
        "average_norm": case(
            lens.StandardSAE, lens.StandardSAEConfig, False, normalize_activations="expected_average_only_in"
        ),
        "gated": case(lens.GatedSAE, lens.GatedSAEConfig, False),
        "abstopk": case(lens.AbsTopKSAE, lens.AbsTopKSAEConfig, False, k=K),
        "matching_pursuit": case(lens.MatchingPursuitSAE, lens.MatchingPursuitSAEConfig, False),
        "transcoder": case(lens.Transcoder, lens.TranscoderConfig, False, **coder),
        "skip_transcoder": case(lens.SkipTranscoder, lens.SkipTranscoderConfig, False, **coder),
        "jumprelu_transcoder": case(lens.JumpReLUTranscoder, lens.JumpReLUTranscoderConfig, False, **coder),
    }


# SAELens, the layouts before: versions 3 to 5 have a class SAE, 0 to 2 a class SparseAutoencoder


def sae_lens_middle() -> dict[str, Case]:
    from sae_lens import SAE
    from sae_lens.sae import SAEConfig

    def case(read: bool = True, finetuned: bool = False, **settings: Any) -> Case:
        def write(folder: Path) -> Codes:
            sae = SAE(SAEConfig(**_middle_config() | {"finetuning_scaling_factor": finetuned} | settings))
            unsettle(sae, threshold=1.5, finetuning_scaling_factor=1.0)
            if finetuned and not hasattr(sae, "finetuning_scaling_factor"):
                sae.register_buffer("finetuning_scaling_factor", 0.5 + torch.rand(F))  # 3 forgets JumpReLU's
            sae.save_model(str(folder), sparsity=torch.rand(F))
            code = sae.encode(X)
            return (code, sae.decode(code)) if read else None

        return write

    kwargs = {"k": K}
    versed = "topk" in str(SAEConfig.__annotations__["architecture"])
    named = case(architecture="topk", activation_fn_str="topk", activation_fn_kwargs=kwargs)
    return ({"topk": named} if versed else {}) | {
        "standard_relu": case(),
        "standard_topk": case(activation_fn_str="topk", activation_fn_kwargs=kwargs),
        "standard_tanh_relu": case(False, activation_fn_str="tanh-relu"),
        "standard_not_centred": case(apply_b_dec_to_input=False),
        "standard_finetuned": case(finetuned=True),
        "jumprelu": case(architecture="jumprelu"),
        "jumprelu_finetuned": case(architecture="jumprelu", finetuned=True),
        "gated": case(False, architecture="gated"),
    }


def _middle_config() -> dict[str, Any]:
    import inspect

    from sae_lens.sae import SAEConfig

    wanted = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": F,
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "context_size": 16,
        "model_name": "a-model",
        "hook_name": "blocks.0.hook_resid_pre",
        "hook_layer": 0,
        "hook_head_index": None,
        "prepend_bos": True,
        "dataset_path": "a-dataset",
        "dataset_trust_remote_code": False,
        "normalize_activations": "none",
        "dtype": "float32",
        "device": "cpu",
        "sae_lens_training_version": None,
    }
    known = inspect.signature(SAEConfig).parameters
    return {name: value for name, value in wanted.items() if name in known}


def sae_lens_first() -> dict[str, Case]:
    import wandb

    wandb.util.generate_id = lambda: "0"  # SAELens calls it; today's wandb has it no more
    from sae_lens import LanguageModelSAERunnerConfig
    from sae_lens.training.sparse_autoencoder import SparseAutoencoder

    def case(read: bool = True, finetuned: bool = False, **settings: Any) -> Case:
        def write(folder: Path) -> Codes:
            common: dict[str, Any] = {"d_in": D, "expansion_factor": F // D, "log_to_wandb": False}
            common |= {"device": "cpu", "dtype": torch.float32, "verbose": False, "checkpoint_path": "."}
            common |= {"hook_point": "blocks.0.hook_resid_pre", "hook_point_layer": 0}
            sae = SparseAutoencoder(LanguageModelSAERunnerConfig(**common | settings))
            unsettle(sae)
            sae.scaling_factor.copy_(0.5 + torch.rand(F) if finetuned else torch.ones(F))
            sae.save_model(str(folder), sparsity=torch.rand(F))
            code = sae.encode(X) if hasattr(sae, "encode") else sae(X)[1]
            output = sae.decode(code) if hasattr(sae, "decode") else sae(X)[0]
            return (code, output) if read else None

        return write

    return {
        "relu": case(),
        "not_centred": case(apply_b_dec_to_input=False),
        "finetuned": case(finetuned=True),
        "tanh_relu": case(False, activation_fn="tanh-relu"),
    }


# openai/sparse_autoencoder


def openai() -> dict[str, Case]:
    from sparse_autoencoder.model import Autoencoder, TopK

    def case(activation: Any, read: bool = True, tied: bool = False, bare: bool = False) -> Case:
        def write(folder: Path) -> Codes:
            sae = Autoencoder(F, D, activation=activation, tied=tied)
            unsettle(sae)
            if tied:  # the encoder's rows look along the decoder's
                sae.encoder.weight.copy_(torch.nn.functional.normalize(sae.encoder.weight, dim=1))
            state = dict(sae.state_dict())
            if bare:
                state = {n: t for n, t in state.items() if not n.startswith("activation")}
                (folder / "config.json").write_text(json.dumps({"k": K}))
            torch.save(state, folder / "sae.pt")
            # With normalize=False: the code of x itself. The file does not say which it is.
            code, info = sae.encode(X)
            return (code, sae.decode(code, info)) if read else None

        return write

    return {
        "relu": case(torch.nn.ReLU()),
        "relu_tied": case(torch.nn.ReLU(), tied=True),
        "topk": case(TopK(K)),
        "topk_of_the_config": case(TopK(K), bare=True),
        "topk_identity": case(TopK(K, torch.nn.Identity()), read=False),
        "identity": case(torch.nn.Identity(), read=False),
    }


GROUPS: dict[str, Callable[[], dict[str, Case]]] = {
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
    "sae_lens": sae_lens,
    "sae_lens_5": sae_lens_middle,
    "sae_lens_3": sae_lens_middle,
    "sae_lens_2": sae_lens_first,
    "sae_lens_0": sae_lens_first,
    "openai": openai,
}

if __name__ == "__main__":
    main()
