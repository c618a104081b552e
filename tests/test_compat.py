"""Published deviations by name, and what those of the generator change: seeds and texts."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from emit.compat import DEVIATIONS, read_compat
from emit.data.prompts import APPEARANCE_PHRASES, add_phrase, draw_phrase, gray_sketch
from emit.errors import InputError
from emit.generate import Settings, plan
from emit.seeds import generator

CASES = [SimpleNamespace(id=name, prompt=f"US, breast, {name}") for name in ("benign", "malignant")]
SETTINGS = Settings(**dict.fromkeys(("model", "finetuned", "hed", "out"), Path("x")), seed=3, n=4)


def list_jobs(deviations=(), **change):
    return plan(CASES, replace(SETTINGS, compat=deviations, **change))


@pytest.mark.parametrize(
    ("words", "program", "names"),
    [
        ((), "train_seg.py", ()),
        (("diffboost",), "train_seg.py", tuple(sorted(DEVIATIONS["train_seg.py"]))),
        (("diffboost:one_seed", "gray_sketch"), "emit.generate", ("gray_sketch", "one_seed")),
    ],
)
def test_names_are_read(words, program, names):
    assert read_compat(words, program) == names


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"--compat: nonsense .*choose from diffboost"):
        read_compat(("diffboost:nonsense",), "train_seg.py")


def test_one_flag_with_all_six_names_serves_both_programs():
    words = ("diffboost:select_on_test", "no_shuffle", "fake_pixel", "one_seed", "gray_sketch", "mix_logits")
    for program, names in DEVIATIONS.items():
        assert set(read_compat(words, program)) == set(names)


def test_every_image_has_a_seed_of_its_own_but_with_one_seed():
    seeds = [job.seed for job in list_jobs()]
    assert len(set(seeds)) == 8
    shared = [job.seed for job in list_jobs(("one_seed",))]
    assert shared[:4] == shared[4:] and len(set(shared)) == 4
    assert list_jobs(n=2)[:2] == list_jobs()[:2]  # more images leave the first as they are


def test_texts_are_the_prompt_unless_asked():
    assert [job.prompt for job in list_jobs()] == [CASES[0].prompt] * 4 + [CASES[1].prompt] * 4
    with_words = [job.prompt for job in list_jobs(phrases="words")]
    phrases = [text.removeprefix(f"{CASES[i // 4].prompt}, ") for i, text in enumerate(with_words)]
    assert set(phrases) <= set(APPEARANCE_PHRASES) and len(set(phrases)) > 1
    assert add_phrase("", "darker") == "darker"
    mixed = [job.prompt for job in list_jobs(phrases="0.25")]
    assert mixed[5] == ((0.75, CASES[1].prompt), (0.25, phrases[5]))


@pytest.mark.parametrize("phrases", ["1.5", "some", "nan"])
def test_phrases_that_make_no_sense_are_refused(phrases):
    with pytest.raises(InputError, match=rf"--phrases: is {phrases}; give none, words, or a weight from 0 to 1"):
        list_jobs(phrases=phrases)


def test_gray_sketch_has_the_published_weights():
    mixture = list_jobs(("gray_sketch",))[0].prompt
    phrase = draw_phrase(generator(3, "benign", 0, "phrase"))
    assert mixture == gray_sketch("US, breast, benign", phrase)
    assert [weight for weight, _ in mixture] == [0.045, 0.005, 0.95]
    assert [text for _, text in mixture][1:] == [phrase, "gray, sketch"]
    assert sum(weight for weight, _ in mixture) == pytest.approx(1, abs=1e-12)
