import numpy as np
import pytest
import torch

from fluxscope import files
from fluxscope.errors import ConfigError, FluxscopeError, MissingInputError, RunDirError
from fluxscope.measures.detection import best_single_f1
from fluxscope.models.model import open_model
from fluxscope.models.sites import parse_site
from fluxscope.models.spec import PictureSpec
from fluxscope.progress import Reporter
from fluxscope.run import truth as material
from fluxscope.run.activations import ActivationStore
from fluxscope.run.truth import codes_of, make_truth
from fluxscope.sae.features import load_sae
from fluxscope.shapes import oracle
from fluxscope.shapes.concepts import ATTRIBUTES, CONCEPTS, TOKENS, token_truth
from fluxscope.shapes.shipped import shipped_sae

QUIET = Reporter(quiet=True)
SITE = "double.5.ff"


@pytest.fixture(scope="module")
def model():
    return open_model("flux-shapes", "cpu", "float32")


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """Twenty pictures, in batches of ten."""
    folder = tmp_path_factory.mktemp("truth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(material, "BATCH", 10)
        yield make_truth(model, folder, 13, [parse_site(SITE)], [13], QUIET)


def refused_to_sample(*_, **__):
    raise AssertionError("a picture was made again")


def test_pictures_and_activations_are_those_of_the_captions(model, made):
    assert len(made.asked) == 20  # whole batches
    ten = made.asked[10:]
    heard = {}
    from fluxscope.models.capture import Capture

    capture = Capture([parse_site(SITE)], [13], lambda site, step, x: heard.update(x=x.clone()))
    pixels = model.pictures([q.caption for q in ten], [q.seed for q in ten], capture).numpy()
    for i in range(10):
        assert (made.picture(10 + i) == pixels[i]).all()
    kept = made.activations(SITE, 13)
    assert kept.shape == (20, TOKENS, 128)
    assert torch.equal(kept[10:], heard["x"].bfloat16())
    assert (made.tokens[13] == token_truth(oracle.read(pixels[3]))).all()
    said = {f"background: {ten[3].scene.background}"}
    assert said <= {CONCEPTS[c] for c in np.flatnonzero(made.tokens[13].any(0))}


def test_truth_by_tokens_and_by_pictures(made):
    concepts = ("color: red", "background: black")
    tokens, pictures = made.on_tokens(concepts), made.on_pictures(concepts)
    assert tokens.shape == (20 * TOKENS, 2)
    for number in range(20):
        seen = oracle.read(made.picture(number))
        assert pictures[number, 1] == (seen.background == "black")
        assert pictures[number, 0] == any(thing.color == "red" for thing in seen.objects)
        own = tokens[number * TOKENS : (number + 1) * TOKENS]
        assert (own.any(0) == pictures[number]).all()


def test_what_is_there_is_not_made_again(model, made, monkeypatch):
    monkeypatch.setattr(material, "BATCH", 10)
    monkeypatch.setattr(type(model), "sample", refused_to_sample)
    monkeypatch.setattr(oracle, "read", refused_to_sample)
    again = make_truth(model, made.folder, 20, [parse_site(SITE)], [13], QUIET)
    assert (again.tokens == made.tokens).all()
    fewer = make_truth(model, made.folder, 10, [parse_site(SITE)], [13], QUIET)
    assert len(fewer.activations(SITE, 13)) == len(fewer.tokens) == 10


def test_an_interrupted_run_goes_on_and_another_site_is_added(model, made, monkeypatch, tmp_path):
    monkeypatch.setattr(material, "BATCH", 10)
    site = parse_site("double.5.attn")
    real, steps = type(model).sample, []

    def fail_in_the_second_batch(self, *args, **settings):
        steps.append(settings["stop_after"])
        if len(steps) == 2:
            raise KeyboardInterrupt
        return real(self, *args, **settings)

    monkeypatch.setattr(type(model), "sample", fail_in_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        make_truth(model, made.folder, 20, [parse_site(SITE), site], [13], QUIET)
    store = ActivationStore(made.folder / "activations" / site.name / "step_13")
    assert store.n_images == 10
    store.truncate(9)  # as if killed within a batch
    before = made.activations(SITE, 13)
    found = make_truth(model, made.folder, 20, [parse_site(SITE), site], [13], QUIET)
    assert steps == [13, 13, 13, 13]  # the pictures are there: no farther than the step that is listened at
    assert torch.equal(found.activations(SITE, 13), before)
    monkeypatch.setattr(type(model), "sample", real)
    fresh = make_truth(model, tmp_path, 20, [site], [13], QUIET)
    assert torch.equal(fresh.activations(site.name, 13), found.activations(site.name, 13))
    assert (fresh.tokens == made.tokens).all()


def test_a_damaged_or_older_truth_is_read_again(model, made, monkeypatch):
    monkeypatch.setattr(material, "BATCH", 10)
    path = made.folder / "truth.npz"
    files.save_npz(path, concepts=np.array(["color: red"]), tokens=np.zeros(8, np.uint8))
    assert (make_truth(model, made.folder, 20, [], [], QUIET).tokens == made.tokens).all()
    path.write_bytes(b"PK nothing")
    with pytest.raises(FluxscopeError, match=r"truth\.npz cannot be read"):
        make_truth(model, made.folder, 20, [], [], QUIET)
    path.unlink()
    assert (make_truth(model, made.folder, 20, [], [], QUIET).tokens == made.tokens).all()


def test_what_has_no_truth_is_refused(model, made, tmp_path):
    with pytest.raises(ConfigError, match=r"double\.5\.context carries text tokens"):
        make_truth(model, tmp_path, 10, [parse_site("double.5.context")], [13], QUIET)
    with pytest.raises(ConfigError, match="the model has no site double.99"):
        make_truth(model, tmp_path, 10, [parse_site("double.99")], [13], QUIET)
    with pytest.raises(ConfigError, match="no denoising step 21"):
        make_truth(model, tmp_path, 10, [parse_site(SITE)], [20], QUIET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "model_id", "black-forest-labs/FLUX.1-dev")
        with pytest.raises(ConfigError, match="FLUX.1-dev's pictures") as caught:
            make_truth(model, tmp_path, 10, [parse_site(SITE)], [13], QUIET)
        assert "fluxscope site-map" in caught.value.hint
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunDirError, match="made otherwise .*num_inference_steps differ"):
        make_truth(model, made.folder, 10, [], [], QUIET, PictureSpec(128, 128, 4, 3.5))
    with pytest.raises(MissingInputError, match="no activations"):
        made.activations("double.6.ff", 13)


def test_the_bundled_sae_can_be_scored(made):
    sae, _ = load_sae(shipped_sae(5))
    codes = codes_of(sae, made.activations(SITE, 13))
    assert codes.shape == (20 * TOKENS, sae.hidden_dim)
    row = sae.encode(made.activations(SITE, 13)[3, 7].float())
    assert codes[[3 * TOKENS + 7]].toarray()[0] == pytest.approx(row.detach().numpy(), abs=1e-4)
    scores = best_single_f1(codes, made.on_tokens(ATTRIBUTES), made.parts().of_tokens(TOKENS))
    known = made.on_tokens(ATTRIBUTES)[made.parts().of_tokens(TOKENS).choose].any(0)
    assert (scores.chosen_f1[known] > 0.1).all()
    assert scores.chosen_f1.mean() > scores.f1.mean()
