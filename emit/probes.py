"""Is it learning? Losses with the right and the wrong condition, and samples on fixed noise beside their hints."""

import torch

from emit.diffusion.objective import loss_by_quartile
from emit.evaluation.figures import costing_nothing, save_rows
from emit.model import to_grey
from emit.seeds import generator, seed_from


def choose_fixed(prompts, seed, count=32):
    """Draw `count` of the cases; return their numbers, and another prompt of the set for each (None: it has one alone)."""
    rng = generator(seed, "fixed cases")
    numbers = torch.randperm(len(prompts), generator=rng)[:count].tolist()
    different = sorted(set(prompts))
    if len(different) == 1:
        return numbers, None
    others = [[prompt for prompt in different if prompt != prompts[number]] for number in numbers]
    return numbers, [other[torch.randint(len(other), (), generator=rng)] for other in others]


@torch.no_grad()
def condition_losses(model, z_0, prompts, wrong, hint, rng):
    """Return the mean loss with the true, a zero and another case's hint, and with a wrong and the empty prompt, and `find_faults`.

    A condition that is used makes the loss with the true one the smallest. Same noise and timesteps for all. hint_gain_q1 to
    _q4: loss with a zero hint less that with the true one, by quarter of the timesteps.
    """
    t, eps = model.draw(z_0, rng)
    asked = {
        "hint_true": (prompts, hint),
        "hint_zero": (prompts, torch.zeros_like(hint)),
        "hint_other": (prompts, hint.roll(1, 0)),
        "prompt_wrong": (wrong, hint),
        "prompt_empty": ([""] * len(prompts), hint),
    }
    asked = {name: conditions for name, conditions in asked.items() if conditions[0] is not None}
    losses = {name: model.losses(z_0, t, eps, *conditions) for name, conditions in asked.items()}  # (B,) each
    means = {name: loss.mean().item() for name, loss in losses.items()}
    gains = loss_by_quartile(losses["hint_zero"] - losses["hint_true"], t, model.schedule.T)
    return means | {f"hint_gain_{quarter}": gain for quarter, gain in gains.items()}, find_faults(losses)


def find_faults(losses):
    """Name a hint that is cut and a text encoder that answers one constant, from each case's losses {condition: (B,)}.

    Equal within noise [choice]: in no case does the loss differ by more than a thousandth of its mean; a mean of differences
    could be small by chance.
    """
    true, faults = losses["hint_true"], []
    equal = [name for name, loss in losses.items() if (loss - true).abs().max() <= true.mean() / 1000]
    if "hint_zero" in equal:
        faults.append("the hint is cut, or the ControlNet untrained: with a zero hint every loss is the same within noise")
    if all(name in equal for name in losses if name.startswith("prompt")):
        faults.append(
            "the text encoder answers one constant, or nothing hears it: with any prompt every loss is the same within noise"
        )
    return faults


def save_samples(model, pictures, hints, path, seed, text_alone=2):
    """Save rows of fixed cases: original, decoded, hint (hints: of a Batch), two generated images, `text_alone` without hint."""
    with costing_nothing(path):
        order = torch.randperm(len(pictures), generator=generator(seed, "samples"))[:9].tolist()
        batch = pictures.batch(order)
        prompts, image, hint = batch.prompts, batch.image, hints(batch)
        device = next(model.unet.parameters()).device
        with torch.no_grad():
            z_0 = model.vae.encode(image.expand(-1, 3, -1, -1).to(device)).mode()
            decoded = to_grey(model.vae.decode(z_0)).clamp(-1, 1).cpu()
        rows = {"original": image, "decoded": decoded, "hint": hint[:, :1]}
        for sample in range(2 + text_alone):
            seeds = [seed_from(seed, "samples", i, sample) for i in order]
            drawn = model.generate(prompts, hint if sample < 2 else None, seeds, pictures.size)
            rows[f"{'generated' if sample < 2 else 'text alone'} {sample % 2 + 1}"] = to_grey(drawn).cpu()
        save_rows(path, rows, [prompt.replace(", ", "\n", 1) for prompt in prompts])
