"""The project's own checkpoint: what is read, what is refused, and that nothing ever runs."""

import os
from pathlib import Path

import pytest
import torch

from fluxscope.errors import CheckpointError
from fluxscope.sae import LinearSae, SparseAutoencoder, TopKSparseAutoencoder, formats


def checkpoint(d: int = 8, f: int = 24, **config: object) -> dict:
    sae = SparseAutoencoder(d, f)
    return {"config": config, "model_state_dict": dict(sae.state_dict())}


def save(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@pytest.mark.parametrize("sae", [TopKSparseAutoencoder(8, 24, 3), SparseAutoencoder(8, 24, 0.02)])
def test_round_trip(tmp_path: Path, sae: LinearSae) -> None:
    path = tmp_path / "sae_best.pt"
    formats.save(path, sae, {"layer": 15, "timestep": 14, "normalize_data": True})
    again, info = formats.load(path)
    assert type(again) is type(sae)
    x = torch.randn(4, 8)
    for ours, theirs in zip(sae(x), again(x), strict=True):
        assert torch.equal(ours, theirs)
    assert (info.layer, info.timestep, info.config["normalize_data"]) == (15, 14, True)
    assert not any(p.requires_grad for p in again.parameters())
    assert sorted(tmp_path.iterdir()) == [path]


def test_use_topk_tells_the_architecture(tmp_path: Path) -> None:
    topk, _ = formats.load(save(tmp_path / "a.pt", checkpoint(use_topk=True, topk_k=4, l1_coeff=0.001)))
    relu, _ = formats.load(save(tmp_path / "b.pt", checkpoint(use_topk=False, topk_k=4, l1_coeff=0.001)))
    assert isinstance(topk, TopKSparseAutoencoder)
    assert topk.k == 4
    assert isinstance(relu, SparseAutoencoder)


def test_a_researchers_folder_tells_what_the_config_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "sae_training_layer15_t14_topk12_x4_20250102_030405"
    path = save(folder / "sae_best.pt", checkpoint()["model_state_dict"])
    sae, info = formats.load(folder)
    assert isinstance(sae, TopKSparseAutoencoder)
    assert (sae.k, info.layer, info.timestep, info.path) == (12, 15, 14, path)


def test_a_compiled_models_prefix_is_dropped(tmp_path: Path) -> None:
    content = checkpoint(use_topk=True, topk_k=2)
    state = content["model_state_dict"]
    content["model_state_dict"] = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    assert formats.load(save(tmp_path / "a.pt", content))[0].hidden_dim == 24


class Attack:
    """Pickles as a call that makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    target = tmp_path / "owned"
    content = checkpoint(use_topk=True, topk_k=2)
    content["config"]["note"] = Attack(target)
    path = save(tmp_path / "sae_best.pt", content)
    with pytest.raises(CheckpointError, match="not opened"):
        formats.load(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the attack is real: unsafe loading would have run it"


def test_missing_and_truncated_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not found"):
        formats.load(tmp_path / "none.pt")
    path = save(tmp_path / "a.pt", checkpoint(use_topk=True, topk_k=2))
    for size in (0, 10, path.stat().st_size // 2, path.stat().st_size - 8):
        cut = tmp_path / f"cut{size}.pt"
        cut.write_bytes(path.read_bytes()[:size])
        with pytest.raises(CheckpointError, match=r"damaged|cut short"):
            formats.load(cut)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    content = checkpoint(use_topk=True, topk_k=2)
    del content["model_state_dict"]["encoder.bias"]
    with pytest.raises(CheckpointError, match=r"lacks encoder\.bias"):
        formats.load(save(tmp_path / "a.pt", content))


@pytest.mark.parametrize("name", ["encoder.weight", "decoder.weight"])
@pytest.mark.parametrize("f", [24, 8])
def test_a_transposed_matrix_is_named(tmp_path: Path, name: str, f: int) -> None:
    content = checkpoint(f=f, use_topk=True, topk_k=2)
    state = content["model_state_dict"]
    state["encoder.weight"] = 0.7 * state["encoder.weight"] + 0.05 * torch.randn(f, 8)
    state[name] = state[name].T.contiguous()
    with pytest.raises(CheckpointError, match=f"{name} .*transposed"):
        formats.load(save(tmp_path / "a.pt", content))


def test_both_square_matrices_transposed(tmp_path: Path) -> None:
    content = checkpoint(f=8, use_topk=True, topk_k=2)
    state = content["model_state_dict"]
    for name in ("encoder.weight", "decoder.weight"):
        state[name] = state[name].T.contiguous()
    with pytest.raises(CheckpointError, match="transposed"):
        formats.load(save(tmp_path / "a.pt", content))


def test_a_right_square_sae_is_read(tmp_path: Path) -> None:
    content = checkpoint(f=8, use_topk=True, topk_k=2)
    assert formats.load(save(tmp_path / "a.pt", content))[0].hidden_dim == 8


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(tmp_path: Path, value: float) -> None:
    content = checkpoint(use_topk=True, topk_k=2)
    content["model_state_dict"]["decoder.weight"][3, 5] = value
    with pytest.raises(CheckpointError, match=r"decoder\.weight .* 1 NaN or infinite"):
        formats.load(save(tmp_path / "a.pt", content))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_topk": True, "topk_k": 25}, "k = 25"),
        ({"use_topk": True, "topk_k": None}, "topk_k = None"),
        ({"use_topk": True, "topk_k": "many"}, "topk_k = many"),
        ({"use_topk": True, "topk_k": 2, "input_dim": 9}, "input_dim = 9"),
        ({"architecture": "quantum"}, "quantum"),
        ({}, "doesn't tell"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, config: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        formats.load(save(tmp_path / "a.pt", checkpoint(**config)))


def test_describe(tmp_path: Path) -> None:
    path = tmp_path / "sae_best.pt"
    formats.save(path, TopKSparseAutoencoder(8, 24, 3), {"layer": 5})
    lines = dict(formats.describe(path))
    assert lines["architecture"] == "topk"
    assert lines["features f"] == "24 (x3)"
    assert lines["layer"] == "5"
    assert len(lines["sha256"]) == 64


def test_an_unknown_target_format(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none"):
        formats.save(tmp_path / "a.pt", SparseAutoencoder(4, 8), form="none")
