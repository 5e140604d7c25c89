"""Do other libraries read our SAEs, and do we read theirs?

    sh benchmarks/sae_libraries.sh                      (once)
    python benchmarks/sae_conformance.py [--libraries .sae-libraries]

Both directions, each architecture that a library has: we write a file, the library loads it and encodes and
decodes the same activations in a process of its own; then the library writes one and we read it. The table
shows the largest difference of codes and reconstructions, relative to the largest value.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

D, F, K, N = 64, 512, 8, 256
CASES = {
    "dictionary_learning": ("topk", "batch_topk", "matryoshka_batch_topk", "jumprelu", "relu"),
    "sae_lens": ("topk", "batch_topk", "jumprelu", "relu"),
    "sparsify": ("topk",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--libraries", type=Path, default=Path(".sae-libraries"))
    parser.add_argument("--inside", type=Path, help="(the other environment's side of the work)")
    arguments = parser.parse_args()
    if arguments.inside:
        in_the_library(arguments.inside)
        return
    python = arguments.libraries / "bin" / "python"
    if not python.is_file():
        sys.exit(f"{python} is not there\nMake it with: sh benchmarks/sae_libraries.sh {arguments.libraries}")
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), python)


def compare(folder: Path, python: Path) -> None:
    from fluxscope.sae.formats import load, save

    torch.manual_seed(0)
    x = 3 * torch.randn(N, D) + 5
    torch.save(x, folder / "x.pt")
    ours = {}
    for library, architectures in CASES.items():
        for architecture in architectures:
            sae = ours[library, architecture] = an_sae(architecture, x)
            save(folder / library / architecture / "ours", sae, form=library)
    subprocess.run([python, __file__, "--inside", folder], check=True)
    print(f"{'library':21}{'architecture':23}{'direction':12}{'codes':>10}{'reconstructions':>17}{'L0':>7}")
    for (library, architecture), sae in ours.items():
        place = folder / library / architecture
        there = torch.load(place / "ours.pt", weights_only=True)
        report(library, architecture, "export", sae.encode(x), sae.decode(sae.encode(x)), there)
        theirs, _ = load(place / "theirs")
        there = torch.load(place / "theirs.pt", weights_only=True)
        report(library, architecture, "import", theirs.encode(x), theirs.decode(theirs.encode(x)), there)


def an_sae(architecture: str, x: torch.Tensor) -> Any:
    """An SAE with biases and thresholds away from their starts."""
    from fluxscope.sae.table import K as SWEPT_K
    from fluxscope.sae.table import named

    entry = named(architecture)
    settings = entry.load()()
    settings = entry.sparsity.given(settings, K) if entry.sparsity is SWEPT_K else settings
    sae = settings.build(D, F).requires_grad_(False)
    sae.pre_bias.copy_(x.mean(0))
    sae.encoder.bias.normal_(0, 0.3)
    sae.calibrate([x])
    if architecture == "jumprelu":
        sae.threshold.uniform_(2, 6)
    return sae


def report(library: str, architecture: str, direction: str, code: Any, output: Any, there: Any) -> None:
    errors = [relative(code, there["code"]), relative(output, there["output"])]
    l0 = float((there["code"] > 0).sum()) / N
    print(f"{library:21}{architecture:23}{direction:12}{errors[0]:10.1e}{errors[1]:17.1e}{l0:7.1f}")


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def in_the_library(folder: Path) -> None:
    """Load what we wrote, and write what we are to read. Runs in the other environment."""
    x = torch.load(folder / "x.pt", weights_only=True)
    for library, architectures in CASES.items():
        for architecture in architectures:
            place = folder / library / architecture
            loaded = LOADERS[library](place / "ours")
            torch.save(LIBRARIES[library](loaded, x), place / "ours.pt")
            (place / "theirs").mkdir()
            own = MAKERS[library](architecture, x, place / "theirs")
            torch.save(LIBRARIES[library](own, x), place / "theirs.pt")


def through_dictionary(sae: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    code = sae.encode(x)
    return {"code": code, "output": sae.decode(code)}


def through_sparsify(sae: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    found = sae.encode(x)
    code = torch.zeros(N, F).scatter(1, found.top_indices, found.top_acts)
    return {"code": code, "output": sae.decode(found.top_acts, found.top_indices)}


def load_dictionary(path: Path) -> Any:
    from dictionary_learning.utils import load_dictionary as load

    return load(str(path), "cpu")[0]


def load_sae_lens(path: Path) -> Any:
    from sae_lens import SAE

    return SAE.load_from_disk(path)


def load_sparsify(path: Path) -> Any:
    from sparsify import SparseCoder

    return SparseCoder.load_from_disk(path)


def make_dictionary(architecture: str, x: torch.Tensor, path: Path) -> Any:
    import json

    from dictionary_learning import AutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    sae = {
        "topk": lambda: AutoEncoderTopK(D, F, K),
        "batch_topk": lambda: BatchTopKSAE(D, F, K),
        "matryoshka_batch_topk": lambda: MatryoshkaBatchTopKSAE(D, F, K, [F // 4, F // 4, F // 2]),
        "jumprelu": lambda: JumpReluAutoEncoder(D, F),
        "relu": lambda: AutoEncoder(D, F),
    }[architecture]()
    unsettle(sae, x)
    torch.save(sae.state_dict(), path / "ae.pt")
    trainer = {"dict_class": type(sae).__name__, "k": K, "activation_dim": D, "dict_size": F}
    (path / "config.json").write_text(json.dumps({"trainer": trainer}))
    return sae


def make_sae_lens(architecture: str, x: torch.Tensor, path: Path) -> Any:
    from sae_lens import SAE
    from sae_lens.saes import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        JumpReLUSAE,
        JumpReLUSAEConfig,
        StandardSAE,
        StandardSAEConfig,
        TopKSAE,
        TopKSAEConfig,
    )

    sizes = {"d_in": D, "d_sae": F}
    if architecture == "batch_topk":
        training = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, k=K))
        unsettle(training, x)
        training.topk_threshold.fill_(0.05)
        training.save_inference_model(path)
        return SAE.load_from_disk(path)
    sae = {
        "topk": lambda: TopKSAE(TopKSAEConfig(**sizes, k=K)),
        "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(**sizes)),
        "relu": lambda: StandardSAE(StandardSAEConfig(**sizes)),
    }[architecture]()
    unsettle(sae, x)
    sae.save_model(path)
    return sae


def make_sparsify(architecture: str, x: torch.Tensor, path: Path) -> Any:
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(D, SparseCoderConfig(expansion_factor=F // D, k=K))
    unsettle(sae, x)
    sae.save_to_disk(path)
    return sae


def unsettle(sae: Any, x: torch.Tensor) -> None:
    """Biases and thresholds away from their starts."""
    for name, tensor in [*sae.named_parameters(), *sae.named_buffers()]:
        if name in ("b_dec", "bias", "pre_bias"):
            tensor.copy_(x.mean(0))
        elif name in ("b_enc", "encoder.bias"):
            tensor.normal_(0, 0.3)
        elif name == "threshold":
            tensor.fill_(4.0)


LIBRARIES = {
    "dictionary_learning": through_dictionary,
    "sae_lens": through_dictionary,
    "sparsify": through_sparsify,
}
LOADERS = {"dictionary_learning": load_dictionary, "sae_lens": load_sae_lens, "sparsify": load_sparsify}
MAKERS = {"dictionary_learning": make_dictionary, "sae_lens": make_sae_lens, "sparsify": make_sparsify}


if __name__ == "__main__":
    main()
