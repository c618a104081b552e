"""Drawn anatomy: one breast ultrasound, one abdominal CT or one prostate MR slice, with its labels and boundaries.

Not a simulation: what is kept of each modality is stated at its function, and nothing clinical follows from it. Rows
run from anterior to posterior (ultrasound: from the skin down), columns from the patient's right to left. Lengths are
fractions of half the picture's width. Every random draw comes from the numpy generator that is passed in.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

DYNAMIC_RANGE = 60.0  # dB from black to white in the ultrasound picture
LUNG, AIR, FAT, MUSCLE = -850, -1000, -100, 55  # HU


@dataclass(frozen=True)
class Picture:
    """One slice: image (C, H, W) in physical units, masks (labels (H, W) of each object), boundary (H, W) in [0, 1]."""

    image: np.ndarray
    masks: tuple
    boundary: np.ndarray

    @property
    def mask(self):
        return np.max(self.masks, axis=0)


class Canvas:
    """Tissue properties (C, H, W), painted region over region, and the visible boundary between the regions.

    x, y: pixel centres, in [-1, 1] divided by `stretch`. Regions are signed distances in pixels, negative inside.
    """

    def __init__(self, size, background, stretch=(1.0, 1.0)):
        centres = (np.arange(size) + 0.5) / size * 2 - 1
        self.size = size
        self.x, self.y = centres[None, :] / stretch[0], centres[:, None] / stretch[1]
        self.properties = np.tile(np.array(background, float)[:, None, None], (1, size, size))
        self.boundary = np.zeros((size, size))

    def distance(self, level):
        """Turn a function that vanishes on a curve into the distance to it: f / |grad f|, exact to first order."""
        level = np.broadcast_to(level, (self.size, self.size))
        return level / np.maximum(np.hypot(*np.gradient(level)), 1e-6)

    def blob(self, x, y, a, b, angle=0.0, wave=()):
        """Return the distance to the closed curve r = 1 + sum_k c_k cos(k theta + phase_k), in units of radii a, b."""
        cosine, sine = np.cos(angle), np.sin(angle)
        u = ((self.x - x) * cosine + (self.y - y) * sine) / a
        v = ((self.y - y) * cosine - (self.x - x) * sine) / b
        theta = np.arctan2(v, u)
        return self.distance(np.hypot(u, v) - 1 - sum(c * np.cos(k * theta + phase) for k, c, phase in wave))

    def strands(self, rng, spread, offset=0.25):
        """Return the distance to thin winding sheets: a contour of a smooth random field, spread = (rows, columns)."""
        return self.distance(make_grain(rng, self.size, (spread[0] * self.size, spread[1] * self.size)) + offset)

    def paint(self, distance, values, soft=1.0, line=1.0):
        """Cover a region with values, over an edge `soft` pixels wide; draw its contour 1.5 pixels wide."""
        cover = np.clip(0.5 - distance / soft, 0, 1)
        self.properties += cover * (np.array(values, float)[:, None, None] - self.properties)
        self.boundary *= 1 - np.clip(0.5 - distance, 0, 1)
        self.stroke(distance, line)

    def stroke(self, distance, line=1.0):
        """Add a line to the boundary map."""
        self.boundary = np.maximum(self.boundary, line * np.clip(1.25 - np.abs(distance), 0, 1))


@dataclass(frozen=True)
class Organ:
    """An ellipsoid with a wobbling contour: centre (x, y, z), radii (a, b, h); h along the slice axis, z in [-1, 1]."""

    x: float
    y: float
    z: float
    a: float
    b: float
    h: float
    angle: float
    wave: tuple

    def cut(self, canvas, z, shrink=0.0):
        """Return the distance to the organ's contour at height z; nowhere inside where the slice misses it."""
        scale = np.sqrt(max(1 - ((z - self.z) / self.h) ** 2, 0))
        a, b = self.a * scale - shrink, self.b * scale - shrink
        if min(a, b) < 0.02:
            return np.full((canvas.size, canvas.size), np.inf)
        return canvas.blob(self.x, self.y, a, b, self.angle, self.wave)


def draw_organ(rng, x, y, a, b, h=9.0, z=0.0, angle=0.0, vary=0.08, wobble=0.04):
    """Draw a patient's organ: centre, radii and angle vary by about `vary` of the radii, the contour by `wobble`."""
    shift, scale = rng.normal(0, vary, 3) * (a, b, 0.5 * min(h, 1)), np.exp(rng.normal(0, vary, 3))
    return Organ(x + shift[0], y + shift[1], z + shift[2], a * scale[0], b * scale[1], h * scale[2],
                 angle + rng.normal(0, vary), draw_wave(rng, wobble, 2, 4))


def draw_wave(rng, amplitude, low, high):
    """Draw a contour's wobble: harmonics low..high with random phases, falling off with the frequency."""
    return tuple((k, rng.normal(0, amplitude * low / k), rng.uniform(0, 2 * np.pi)) for k in range(low, high + 1))


# Noise. Grain widths are in pixels, so that a picture of any size keeps a texture 2 to 3 pixels wide.


def make_grain(rng, size, sigma):
    """Return Gaussian noise (size, size), mean 0, variance 1, correlated over sigma = (rows, columns) pixels."""
    return ndimage.gaussian_filter(rng.standard_normal((size, size)), sigma, mode="wrap") / measure_gain(size, sigma)


@lru_cache
def measure_gain(size, sigma):
    """Return the standard deviation that the filter leaves of white noise: the root sum of squares of its kernel."""
    impulse = np.zeros((size, size))
    impulse[size // 2, size // 2] = 1
    return np.sqrt(np.square(ndimage.gaussian_filter(impulse, sigma, mode="wrap")).sum())


def make_speckle(rng, size):
    """Return fully developed speckle: the amplitude |g1 + i g2| / sqrt 2 of a random phasor sum, Rayleigh, rms 1."""
    real, imaginary = (make_grain(rng, size, (0.9, 1.4)) for _ in range(2))
    return np.hypot(real, imaginary) / np.sqrt(2)


def make_bias(rng, size):
    """Return a receive coil's smooth gain (size, size): 1 + 0.3 cos cos, each under half a period."""
    t = np.linspace(-1, 1, size)
    phase, period = rng.uniform(-1.5, 1.5, 2), rng.uniform(1.0, 1.5, 2)
    return 1 + 0.3 * np.cos(period[0] * t + phase[0])[:, None] * np.cos(period[1] * t + phase[1])[None, :]


def add_rician(rng, signal, sigma):
    """Return the magnitude |signal + complex noise|: Rician, and Rayleigh with mean sigma sqrt(pi / 2) where dark."""
    real, imaginary = (sigma * make_grain(rng, signal.shape[-1], (0.7, 0.7)) for _ in range(2))
    return np.hypot(signal + real, imaginary)


# Breast ultrasound. Properties: echo level in dB below white, tissue texture in dB, attenuation in dB over the depth.


def draw_us(size, pathology, fixed, rng):
    """Draw one breast ultrasound: image (1, H, W) in [0, 1], one mask per lesion, label 1. `fixed`: patient's draws.

    Layers of skin, fat, gland and muscle; grey = level + fibre texture - attenuation summed down the beam + Rayleigh
    speckle, in dB over a range of 60 dB. Benign: smooth, wider than tall, bright behind; malignant: taller, ragged,
    blurred, dark behind. Fat lobules, cysts and shadows are there to mislead and carry no label.
    """
    u = fixed.uniform
    fat, gland, gain = u(-37, -31), u(-24, -16), u(-3, 4)
    depth = np.cumsum([u(0.08, 0.14), u(0.25, 0.6), u(0.5, 0.95)]) - 1
    canvas = Canvas(size, (-14, 3, 2))
    curves = []
    for at, values in zip(depth, ((fat, 3, 6), (gland, 5, 8), (fat - 4, 8, 14)), strict=True):
        curves.append(at + draw_curve(rng, canvas.x[0], 0.02 + 0.06 * (at > -0.8)))
        interface = canvas.distance(curves[-1][None, :] - canvas.y)
        canvas.paint(interface, values, soft=2.0)
        canvas.properties[0] += 8 * np.clip(1.5 - np.abs(interface), 0, 1)
    draw_septa(canvas, rng, curves)
    draw_distractors(canvas, rng, curves, fat)
    lesions = 0 if pathology == "normal" else 1 + (rng.random() < 0.12)
    masks = [draw_lesion(canvas, rng, pathology, curves, gland) for _ in range(lesions)]
    level, texture, attenuation = canvas.properties
    rows = np.arange(size)[:, None] + (curves[1] - curves[1].mean())[None, :] * size / 2  # fibres follow the layers
    columns = np.broadcast_to(np.arange(size), (size, size))
    fibre = ndimage.map_coordinates(make_grain(rng, size, (1.1, size / 12)), [rows, columns], order=1, mode="wrap")
    beam = ndimage.gaussian_filter1d(np.cumsum(attenuation, axis=0) / size, size / 64, axis=1)
    speckle = 20 * np.log10(make_speckle(rng, size) + 0.15)  # the scanner's floor keeps the nulls from going black
    image = np.clip(1 + (level + texture * fibre - beam + gain + speckle) / DYNAMIC_RANGE, 0, 1)
    masks = masks or [np.zeros((size, size), np.uint8)]
    return Picture(image[None].astype(np.float32), tuple(masks), canvas.boundary)


def draw_curve(rng, x, amplitude):
    """Draw a layer's gently waving depth along x."""
    return sum(rng.normal(0, amplitude / k) * np.cos(k * 1.7 * x + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3))


def draw_septa(canvas, rng, curves):
    """Draw the bright sheets between lobules: strong in the fat, where they are visible boundaries, faint in gland."""
    distance = canvas.strands(rng, (0.09, 0.16))
    fat = (canvas.y > curves[0][None, :] + 0.06) & (canvas.y < curves[1][None, :])
    gland = (canvas.y >= curves[1][None, :]) & (canvas.y < curves[2][None, :])
    canvas.properties[0] += (14 * fat + 5 * gland) * np.clip(1.4 - np.abs(distance), 0, 1)
    canvas.stroke(np.where(fat, distance, np.inf))


def draw_distractors(canvas, rng, curves, fat):
    """Draw what misleads: dark fat lobules within the gland, in some pictures a small black cyst or a shadow."""
    for _ in range(rng.integers(0, 3)):
        x, y = draw_place(rng, canvas, curves)
        a = rng.uniform(0.12, 0.34)
        lobule = canvas.blob(x, y, a, a * rng.uniform(0.3, 0.5), rng.normal(0, 0.3), draw_wave(rng, 0.08, 2, 4))
        canvas.properties[0] += 3 * np.clip(1.5 - np.abs(lobule - 1), 0, 1)
        canvas.paint(lobule, (fat + 5, 4, 6))
    if rng.random() < 0.2:
        x, y = draw_place(rng, canvas, curves)
        a = rng.uniform(0.07, 0.13)
        canvas.paint(canvas.blob(x, y, a, a * rng.uniform(0.8, 1.0)), (-58, 0, -60))
    if rng.random() < 0.3:
        canvas.properties[2] += rng.uniform(8, 20) * np.exp(-((canvas.x - rng.uniform(-1, 1)) / 0.15) ** 2)


def draw_place(rng, canvas, curves):
    """Draw a centre within the gland's layer."""
    x = rng.uniform(-0.6, 0.6)
    column = int((x + 1) / 2 * canvas.size)
    return x, rng.uniform(curves[1][column] + 0.1, max(curves[2][column] - 0.1, curves[1][column] + 0.2))


def draw_lesion(canvas, rng, pathology, curves, gland):
    """Paint one lesion, 13 to 25 dB darker than the gland, and return its mask (H, W) uint8."""
    x, y = draw_place(rng, canvas, curves)
    level = gland - rng.uniform(13, 25)
    if pathology == "benign":
        a = rng.uniform(0.2, 0.45)
        outline = canvas.blob(x, y, a, a * rng.uniform(0.5, 0.72), rng.normal(0, 0.12), draw_wave(rng, 0.03, 2, 3))
        canvas.paint(outline, (level, 3, -rng.uniform(10, 30)), soft=1.5)
    else:
        a = rng.uniform(0.18, 0.34)
        wave = draw_wave(rng, 0.06, 2, 4) + draw_wave(rng, 0.08, 5, 8)
        outline = canvas.blob(x, y, a, a * rng.uniform(1.1, 1.5), rng.normal(0, 0.15), wave)
        canvas.paint(outline, (level - 3, 4, rng.uniform(35, 90)), soft=3.5)
    return (outline < 0).astype(np.uint8)


# Abdominal CT. Properties: HU, texture in HU. Coordinates are stretched so that the body is about the unit disc.


def draw_ct_patient(rng, pathology):
    """Draw a patient for draw_ct: organs, their HU in this contrast phase, vessels, noise."""
    contrast, fat = rng.uniform(0, 1), rng.uniform(0.05, 0.17)
    large = 1.35 if pathology == "splenomegaly" else 1.0
    organ = {
        "body": draw_organ(rng, 0, 0, 1, 1, vary=0.0, wobble=0.025),
        "dome": draw_organ(rng, 0, -0.02, 1.1 - fat, 1.1 - fat, h=2.2, z=-1, vary=0.02),
        "liver": draw_organ(rng, -0.46, -0.02, 0.44, 0.6, h=1.3, z=0.3, angle=0.15, wobble=0.06),
        "left lobe": draw_organ(rng, -0.02, -0.42, 0.36, 0.24, h=0.8, z=0.5, angle=-0.2, wobble=0.06),
        "stomach": draw_organ(rng, 0.38, -0.3, 0.3, 0.27, h=1.1, z=0.3, angle=-0.5, wobble=0.06),
        "spleen": draw_organ(rng, 0.6, 0.25, 0.26 * large, 0.4 * large, h=large, z=0.2, angle=0.35, wobble=0.06),
        "right kidney": draw_organ(rng, -0.4, 0.42, 0.15, 0.2, h=0.8, z=-0.6, angle=-0.4),
        "left kidney": draw_organ(rng, 0.4, 0.42, 0.15, 0.2, h=0.8, z=-0.5, angle=0.4),
        "aorta": draw_organ(rng, 0.06, 0.24, 0.065, 0.085, vary=0.1, wobble=0.0),
        "cava": draw_organ(rng, -0.14, 0.2, 0.08, 0.09, vary=0.1, wobble=0.05),
        "spine": draw_organ(rng, 0, 0.46, 0.15, 0.17, vary=0.05, wobble=0.03),
        "lesion": draw_organ(rng, 0.62, 0.22, 0.1, 0.14, h=0.5, z=0.25, vary=0.25),
    }
    return {
        "organ": organ, "fat": fat, "noise": rng.uniform(10, 18), "lesion": pathology == "splenic_lesion",
        "hu": {"liver": 58 + 52 * contrast, "spleen": 48 + 72 * contrast, "kidney": 32 + 150 * contrast,
               "vessel": 42 + 150 * contrast, "stomach": rng.uniform(5, 40), "lesion": rng.uniform(5, 25)},
        "stretch": (rng.uniform(0.88, 0.97), rng.uniform(0.64, 0.78)),
        "bowel": [draw_organ(rng, rng.uniform(-0.45, 0.55), rng.uniform(-0.6, -0.05), 0.15, 0.14, h=0.7, z=-0.9,
                             vary=0.25, wobble=0.1) for _ in range(8)],
        "vessels": [draw_organ(rng, rng.uniform(-0.6, -0.2), rng.uniform(-0.3, 0.2), 0.16, 0.035, h=0.5,
                               z=rng.uniform(-0.3, 0.8), angle=rng.uniform(-1, 1)) for _ in range(5)],
        "ribs": rng.uniform(-0.06, 0.06, 8),
    }


def draw_ct(size, patient, z, rng):
    """Draw one abdominal slice at height z in [-1, 1]: image (1, H, W) in HU, mask with label 1 = spleen.

    Air -1000, lung -850, fat -100, muscle 55, organs from plain to portal-venous phase (spleen 48 to 120, liver 58 to
    110); Gaussian noise of 10 to 18 HU with a grain. Gas lies on top of the stomach's fluid: the patient lies supine.
    """
    organ, hu, fat = patient["organ"], patient["hu"], patient["fat"]
    canvas = Canvas(size, (AIR, 0), patient["stretch"])
    cut = {name: one.cut(canvas, z) for name, one in organ.items()}
    table = canvas.blob(0, 0.35, 1.15, 0.95)
    canvas.paint(np.maximum(np.maximum(table, -table - size / 30), canvas.distance(0.95 - canvas.y)), (-30, 0))
    canvas.paint(cut["body"], (FAT, 8))
    canvas.paint(organ["body"].cut(canvas, z, fat), (MUSCLE, 25))
    cavity = organ["body"].cut(canvas, z, fat + 0.1)
    canvas.paint(cavity, (LUNG, 20))
    dome = np.maximum(cut["dome"], cavity)
    canvas.paint(dome, (FAT, 25))
    for side in (-1, 1):
        canvas.paint(canvas.blob(side * 0.24, 0.68, 0.24, 0.2), (MUSCLE, 15))
    for loop in patient["bowel"]:
        canvas.paint(np.maximum(loop.cut(canvas, z), dome), (hu["stomach"] + 15, 30))
    draw_bones(canvas, patient, z)
    for name in ("aorta", "cava"):
        canvas.paint(cut[name], (hu["vessel"], 0))
    for name in ("right kidney", "left kidney"):
        canvas.paint(np.maximum(cut[name], dome), (hu["kidney"], 5))
        canvas.paint(organ[name].cut(canvas, z, 0.1), (FAT + 60, 10))
    inner = dome + size / 40
    stomach = np.maximum(cut["stomach"], inner)
    liver = np.maximum(np.minimum(cut["liver"], cut["left lobe"]), inner)
    medial = canvas.blob(organ["left kidney"].x - 0.2, organ["left kidney"].y, 0.25, 0.35)
    neighbours = np.min((stomach, cut["left kidney"], medial), axis=0)
    spleen = np.max((cut["spleen"], inner, size / 40 - neighbours), axis=0)
    canvas.paint(liver, (hu["liver"], 5))
    for vessel in patient["vessels"]:
        canvas.paint(np.maximum(vessel.cut(canvas, z), liver + 1), (0.5 * (hu["liver"] + hu["vessel"]), 0), line=0.0)
    canvas.paint(stomach, (hu["stomach"], 10))
    canvas.paint(np.maximum(stomach + size / 50, canvas.distance(canvas.y - organ["stomach"].y + 0.08)), (AIR + 50, 0))
    canvas.paint(spleen, (hu["spleen"], 5))
    if patient["lesion"]:
        canvas.paint(np.maximum(cut["lesion"], spleen + 1), (hu["lesion"], 5))
    level, texture = canvas.properties
    image = level + texture * make_grain(rng, size, (1.2, 1.2)) + patient["noise"] * make_grain(rng, size, (0.8, 0.8))
    return Picture(np.maximum(image, -1024)[None].astype(np.float32), ((spleen < 0).astype(np.uint8),), canvas.boundary)


def draw_bones(canvas, patient, z):
    """Paint the vertebra with its canal and processes, and the ribs that this slice meets in the wall."""
    spine, ring = patient["organ"]["spine"], 1 - patient["fat"] - 0.05
    for x, y, a, b in ((0, 0.32, 0.035, 0.14), (-0.18, 0.2, 0.1, 0.035), (0.18, 0.2, 0.1, 0.035), (0, 0.17, 0.11, 0.1)):
        canvas.paint(canvas.blob(spine.x + x, spine.y + y, a, b), (420, 40))
    canvas.paint(spine.cut(canvas, z), (480, 30))
    canvas.paint(spine.cut(canvas, z, 0.04), (230, 40), line=0.0)
    canvas.paint(canvas.blob(spine.x, spine.y + 0.2, 0.055, 0.05), (30, 0))
    for number, jitter in enumerate(patient["ribs"]):
        side = 2 * (number % 2) - 1
        theta = np.pi * (0.22 * (number // 2) - 0.28 + jitter + 0.12 * z)
        x, y = side * ring * np.cos(theta), ring * np.sin(theta)
        canvas.paint(canvas.blob(x, y, 0.035, 0.1 + 0.5 * abs(jitter), side * (theta + 2 * jitter)), (450, 60))


# Prostate MR. Properties: T2-weighted signal, ADC in 1e-6 mm^2/s, texture as a fraction of the signal.


def draw_mr_patient(rng, pathology):
    """Draw a patient for draw_mr: organs, zone contrast, lesion, noise, the coil's bias field."""
    grown = 1.3 if pathology == "enlarged" else 1.0
    whole = (1 + grown) / 2
    organ = {
        "prostate": draw_organ(rng, 0, 0.02, 0.42 * whole, 0.34 * whole, h=1.3, vary=0.07, wobble=0.03),
        "gland": draw_organ(rng, 0, -0.05, 0.29 * grown, 0.22 * grown, h=1.25, z=0.1, vary=0.07, wobble=0.04),
        "bladder": draw_organ(rng, 0, -0.5, 0.44, 0.3, h=0.9, z=1.0, vary=0.12, wobble=0.04),
        "rectum": draw_organ(rng, 0, 0.62, 0.22, 0.18, vary=0.15, wobble=0.08),
        "levator": draw_organ(rng, 0, 0.3, 0.55, 0.68, h=3, z=1.0, vary=0.03),
        "lesion": draw_organ(rng, rng.choice((-0.24, 0.24)), 0.2, 0.12, 0.09, h=0.7, vary=0.2, wobble=0.08),
    }
    for side, name in ((-1, "right"), (1, "left")):
        organ[name + " obturator"] = draw_organ(rng, side * 0.72, 0.0, 0.17, 0.55, angle=side * 0.15, wobble=0.1)
        organ[name + " femur"] = draw_organ(rng, side * 1.12, -0.12, 0.4, 0.42, h=1.6, z=0.4, vary=0.06)
        organ[name + " pubis"] = draw_organ(rng, side * 0.3, -0.78, 0.32, 0.16, h=1.0, z=-0.8, angle=side * 0.35,
                                            wobble=0.08)
        organ[name + " pectineus"] = draw_organ(rng, side * 0.75, -0.85, 0.3, 0.2, angle=-side * 0.5, wobble=0.08)
        organ[name + " gluteus"] = draw_organ(rng, side * 0.75, 0.98, 0.5, 0.3, angle=-side * 0.5, wobble=0.06)
    spots = rng.uniform((-0.2, -0.2), (0.2, 0.08), (8 if pathology == "enlarged" else 4, 2))
    return {
        "organ": organ, "zone": rng.uniform(0, 1), "noise": rng.uniform(18, 40), "lesion": pathology == "lesion",
        "gas": rng.random() < 0.5, "fixed": int(rng.integers(2**62)),
        "nodules": [(draw_organ(rng, x, y, 0.09, 0.08, h=0.6, z=rng.uniform(-0.5, 0.5), vary=0.3, wobble=0.08),
                     rng.uniform(200, 560)) for x, y in spots],
        "veins": [draw_organ(rng, side * rng.uniform(0.4, 0.52), y, 0.05, 0.06, h=0.6, vary=0.3, wobble=0.1,
                             z=rng.uniform(-0.6, 0.6)) for side in (-1, 1) for y in (-0.15, 0.1, 0.3)],
    }


def draw_mr(size, patient, z, rng):
    """Draw one prostate slice at height z in [-1, 1]: image (2, H, W) T2 and ADC; labels 1 = peripheral, 2 = central.

    T2 is multiplied by a smooth bias field and gets Rician noise; ADC is blurred (echo-planar) with Gaussian noise.
    """
    organ, zone = patient["organ"], patient["zone"]
    muscle, marrow, mesorectum = (180, 1100, 0.2), (430, 350, 0.12), (540, 300, 0.12)
    canvas = Canvas(size, (600, 250, 0.12))
    fixed = np.random.default_rng(patient["fixed"])
    strands = canvas.strands(fixed, (0.1, 0.1))
    canvas.paint(np.abs(strands) - 0.6, (340, 500, 0.1), soft=1.5, line=0.0)
    canvas.stroke(strands)
    cut = {name: one.cut(canvas, z) for name, one in organ.items()}
    for side in ("right", "left"):
        for name in (" gluteus", " pectineus", " obturator"):
            canvas.paint(cut[side + name], muscle, soft=1.5)
        for name in (" femur", " pubis"):
            canvas.paint(cut[side + name], (70, 100, 0.1))
            canvas.paint(organ[side + name].cut(canvas, z, 0.05), marrow, line=0.0)
    canvas.paint(cut["levator"], muscle, soft=1.5)
    canvas.paint(organ["levator"].cut(canvas, z, 0.07), mesorectum, soft=1.5, line=0.0)
    for vein in patient["veins"]:
        canvas.paint(np.maximum(vein.cut(canvas, z), cut["levator"] + 2), (850, 1500, 0.05))
    canvas.paint(cut["rectum"], (300, 1200, 0.15))
    canvas.paint(organ["rectum"].cut(canvas, z, 0.06), (15, 200, 0) if patient["gas"] else (450, 900, 0.3))
    canvas.paint(cut["bladder"], (220, 1300, 0.1))
    canvas.paint(organ["bladder"].cut(canvas, z, 0.05), (960, 2700, 0.01), line=0.0)
    prostate, gland = cut["prostate"], np.maximum(cut["gland"], cut["prostate"] + 1.5)
    canvas.paint(prostate, (170, 900, 0.1))
    canvas.paint(organ["prostate"].cut(canvas, z, 0.03), (600 + 220 * zone, 1700, 0.08), line=0.0)
    canvas.paint(gland, (200, 1000, 0.1))
    canvas.paint(gland + size / 55, (330 + 60 * zone, 1300, 0.15), line=0.0)
    for nodule, signal in patient["nodules"]:
        canvas.paint(np.maximum(nodule.cut(canvas, z), gland + 1), (signal, 700 + 1.5 * signal, 0.15))
    if patient["lesion"]:
        canvas.paint(np.maximum(cut["lesion"], prostate + 1), (240, 700, 0.1), soft=2.0)
    t2, adc, texture = canvas.properties
    fraction = np.maximum(1 + texture * make_grain(rng, size, (1.3, 1.3)), 0)
    t2 = add_rician(rng, t2 * fraction * make_bias(fixed, size), patient["noise"])
    adc = ndimage.gaussian_filter(adc * fraction, 0.8) + 70 * make_grain(rng, size, (1.0, 1.0))
    mask = np.where(gland < 0, 2, prostate < 0).astype(np.uint8)
    return Picture(np.stack([t2, np.maximum(adc, 0)]).astype(np.float32), (mask,), canvas.boundary)
