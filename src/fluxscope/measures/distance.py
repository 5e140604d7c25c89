"""How different two pictures look: LPIPS, and its form on the CLIP model in use; and where they differ.

LPIPS (Zhang et al., 2018): the features of a network's layers, at unit length at every place, their squared
differences weighted by channel, averaged over space and summed over layers. With AlexNet and its trained
weights it is the field's measure; on CLIP's vision half, unweighted, it needs no further download.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from fluxscope.errors import CheckpointError, FluxscopeError
from fluxscope.files import read_torch_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

Picture = UInt8[np.ndarray, "h w 3"]
"""An RGB picture, 0 to 255."""

ALEXNET = (
    (3, 64, 11, 4, 2),
    (64, 192, 5, 1, 2),
    (192, 384, 3, 1, 1),
    (384, 256, 3, 1, 1),
    (256, 256, 3, 1, 1),
)
"""AlexNet's convolutions: channels in and out, kernel, stride, padding; pooled before the 2nd and the 3rd."""

ALEXNET_KEYS = (0, 3, 6, 8, 10)
"""Their places in torchvision's state dict, features.N.weight and features.N.bias."""


@dataclass(frozen=True)
class Distance:
    """A distance between pictures.

    Attributes:
        name: which distance it is, for the record; a run never mixes two.
        layers: from pictures to the features of each layer, float (n, c, places).
        weights: each layer's weights of channels, or None for equal ones.
    """

    name: str
    layers: Callable[[Sequence[Picture]], list[Tensor]]
    weights: list[Tensor] | None = None

    def __call__(self, a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> Float32[np.ndarray, " n"]:
        """The distance of each picture in a from the one in b.

        Args:
            a, b: uint8 (height, width, 3), all of one size; equally many, or a single one in b for all of a.

        Raises:
            FluxscopeError: numbers or sizes differ.
        """
        import torch

        if len(b) not in (1, len(a)) or len({picture.shape for picture in (*a, *b)}) != 1:
            raise FluxscopeError(
                f"{len(a)} pictures can't be compared with {len(b)} of other number or size",
                "Compare pictures of one run, pairwise.",
            )
        with torch.inference_mode():
            return lpips_form(self.layers(a), self.layers(b), self.weights).cpu().numpy()


def lpips_form(a: list[Tensor], b: list[Tensor], weights: list[Tensor] | None) -> Tensor:
    """Sum over layers of the mean over places of the weighted squared differences of unit features.

    Args:
        a: one tensor (n, c, places) per layer.
        b: the same, or with n = 1.
        weights: one tensor (c) per layer.

    Returns:
        float (n).
    """
    total: Any = 0.0
    for number, (x, y) in enumerate(zip(a, b, strict=True)):
        square = (_unit(x) - _unit(y)) ** 2  # (n, c, places)
        if weights is not None:
            square = square * weights[number][:, None]
        total = total + square.sum(1).mean(1)
    distance: Tensor = total.float()
    return distance


def _unit(features: Tensor) -> Tensor:
    unit: Tensor = features / (features.norm(dim=1, keepdim=True) + 1e-10)
    return unit


def clip_distance(model: Any, processor: Any, name: str = "clip") -> Distance:
    """LPIPS's form on the patch tokens of every layer of a CLIPModel's vision half.

    Pictures are scaled to the model's square without cropping, so that all of a wide picture counts.
    """
    import torch

    side = model.config.vision_config.image_size

    def layers(pictures: Sequence[Picture]) -> list[torch.Tensor]:
        size = {"height": side, "width": side}
        pixels = processor(images=list(pictures), size=size, do_center_crop=False, return_tensors="pt")
        pixels = pixels["pixel_values"].to(model.device, model.dtype)
        hidden = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
        return [layer[:, 1:].transpose(1, 2).float() for layer in hidden[1:]]  # (n, c, patches)

    return Distance(f"lpips-form on {name}", layers)


def alex_distance(alexnet: dict[str, Tensor], heads: dict[str, Tensor], device: str = "cpu") -> Distance:
    """LPIPS, version 0.1, on AlexNet.

    Args:
        alexnet: torchvision's state dict.
        heads: the lpips project's, lin0.model.1.weight (1, c, 1, 1) to lin4.
    """
    import torch
    from torch.nn import functional

    # The network wants ImageNet's normalisation; LPIPS states it for pixels from -1 to 1.
    shift = torch.tensor([-0.030, -0.088, -0.188], device=device)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], device=device)[:, None, None]
    kernels = [alexnet[f"features.{key}.weight"].to(device) for key in ALEXNET_KEYS]
    biases = [alexnet[f"features.{key}.bias"].to(device) for key in ALEXNET_KEYS]

    def layers(pictures: Sequence[Picture]) -> list[torch.Tensor]:
        pixels = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2)  # (n, 3, h, w)
        x = (pixels.float() / 127.5 - 1 - shift) / scale
        features = []
        for number, (_, _, _, stride, padding) in enumerate(ALEXNET):
            if number in (1, 2):
                x = functional.max_pool2d(x, 3, 2)
            x = functional.relu(functional.conv2d(x, kernels[number], biases[number], stride, padding))
            features.append(x.flatten(2))  # (n, c, places)
        return features

    weights = [heads[f"lin{n}.model.1.weight"].reshape(-1).to(device) for n in range(5)]
    return Distance("lpips alex 0.1", layers, weights)


def find_alex_distance(device: str = "cpu") -> Distance | None:
    """LPIPS with the files that are on this machine, or None; nothing is ever downloaded.

    The heads come with the lpips package (the extra `fluxscope[lpips]`), AlexNet's weights are where
    torchvision keeps them. Neither package is imported, their files are enough.

    Raises:
        CheckpointError: a file is there but damaged, or holds another network.
    """
    package = find_spec("lpips")
    if package is None or not package.submodule_search_locations:
        return None
    heads = Path(package.submodule_search_locations[0]) / "weights" / "v0.1" / "alex.pth"
    alexnet = alexnet_file()
    if alexnet is None or not heads.is_file():
        return None
    return read_alex_distance(alexnet, heads, device)


def alexnet_file() -> Path | None:
    """Where torchvision has kept AlexNet's weights, if it has."""
    import torch

    return next(iter(sorted((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet-owt-*.pth"))), None)


def read_alex_distance(alexnet: Path | str, heads: Path | str, device: str = "cpu") -> Distance:
    """LPIPS from two checkpoints, checked for the shapes it needs."""
    network, linear = read_torch_checkpoint(alexnet), read_torch_checkpoint(heads)
    for number, (channels, out, kernel, _, _) in enumerate(ALEXNET):
        key = f"features.{ALEXNET_KEYS[number]}.weight"
        wanted = (out, channels, kernel, kernel)
        if key not in network or tuple(network[key].shape) != wanted:
            raise CheckpointError(
                f"{alexnet} holds no {key} of shape {wanted}", "It is not torchvision's AlexNet."
            )
        if (
            f"lin{number}.model.1.weight" not in linear
            or linear[f"lin{number}.model.1.weight"].numel() != out
        ):
            raise CheckpointError(f"{heads} holds no weights for layer {number}", "Install lpips again.")
    return alex_distance(network, linear, device)


def pixel_change(a: Picture, b: Picture) -> Float32[np.ndarray, "h w"]:
    """Mean absolute difference over the channels at every pixel, 0 to 1."""
    change: np.ndarray = np.abs(a.astype(np.float32) - b.astype(np.float32)).mean(2) / 255
    return change


def locality(change: Float[np.ndarray, "h w"], heatmap: Float[np.ndarray, "h w"]) -> tuple[float, float]:
    """Mean change inside and outside a heatmap, each pixel counting by its heat and by 1 minus its heat.

    Where a heatmap leaves no inside or no outside, that mean is 0.
    """

    def mean(weight: np.ndarray) -> float:
        return float((change * weight).sum() / weight.sum()) if weight.sum() > 0 else 0.0

    return mean(heatmap), mean(1 - heatmap)
