"""Captions of crops by a tiny BLIP, and the words that some have more than others."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import fisher_exact

from fluxscope.errors import CheckpointError, FluxscopeError
from fluxscope.measures.captions import caption, load_captioner, said_more
from tests.tiny_captioner import WORDS, save_captioner


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_captioner(tmp_path_factory.mktemp("vlm") / "model")


@pytest.fixture(scope="module")
def captioner(folder):
    return load_captioner(folder)


def pictures(count):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(count)]


def test_the_words_are_the_likeliest_ones_of_the_crop_alone(captioner):
    """Decoded here token by token from the parts of the model, one crop at a time."""
    import torch

    images, box = pictures(5), (8, 0, 40, 32)
    said = caption(captioner, images, [box] * 5, batch_size=2)
    model, processor = captioner.model, captioner.processor
    for image, words in zip(images, said, strict=True):
        pixels = processor(images=image.crop(box), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            seen = model.vision_model(pixels)[0]
            tokens = [5]
            while len(tokens) <= 20 and tokens[-1] != 3:
                logits = model.text_decoder(
                    input_ids=torch.tensor([tokens]), encoder_hidden_states=seen, return_dict=True
                ).logits
                tokens.append(int(logits[0, -1].argmax()))
        expected = [WORDS[token] for token in tokens if token > 4]
        assert [word for word in words.split() if word != "[DEC]"] == [w for w in expected if w != "[DEC]"]
    whole = caption(captioner, images, [(0, 0, 48, 48)] * 5)
    assert said == caption(captioner, images, [box] * 5) and whole != said


def test_a_word_that_a_features_crops_share_and_random_ones_lack_is_said():
    """Two features, a third whose crops are as random ones, and one of too few crops; z and p by hand."""
    own = [["a red circle"] * 5 + ["a red star"], ["a blue star"] * 6, ["a green square", "a blue ring"] * 3]
    captions = [text for texts in own for text in texts] + ["a red ring"] * 2
    owner = [0] * 6 + [1] * 6 + [2] * 6 + [3] * 2
    colours = ("green", "blue", "red", "white")
    captions += [f"a {colours[i % 4]} {('square', 'ring', 'heart')[i % 3]}" for i in range(24)]
    owner += [-1] * 24
    said = said_more(captions, np.array(owner), 4)
    assert set(said[0]) == {"circle", "red circle", "red"} and said[2] == said[3] == []
    assert set(said[1]) == {"star", "blue star", "blue"}
    has = np.array(["red" in text for text in captions])
    of = np.array(owner)
    table = [
        [(has & (of == 0)).sum(), (~has & (of == 0)).sum()],
        [(has & (of < 0)).sum(), (~has & (of < 0)).sum()],
    ]
    assert table == [[6, 0], [6, 18]]
    assert fisher_exact(table, "greater").pvalue < 0.01


def test_random_captions_say_nothing():
    rng = np.random.default_rng(1)
    words = [f"word{chr(97 + i)}" for i in range(20)]
    captions = [" ".join(rng.choice(words, 6)) for _ in range(100 * 12 + 96)]
    owner = np.repeat(np.arange(101), [12] * 100 + [96])
    said = said_more(captions, np.where(owner == 100, -1, owner), 100)
    assert sum(bool(each) for each in said) <= 1
    assert said_more(["a", "the"], np.array([0, -1]), 1) == [[]]


def test_what_is_no_captioner_is_one_clear_error(folder, tmp_path):
    from fluxscope.shapes.shipped import CLIP_SHAPES, resolve

    (tmp_path / "empty").mkdir()
    for name in (tmp_path / "nowhere", tmp_path / "empty", resolve(CLIP_SHAPES)):
        with pytest.raises(
            CheckpointError, match=f"no vision-language model could be loaded from {name}"
        ) as e:
            load_captioner(name)
        assert "--vlm" in e.value.hint and "\n" not in str(e.value)
    broken = save_captioner(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="no vision-language model"):
        load_captioner(broken)


def test_a_model_that_has_to_be_asked_is_refused(captioner, monkeypatch):
    def asks(**_):
        raise ValueError("You need to specify text")

    monkeypatch.setattr(captioner.model, "generate", asks)
    with pytest.raises(FluxscopeError, match="says nothing of a picture"):
        caption(captioner, pictures(1), [(0, 0, 9, 9)])
