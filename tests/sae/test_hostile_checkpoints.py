"""Files that somebody broke or made to do harm: each a clear error, before it grows."""

import io
import json
import pickle
import random
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fluxscope.errors import CheckpointError
from fluxscope.sae import TopKSparseAutoencoder
from fluxscope.sae.formats import describe, load, save
from tests.sae.test_native_format import Attack

FOREIGN = Path(__file__).parents[1] / "conformance" / "foreign"
D, F, K = 8, 32, 4


def checkpoint(**changed: Any) -> bytes:
    """A whole checkpoint of ours, with entries of its config or tensors exchanged."""
    state = dict(TopKSparseAutoencoder(D, F, K).state_dict())
    config: dict[str, Any] = {"use_topk": True, "topk_k": K}
    for name, value in changed.items():
        (state if "." in name or name == "pre_bias" else config)[name] = value
    file = io.BytesIO()
    torch.save({"config": config, "model_state_dict": state}, file)
    return file.getvalue()


def archive(
    data: bytes, compression: int = zipfile.ZIP_STORED, further: dict[str, bytes] | None = None
) -> bytes:
    """A zip archive as torch's are, with another pickle and perhaps other entries in it."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as target:
        warnings.simplefilter("ignore")  # of names that stand in it twice
        for name, content in {"data.pkl": data, "byteorder": b"little", "version": b"3\n"}.items():
            target.writestr(f"a/{name}", content)
        for name, content in (further or {}).items():
            target.writestr(f"a/{name}", content)
    return file.getvalue()


def call(module: str, name: str, argument: int) -> bytes:
    """The pickle of a call with one number."""
    return b"\x80\x02c%s\n%s\nJ%s\x85R." % (module.encode(), name.encode(), argument.to_bytes(4, "little"))


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def laughing(levels: int) -> list:
    """A list of ten lists of ten lists ... which are all the same ones: small in memory, huge to print."""
    value: list = ["ha"]
    for _ in range(levels):
        value = [value] * 10
    return value


def with_header(length: int, header: bytes = b"{}") -> bytes:
    return length.to_bytes(8, "little") + header


GIB = 2**30
NOTHING = pickle.dumps({}, 2)
REFUSED_FIRST = {
    "text": (b"root:x:0:0:root:/root:/bin/bash\n" * 30, "is no checkpoint"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no checkpoint"),
    "nothing": (b"", "damaged or cut short"),
    "an archive of something else": (archive(b"").replace(b"data.pkl", b"file.txt"), "but no checkpoint"),
    "a compressed archive": (
        archive(NOTHING, zipfile.ZIP_DEFLATED, {"data/0": bytes(20_000_000)}),
        "is compressed",
    ),
    "entries that say they are larger": (
        archive(NOTHING, further={"b": bytes(1000)}).replace(b"\xe8\x03\0\0", b"\xff\xff\xff\x7f"),
        "damaged or cut short",
    ),
    "a TorchScript program": (archive(NOTHING, further={"constants.pkl": b""}), "TorchScript"),
    "a call for gigabytes of bytes": (
        archive(call("builtins", "bytearray", 2 * GIB - 1)),
        "more than tensors",
    ),
    "a call for a tensor of gigabytes": (archive(call("torch", "Tensor", GIB)), "more than tensors"),
    "a call for storage": (archive(call("torch.storage", "UntypedStorage", GIB)), "more than tensors"),
    "a bare pickle that calls": (call("builtins", "bytearray", 2 * GIB - 1), "more than tensors"),
    "a pickle of today": (pickle.dumps(Path("x"), 4), "more than tensors"),
    "a pickle cut short": (archive(b"\x80\x02}q\x00X\x05\x00\x00"), "damaged or cut short"),
    "a pickle of no known operation": (archive(b"\x80\x02\xfe."), "damaged or cut short"),
}


@pytest.mark.parametrize("name", REFUSED_FIRST)
def test_it_is_refused_before_torch_reads_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, message = REFUSED_FIRST[name]
    (tmp_path / "sae.pt").write_bytes(content)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read it"))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "sae.pt")


def expanded(*shape: int) -> torch.Tensor:
    return torch.zeros(1).expand(*shape)


REFUSED = {
    "an empty pickle": (archive(b"\x80\x02."), "damaged or cut short"),
    "a stack that is empty": (archive(b"\x80\x02ss."), "damaged or cut short"),
    "a list": (archive(pickle.dumps([1, 2], 2)), "no dictionary"),
    "no tensors": (archive(pickle.dumps({"model_state_dict": [3]}, 2)), "no dictionary"),
    "a tensor of strides zero": (checkpoint(**{"encoder.weight": expanded(10**7, 10**6)}), "holds fewer"),
    "a vector of strides zero": (checkpoint(pre_bias=expanded(10**12)), "holds fewer"),
    "a sparse matrix": (checkpoint(**{"encoder.weight": torch.eye(8).to_sparse()}), "more than tensors"),
    "a tensor without numbers": (checkpoint(pre_bias=torch.zeros(8, device="meta")), "more than tensors"),
    "complex numbers": (checkpoint(pre_bias=torch.zeros(D, dtype=torch.complex64)), "no plain tensor"),
    "architecture [16]": (checkpoint(architecture=[16]), r"holds a \[16\] SAE"),
    "architecture {}": (checkpoint(architecture={"a": nested(15)}), r"holds a \{'a': \[\[\["),
    "k of 6,000 digits": (checkpoint(topk_k=10**500), "k = 1000"),
    "k of a text": (checkpoint(topk_k="\x1b[2Jmany"), r"topk_k = \\x1b\[2Jmany"),
    "k of a tensor": (checkpoint(topk_k=torch.zeros(3)), "topk_k = tensor"),
    "input_dim of a list": (checkpoint(input_dim=[D]), r"input_dim = \[8\]"),
    "a config that is endless to print": (checkpoint(note=laughing(9)), "config .* is too large"),
    "a config that is endlessly deep": (checkpoint(note=nested(60)), "config .* is too large"),
    "no config": (checkpoint(use_topk=None, topk_k=None), "doesn't tell"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_what_it_is(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    (tmp_path / "sae.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        describe(tmp_path / "sae.pt")
    assert "\x1b" not in caught.value.message + caught.value.hint
    assert len(caught.value.message) < 1100


SAFETENSORS = {
    "cut short": b"\x40\x00\x00",
    "a header as long as the world": with_header(2**60),
    "a header longer than the file": with_header(5000),
    "a header that is no JSON": with_header(4, b"{{{{"),
    "a header of brackets": with_header(200_000, b"[" * 200_000),
    "a tensor beyond the end": with_header(
        60, b'{"W_enc":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(60)
    ),
    "a shape beyond counting": with_header(
        90,
        json.dumps({"W": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}})
        .encode()
        .ljust(90),
    ),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_that_lie(name: str, tmp_path: Path) -> None:
    (tmp_path / "sae.safetensors").write_bytes(SAFETENSORS[name])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        load(tmp_path)


def foreign(tmp_path: Path, case: str, **changed: Any) -> Path:
    """A foreign checkpoint with entries of its config exchanged."""
    folder = shutil.copytree(FOREIGN / case, tmp_path / "sae")
    name = "cfg.json" if (folder / "cfg.json").is_file() else "config.json"
    config = json.loads((folder / name).read_text())
    inner = (
        config["trainer"] if case.startswith("dictionary_learning") and "trainer" not in changed else config
    )
    inner.update(changed)
    (folder / name).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("case", "changed", "message"),
    [
        ("dictionary_learning/topk", {"trainer": [16]}, r"trainer = \[16\]"),
        ("dictionary_learning/topk", {"dict_class": [16]}, r"dict_class = \[16\]"),
        ("dictionary_learning/topk", {"dict_class": "CrossCoder"}, "CrossCoder, which is not read"),
        ("dictionary_learning/topk", {"dict_class": "JumpReluAutoEncoder"}, "tensors are those of topk"),
        ("dictionary_learning/topk", {"k": float("nan")}, "k = nan"),
        ("dictionary_learning/topk", {"k": True}, "k = True"),
        ("sae_lens/topk", {"architecture": [16]}, r"architecture = \[16\]"),
        ("sae_lens/topk", {"architecture": "\x1b[31mred"}, r"\\x1b\[31mred"),
        ("sae_lens/topk", {"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input = no"),
        ("sae_lens/topk", {"d_sae": 31}, "d_sae = 31, its weights say 32"),
        ("sae_lens/topk", {"k": 33}, "k = 33"),
        (
            "sae_lens/topk",
            {"activation_fn_kwargs": {"k": 5}},
            "is 4 in k and 5 in activation_fn_kwargs",
        ),
        ("sae_lens/topk", {"activation_fn": "relu"}, "architecture topk and activation relu"),
        ("sae_lens/jumprelu", {"architecture": "standard"}, "has thresholds"),
        ("sae_lens_5/standard_finetuned", {"finetuning_scaling_factor": False}, "says that it has none"),
        ("sae_lens_5/standard_topk", {"activation_fn_kwargs": [4]}, r"activation_fn_kwargs = \[4\]"),
        ("sae_lens_2/relu", {"activation_fn": None}, "whether it is a standard, a TopK or a JumpReLU"),
        ("sae_lens/standard_checkpoint_scaled", {"normalize_activations": [1]}, r"run time \(\[1\]\)"),
        ("sparsify/topk", {"k": "4"}, "k = 4"),
        ("sparsify/topk", {"num_latents": "32"}, "32 latents of 8, its weights 32 of 8"),
        ("sparsify/topk", {"transcode": 1}, "transcode = 1"),
        ("sparsify/topk", {"signed": True}, "signed codes"),
    ],
)
def test_configs_that_contradict_or_are_no_configs(
    case: str, changed: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(foreign(tmp_path, case, **changed))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "no JSON object"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"k": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b" " * (17 * 2**20), "is no config"),
    ],
)
def test_files_beside_a_checkpoint_that_are_no_configs(content: bytes, message: str, tmp_path: Path) -> None:
    folder = shutil.copytree(FOREIGN / "sae_lens/topk", tmp_path / "sae")
    (folder / "cfg.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("state", [{"W_skip": torch.zeros(D, D)}, {"W_enc": torch.zeros(2, D, F)}])
def test_crosscoders_and_skips_are_refused_in_any_format(state: dict, tmp_path: Path) -> None:
    save(tmp_path / "a", TopKSparseAutoencoder(D, F, K), form="sae_lens")
    (tmp_path / "a" / "sae_weights.safetensors").unlink()
    whole = {"b_enc": torch.zeros(F), "W_dec": torch.zeros(F, D), "b_dec": torch.zeros(D)}
    save_file(whole | {"W_enc": torch.zeros(D, F)} | state, tmp_path / "a" / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match="crosscoder|skip connection"):
        load(tmp_path / "a")


@pytest.mark.parametrize("name", ["n" * 300, "n\0n", "no-such-file"])
def test_names_that_no_file_has(name: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read|not found"):
        load(Path(name))


def test_files_of_old_torch_are_still_read(tmp_path: Path) -> None:
    content = torch.load(io.BytesIO(checkpoint()), weights_only=True)
    torch.save(content, tmp_path / "sae.pt", _use_new_zipfile_serialization=False)
    sae, _ = load(tmp_path / "sae.pt")
    assert torch.equal(sae.encoder.weight, content["model_state_dict"]["encoder.weight"])
    whole = (tmp_path / "sae.pt").read_bytes()
    (tmp_path / "sae.pt").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        load(tmp_path / "sae.pt")


def test_an_attack_at_any_place_runs_nothing(tmp_path: Path) -> None:
    target, path = tmp_path / "owned", tmp_path / "sae.pt"
    places: list[Callable[[], object]] = [
        lambda: Attack(target),
        lambda: {"config": Attack(target)},
        lambda: {"model_state_dict": {"pre_bias": Attack(target)}},
        lambda: {"activation_state_dict": {"k": Attack(target)}},
    ]
    for place in places:
        for new in (True, False):
            torch.save(place(), path, _use_new_zipfile_serialization=new)
            with pytest.raises(CheckpointError, match="not opened"):
                load(path)
            assert not target.exists()


def test_the_error_stands_alone_on_the_terminal(tmp_path: Path) -> None:
    """Torch has warnings of its own for pickles of today and TorchScript."""
    path = tmp_path / "sae.pt"
    path.write_bytes(pickle.dumps({"a": 1}, 4))
    command = [sys.executable, "-W", "default", "-m", "fluxscope", "sae-info", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.splitlines()[0].startswith(f"error: {path} ")
    assert len(found.stderr.splitlines()) == 2


@pytest.mark.parametrize("seed", range(60))
def test_damage_anywhere_is_a_clear_error_or_none(seed: int, tmp_path: Path) -> None:
    """Bytes changed, cut and moved in the files of other libraries; hours of it found nothing more."""
    chance = random.Random(seed)
    case = chance.choice(sorted(FOREIGN.glob("*/*")))
    folder = shutil.copytree(case, tmp_path / "sae")
    path = chance.choice(
        [p for p in sorted(folder.iterdir()) if p.suffix in (".pt", ".safetensors", ".json")]
    )
    content = bytearray(path.read_bytes())
    for _ in range(chance.randrange(1, 5)):
        place = chance.randrange(min(len(content), 1000))
        content[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    path.write_bytes(content)
    with suppress(CheckpointError):  # it may be harmless, and it may fail in no other way
        describe(folder)
