"""Prompts say what the folder path says; the appearance phrase is the generator's alone."""

from emit.data.prompts import APPEARANCE_PHRASES, describe, draw_phrase
from emit.seeds import generator


def test_prompt_has_the_papers_form_and_spells_out_abbreviations_that_are_a_whole_level():
    assert describe("US", "breast", "benign") == "US, breast, benign"
    assert describe("MR", "af", "bone_marrow_edema") == "MR, ankle/foot, bone marrow edema"
    assert [describe("US", name) for name in ("cbd", "ivc")] == ["US, common bile duct", "US, inferior vena cava"]
    assert describe("CT", "abd", "calf_abd_gb") == "CT, abdomen, calf abd gb"  # parts of a level stay as they are


def test_there_are_fifty_different_phrases():
    assert len(APPEARANCE_PHRASES) == len(set(APPEARANCE_PHRASES)) == 50
    assert all(phrase == phrase.strip().lower() and len(phrase) <= 25 for phrase in APPEARANCE_PHRASES)


def test_phrases_depend_on_the_generator_alone():
    first = [draw_phrase(generator(0, k)) for k in range(400)]
    assert first == [draw_phrase(generator(0, k)) for k in range(400)]
    # 400 draws from 50 miss one phrase with probability 50 (49 / 50)^400 = 1.5 %; the seeds are fixed
    assert set(first) == set(APPEARANCE_PHRASES)
