"""How strongly the text and the edge steer: classifier-free guidance and the scales of the control residuals."""

from torch import Tensor


def classifier_free(eps_uncond: Tensor, eps_cond: Tensor, w: float) -> Tensor:
    """Return eps_uncond + w (eps_cond - eps_uncond).   (2207.12598; w = 1 is no guidance, their w is our w - 1)"""
    return eps_uncond + w * (eps_cond - eps_uncond)


def control_scales(strength: float, count: int = 13, guess_mode: str | None = None) -> list[float]:
    """Return one factor for each control residual, first encoder residual first, middle block last.

    None: strength everywhere.  The guess modes weaken the shallow ones; the two public rules are not equal:
    "original" (lllyasviel): strength 0.825^(12 - i);  "diffusers": strength 10^(-1 + i / 12);  12 = count - 1.
    """
    last = count - 1  # the middle block, the coarsest: both rules leave it at full strength
    if guess_mode is None:
        return [float(strength)] * count
    if guess_mode == "original":
        return [strength * 0.825 ** (last - i) for i in range(count)]
    if guess_mode == "diffusers":
        return [strength * 10 ** (i / last - 1) for i in range(count)]
    raise ValueError(f'guess_mode is None, "original" or "diffusers", not {guess_mode!r}')
