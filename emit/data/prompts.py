"""What is said to the text encoder: modality, organ and pathology, and a phrase about the picture's appearance."""

import torch

ABBREVIATIONS = {  # RadImageNet's folder names
    "abd": "abdomen",
    "af": "ankle/foot",
    "cbd": "common bile duct",
    "gb": "gallbladder",
    "ivc": "inferior vena cava",
}

APPEARANCE_PHRASES = (  # [paper] 50 phrases about appearance, never about anatomy; [choice] the words are ours
    "enhance contrast", "reduce contrast", "strong contrast", "gentle contrast", "even contrast",
    "brighter", "darker", "slightly brighter", "slightly darker", "well exposed",
    "bright centre", "dark centre", "bright border", "dark border", "even brightness",
    "deep shadows", "soft shadows", "lifted shadows", "muted highlights", "strong highlights",
    "sharp edges", "soft edges", "crisp detail", "smooth detail", "fine detail",
    "fine texture", "coarse texture", "smooth texture", "grainy texture", "uniform texture",
    "low noise", "light noise", "heavy noise", "fine speckle", "coarse speckle",
    "slight blur", "motion blur", "no blur", "in focus", "slightly out of focus",
    "high resolution", "low resolution", "wide grey range", "narrow grey range", "clean background",
    "dark background", "hazy picture", "clear picture", "faint streaks", "uneven illumination",
)  # fmt: skip


def describe(modality, organ, pathology=None):
    """Return the prompt "US, breast, benign" (paper, section on text conditions), a level that is an abbreviation spelt out."""
    return ", ".join(ABBREVIATIONS.get(level.lower(), level.replace("_", " ")) for level in (modality, organ, pathology) if level)


def draw_phrase(rng):
    """Draw one of the 50 appearance phrases with a torch.Generator."""
    return APPEARANCE_PHRASES[torch.randint(len(APPEARANCE_PHRASES), (), generator=rng).item()]


def add_phrase(prompt, phrase, weight=None):
    """Return "US, breast, enhance contrast" (paper, Fig. 1), or with a weight the mixture of both texts' states (c_t + c_aug)."""
    if weight is None:
        return f"{prompt}, {phrase}" if prompt else phrase
    return ((1 - weight, prompt), (weight, phrase))


def gray_sketch(prompt, phrase):
    """Return the mixture of text states that the authors' code samples with: 95 % are "gray, sketch"."""
    return ((0.045, f"{prompt}, best quality, extremely detailed"), (0.005, phrase), (0.95, "gray, sketch"))
