"""What the generated images are worth as data: are they copies, do they differ. Whether they follow their mask: train_seg.py.

Images: (H, W) or (C, H, W), arrays or CPU tensors in any range; correlation ignores brightness and contrast.
"""

import numpy as np

from emit.data.similarity import thumbnails

EXACT = 1 - 1e-5  # the correlation of two equal images, less what float32 sums may lose


def find_nearest(queries, images, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each query image (index, correlation) of the most correlated of `images`, as two arrays."""
    correlation = thumbnails(queries, side) @ thumbnails(images, side).T
    return correlation.argmax(axis=1), correlation.max(axis=1).astype(np.float64)


def flag_copies(correlation, held_out, quantile: float = 0.99) -> np.ndarray:
    """Say of N generated images which are exact copies, or nearer to training images than the quantile of M unseen real ones.

    correlation (N,), held_out (M,): with the nearest training image.
    """
    return (correlation > np.quantile(held_out, quantile)) | (correlation > EXACT)


def describe_generated(pairs, training, held_out, side: int = 32) -> dict:
    """Describe a fold's generated images beside real ones: how near to training images, how different among themselves.

    pairs: (id of the training case, image (1, 1, S, S), mask) of each; training, held_out: `emit.data.cache.TrainingImages`.
    side: of the thumbnails, 32 for shifted or noisy copies.
    """
    sources, images = zip(*((case, image[0]) for case, image, _ in pairs), strict=True)
    real, unseen = (pictures.image(range(len(pictures))) for pictures in (training, held_out))
    nearest, correlation = find_nearest(images, real, side)
    _, unseen = find_nearest(unseen, real, side)
    by_source = {}
    for image, source in zip(images, sources, strict=True):
        by_source.setdefault(source, []).append(image)
    power, real_power = (radial_power_spectrum(np.stack([np.asarray(one) for one in some]))[0] for some in (images, real))
    several = [measure_diversity(samples, side) for samples in by_source.values() if len(samples) > 1]
    return {
        "images": len(images),
        "correlation": float(np.median(correlation)),  # with the nearest training image
        "highest": float(correlation.max()),
        "held_out": float(np.median(unseen)),  # the same of unseen real images
        "flagged": int(flag_copies(correlation, unseen).sum()),
        "own_source": float(np.mean([training.cases[i].id == source for i, source in zip(nearest, sources, strict=True)])),
        "diversity": float(np.mean(several)) if several else None,  # within a case
        "texture": float(power / max(real_power, 1e-12)),  # power in the finest octave, over real images
    }


def radial_power_spectrum(images, octaves: int = 4) -> np.ndarray:
    """Return the power in each octave of spatial frequency, the finest first, averaged over images (..., H, W): (octaves,).

    P_k = sum over 2^-(k+1) < r <= 2^-k of |F[w (x - mean x)]|^2 / (H W sum w^2); r: frequency over Nyquist's, half a cycle
    per pixel; w: Hann's window, as the jump between opposite borders would pass for fine detail. A wave a sin has a^2 / 2.
    P of decoded over P of real images says what a decoder blurs (below 1) or invents (above 1; 2003.01826).
    """
    images = np.asarray(images, np.float64)
    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in images.shape[-2:]))
    rows, columns = (np.fft.fftfreq(side, 0.5) for side in images.shape[-2:])  # 1 is Nyquist's frequency
    radius = np.hypot(rows[:, None], columns)
    centred = window * (images - images.mean(axis=(-2, -1), keepdims=True))
    power = np.abs(np.fft.fft2(centred)) ** 2 / (window**2).sum() / window.size
    power = power.reshape(-1, *radius.shape).mean(axis=0)  # (..., H, W) -> (H, W)
    return np.array([power[(radius > 0.5 ** (k + 1)) & (radius <= 0.5**k)].sum() for k in range(octaves)])


def measure_diversity(samples, side: int) -> float:
    """Mean of 1 - correlation over all pairs of the n >= 2 samples of one case: 0 = all alike, 1 = unrelated."""
    rows = thumbnails(samples, side).astype(np.float64)
    return float(1 - (rows @ rows.T)[np.triu_indices(len(rows), 1)].mean())
