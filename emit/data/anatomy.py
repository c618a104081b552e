"""Drawn anatomy: one breast ultrasound, one abdominal CT or one prostate MR slice, with its labels and boundaries.

Not a simulation: what each modality keeps of its physics stands at its function, and nothing clinical follows from it.
Rows run from anterior to posterior (ultrasound: from the skin down), columns from the patient's right to left. Lengths
are fractions of half the picture's width. Random draws come from two numpy generators: `patient`, which gives every
picture of a patient the same anatomy, and `rng`, the picture's own.
"""

from collections import namedtuple

import numpy as np
from scipy import ndimage

LUNG, AIR, FAT, MUSCLE = -850, -1000, -100, 55  # HU

# An ellipsoid with a wobbling contour: centre (x, y, z), radii (a, b, h); h along the slice axis, z in [-1, 1].
Organ = namedtuple("Organ", "x y z a b h angle wave")
# image (C, H, W) in physical units, masks: labels (H, W) of each object, boundary (H, W) in [0, 1].
PhantomSlice = namedtuple("PhantomSlice", "image masks boundary")


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

    def cut(self, organ, z, shrink=0.0):
        """Return the distance to an organ's contour at height z; nowhere inside where the slice misses it."""
        scale = np.sqrt(max(1 - ((z - organ.z) / organ.h) ** 2, 0))
        a, b = organ.a * scale - shrink, organ.b * scale - shrink
        if min(a, b) < 0.02:
            return np.full((self.size, self.size), np.inf)
        return self.blob(organ.x, organ.y, a, b, organ.angle, organ.wave)

    def paint(self, distance, values, soft=1.0, line=1.0):
        """Cover a region with values, over an edge `soft` pixels wide; draw its contour 1.5 pixels wide."""
        cover = np.clip(0.5 - distance / soft, 0, 1)
        self.properties += cover * (np.array(values, float)[:, None, None] - self.properties)
        self.boundary *= 1 - np.clip(0.5 - distance, 0, 1)
        self.stroke(distance, line)

    def stroke(self, distance, line=1.0):
        """Add a line to the boundary map."""
        self.boundary = np.maximum(self.boundary, line * np.clip(1.25 - np.abs(distance), 0, 1))

    def brighten(self, distance, amount, reach=1.5):
        """Add to the first property along a curve, up to `reach` pixels from it."""
        self.properties[0] += amount * np.clip(reach - np.abs(distance), 0, 1)


def draw_organ(rng, x, y, a, b, h=9.0, z=0.0, angle=0.0, vary=0.08, wobble=0.04):
    """Draw a patient's organ: centre, radii and angle vary by about `vary` of the radii, the contour by `wobble`."""
    shift, scale = rng.normal(0, vary, 3) * (a, b, 0.5 * min(h, 1)), np.exp(rng.normal(0, vary, 3))
    return Organ(x + shift[0], y + shift[1], z + shift[2], a * scale[0], b * scale[1], h * scale[2],
                 angle + rng.normal(0, vary), draw_wave(rng, wobble, 2, 4))  # fmt: skip


def draw_wave(rng, amplitude, low, high):
    """Draw a contour's wobble: harmonics low..high with random phases, falling off with the frequency."""
    return tuple((k, rng.normal(0, amplitude * low / k), rng.uniform(0, 2 * np.pi)) for k in range(low, high + 1))


# Noise. Grain widths are in pixels, so that a picture of any size keeps a texture 2 to 3 pixels wide.


def make_grain(rng, size, sigma):
    """Return Gaussian noise (size, size), mean 0, variance 1, correlated over sigma = (rows, columns) pixels."""
    noise, impulse = rng.standard_normal((size, size)), np.zeros((size, size))
    impulse[size // 2, size // 2] = 1
    smooth, kernel = (ndimage.gaussian_filter(plane, sigma, mode="wrap") for plane in (noise, impulse))
    return smooth / np.sqrt(np.square(kernel).sum())


def make_bias(rng, size):
    """Return a receive coil's smooth gain (size, size): 1 + 0.3 cos cos, each under half a period."""
    t = np.linspace(-1, 1, size)
    phase, period = rng.uniform(-1.5, 1.5, 2), rng.uniform(1.0, 1.5, 2)
    return 1 + 0.3 * np.cos(period[0] * t + phase[0])[:, None] * np.cos(period[1] * t + phase[1])[None, :]


def add_rician(rng, signal, sigma, grain=(0.7, 0.7)):
    """Return the magnitude |signal + complex noise|: Rician, and Rayleigh with mean sigma sqrt(pi / 2) where dark."""
    real, imaginary = (sigma * make_grain(rng, signal.shape[-1], grain) for _ in range(2))
    return np.hypot(signal + real, imaginary)


# Breast ultrasound. Properties: echo level in dB below white, tissue texture in dB, attenuation in dB over the depth.


def draw_us(size, pathology, z, patient, rng):
    """Draw one breast ultrasound, anew for every z: image (1, H, W) in [0, 1], one mask per lesion, label 1.

    Layers of skin, fat, gland and muscle; grey = level + fibre texture - attenuation summed down the beam + Rayleigh
    speckle, in dB over a range of 60 dB. Benign: smooth, wider than tall, bright behind; malignant: taller, ragged,
    blurred, dark behind. Fat lobules, cysts and shadows are there to mislead and carry no label.
    """
    fat, gland, gain = patient.uniform((-37, -24, -3), (-31, -16, 4))  # dB
    layers = patient.uniform((0.08, 0.25, 0.5), (0.14, 0.6, 0.95))  # thickness of skin, fat and gland
    canvas = Canvas(size, (-14, 3, 2))
    curves = []
    for at, values in zip(np.cumsum(layers) - 1, ((fat, 3, 6), (gland, 5, 8), (fat - 4, 8, 14)), strict=True):
        waves = draw_wave(rng, 0.02 + 0.06 * (at > -0.8), 1, 3)
        curves.append(at + sum(c * np.cos(k * 1.7 * canvas.x[0] + phase) for k, c, phase in waves))
        interface = canvas.distance(curves[-1] - canvas.y)
        canvas.paint(interface, values, soft=2.0)
        canvas.brighten(interface, 8)
    # Septa: bright sheets between lobules, contours of a smooth random field, visible boundaries in the fat alone.
    septa = canvas.distance(make_grain(rng, size, (0.09 * size, 0.16 * size)) + 0.25)
    in_fat = (canvas.y > curves[0] + 0.06) & (canvas.y < curves[1])
    canvas.brighten(septa, 14 * in_fat + 5 * ((canvas.y >= curves[1]) & (canvas.y < curves[2])), 1.4)
    canvas.stroke(np.where(in_fat, septa, np.inf))
    draw_distractors(canvas, rng, curves, fat)
    lesions = 0 if pathology == "normal" else 1 + (rng.random() < 0.12)
    masks = [draw_lesion(canvas, rng, pathology, curves, gland) for _ in range(lesions)]
    level, texture, attenuation = canvas.properties
    rows = np.arange(size)[:, None] + (curves[1] - curves[1].mean()) * size / 2  # fibres follow the layers
    columns = np.broadcast_to(np.arange(size), (size, size))
    fibre = ndimage.map_coordinates(make_grain(rng, size, (1.1, size / 12)), [rows, columns], order=1, mode="wrap")
    beam = ndimage.gaussian_filter1d(np.cumsum(attenuation, axis=0) / size, size / 64, axis=1)
    speckle = add_rician(rng, np.zeros((size, size)), 1.0, (0.9, 1.4)) / np.sqrt(2)  # fully developed: Rayleigh, rms 1
    speckle = 20 * np.log10(speckle + 0.15)  # the scanner's floor keeps the nulls from going black
    image = np.clip(1 + (level + texture * fibre - beam + gain + speckle) / 60, 0, 1)
    masks = masks or [np.zeros((size, size), np.uint8)]
    return PhantomSlice(image[None].astype(np.float32), tuple(masks), canvas.boundary)


def draw_distractors(canvas, rng, curves, fat):
    """Draw what misleads: dark fat lobules within the gland, in some pictures a small black cyst or a shadow."""
    for _ in range(rng.integers(0, 3)):
        x, y = draw_place(rng, canvas, curves)
        a = rng.uniform(0.12, 0.34)
        lobule = canvas.blob(x, y, a, a * rng.uniform(0.3, 0.5), rng.normal(0, 0.3), draw_wave(rng, 0.08, 2, 4))
        canvas.brighten(lobule - 1, 3)
        canvas.paint(lobule, (fat + 5, 4, 6))
    if rng.random() < 0.2:
        x, y = draw_place(rng, canvas, curves)
        a = rng.uniform(0.07, 0.13)
        canvas.paint(canvas.blob(x, y, a, a * rng.uniform(0.8, 1.0)), (-58, 0, -60))
    if rng.random() < 0.3:
        canvas.properties[2] += rng.uniform(8, 20) * np.exp(-(((canvas.x - rng.uniform(-1, 1)) / 0.15) ** 2))


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


def draw_ct_anatomy(rng, pathology):
    """Draw a patient's organs, their HU in this contrast phase, vessels, noise."""
    contrast, fat = rng.uniform(0, 1), rng.uniform(0.05, 0.17)
    large = 1.35 if pathology == "splenomegaly" else 1.0
    organs = {
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
        "organs": organs, "fat": fat, "noise": rng.uniform(10, 18), "lesion": pathology == "splenic_lesion",
        "hu": {"liver": 58 + 52 * contrast, "spleen": 48 + 72 * contrast, "kidney": 32 + 150 * contrast,
               "vessel": 42 + 150 * contrast, "stomach": rng.uniform(5, 40), "lesion": rng.uniform(5, 25)},
        "stretch": (rng.uniform(0.88, 0.97), rng.uniform(0.64, 0.78)),
        "bowel": [draw_organ(rng, rng.uniform(-0.45, 0.55), rng.uniform(-0.6, -0.05), 0.15, 0.14, h=0.7, z=-0.9,
                             vary=0.25, wobble=0.1) for _ in range(8)],
        "vessels": [draw_organ(rng, rng.uniform(-0.6, -0.2), rng.uniform(-0.3, 0.2), 0.16, 0.035, h=0.5,
                               z=rng.uniform(-0.3, 0.8), angle=rng.uniform(-1, 1)) for _ in range(5)],
        "ribs": rng.uniform(-0.06, 0.06, 8),
    }  # fmt: skip


def draw_ct(size, pathology, z, patient, rng):
    """Draw one abdominal slice at height z in [-1, 1]: image (1, H, W) in HU, mask with label 1 = spleen.

    Air -1000, lung -850, fat -100, muscle 55, organs from plain to portal-venous phase (spleen 48 to 120, liver 58 to
    110); Gaussian noise of 10 to 18 HU with a grain. Gas lies on top of the stomach's fluid: the patient lies supine.
    """
    patient = draw_ct_anatomy(patient, pathology)
    organs, hu, fat = patient["organs"], patient["hu"], patient["fat"]
    canvas = Canvas(size, (AIR, 0), patient["stretch"])
    cut = {name: canvas.cut(organ, z) for name, organ in organs.items()}
    table = canvas.blob(0, 0.35, 1.15, 0.95)
    cavity = canvas.cut(organs["body"], z, fat + 0.1)
    dome = np.maximum(cut["dome"], cavity)
    inner = dome + size / 40
    stomach = np.maximum(cut["stomach"], inner)
    gas = np.maximum(stomach + size / 50, canvas.distance(canvas.y - organs["stomach"].y + 0.08))
    liver = np.maximum(np.minimum(cut["liver"], cut["left lobe"]), inner)
    medial = canvas.blob(organs["left kidney"].x - 0.2, organs["left kidney"].y, 0.25, 0.35)
    neighbours = np.min((stomach, cut["left kidney"], medial), axis=0)
    spleen = np.max((cut["spleen"], inner, size / 40 - neighbours), axis=0)
    for row in (  # region, (HU, texture), soft, line
        (np.max((table, -table - size / 30, canvas.distance(0.95 - canvas.y)), axis=0), (-30, 0)),
        (cut["body"], (FAT, 8)),
        (canvas.cut(organs["body"], z, fat), (MUSCLE, 25)),
        (cavity, (LUNG, 20)),
        (dome, (FAT, 25)),
        *((canvas.blob(x, 0.68, 0.24, 0.2), (MUSCLE, 15)) for x in (-0.24, 0.24)),
        *((np.maximum(canvas.cut(loop, z), dome), (hu["stomach"] + 15, 30)) for loop in patient["bowel"]),
        *list_bones(canvas, patient, z),
        *((cut[name], (hu["vessel"], 0)) for name in ("aorta", "cava")),
        (np.maximum(cut["right kidney"], dome), (hu["kidney"], 5)),
        (canvas.cut(organs["right kidney"], z, 0.1), (FAT + 60, 10)),
        (np.maximum(cut["left kidney"], dome), (hu["kidney"], 5)),
        (canvas.cut(organs["left kidney"], z, 0.1), (FAT + 60, 10)),
        (liver, (hu["liver"], 5)),
        *((np.maximum(canvas.cut(vessel, z), liver + 1), (0.5 * (hu["liver"] + hu["vessel"]), 0), 1.0, 0.0)
          for vessel in patient["vessels"]),
        (stomach, (hu["stomach"], 10)),
        (gas, (AIR + 50, 0)),
        (spleen, (hu["spleen"], 5)),
        *[(np.maximum(cut["lesion"], spleen + 1), (hu["lesion"], 5))] * patient["lesion"],
    ):  # fmt: skip
        canvas.paint(*row)
    level, texture = canvas.properties
    image = level + texture * make_grain(rng, size, (1.2, 1.2)) + patient["noise"] * make_grain(rng, size, (0.8, 0.8))
    mask = (spleen < 0).astype(np.uint8)
    return PhantomSlice(np.maximum(image, -1024)[None].astype(np.float32), (mask,), canvas.boundary)


def list_bones(canvas, patient, z):
    """List the vertebra with its canal and processes, and the ribs that this slice meets in the wall, to be painted."""
    spine, ring = patient["organs"]["spine"], 1 - patient["fat"] - 0.05
    for x, y, a, b in ((0, 0.32, 0.035, 0.14), (-0.18, 0.2, 0.1, 0.035), (0.18, 0.2, 0.1, 0.035), (0, 0.17, 0.11, 0.1)):
        yield canvas.blob(spine.x + x, spine.y + y, a, b), (420, 40)
    yield canvas.cut(spine, z), (480, 30)
    yield canvas.cut(spine, z, 0.04), (230, 40), 1.0, 0.0
    yield canvas.blob(spine.x, spine.y + 0.2, 0.055, 0.05), (30, 0)
    for number, jitter in enumerate(patient["ribs"]):
        side = 2 * (number % 2) - 1
        theta = np.pi * (0.22 * (number // 2) - 0.28 + jitter + 0.12 * z)
        x, y = side * ring * np.cos(theta), ring * np.sin(theta)
        yield canvas.blob(x, y, 0.035, 0.1 + 0.5 * abs(jitter), side * (theta + 2 * jitter)), (450, 60)


# Prostate MR. Properties: T2-weighted signal, ADC in 1e-6 mm^2/s, texture as a fraction of the signal.


def draw_mr_anatomy(rng, pathology):
    """Draw a patient's organs, zone contrast, lesion, noise, the seed of strands and of the coil's bias."""
    grown = 1.3 if pathology == "enlarged" else 1.0
    whole = (1 + grown) / 2
    organs = {
        "prostate": draw_organ(rng, 0, 0.02, 0.42 * whole, 0.34 * whole, h=1.3, vary=0.07, wobble=0.03),
        "gland": draw_organ(rng, 0, -0.05, 0.29 * grown, 0.22 * grown, h=1.25, z=0.1, vary=0.07, wobble=0.04),
        "bladder": draw_organ(rng, 0, -0.5, 0.44, 0.3, h=0.9, z=1.0, vary=0.12, wobble=0.04),
        "rectum": draw_organ(rng, 0, 0.62, 0.22, 0.18, vary=0.15, wobble=0.08),
        "levator": draw_organ(rng, 0, 0.3, 0.55, 0.68, h=3, z=1.0, vary=0.03),
        "lesion": draw_organ(rng, rng.choice((-0.24, 0.24)), 0.2, 0.12, 0.09, h=0.7, vary=0.2, wobble=0.08),
    }
    for name, side in (("right", -1), ("left", 1)):
        organs |= {
            f"{name} obturator": draw_organ(rng, side * 0.72, 0, 0.17, 0.55, angle=side * 0.15, wobble=0.1),
            f"{name} femur": draw_organ(rng, side * 1.12, -0.12, 0.4, 0.42, h=1.6, z=0.4, vary=0.06),
            f"{name} pubis": draw_organ(rng, side * 0.3, -0.78, 0.32, 0.16, 1, z=-0.8, angle=side * 0.35, wobble=0.08),
            f"{name} pectineus": draw_organ(rng, side * 0.75, -0.85, 0.3, 0.2, angle=-side * 0.5, wobble=0.08),
            f"{name} gluteus": draw_organ(rng, side * 0.75, 0.98, 0.5, 0.3, angle=-side * 0.5, wobble=0.06),
        }
    spots = rng.uniform((-0.2, -0.2), (0.2, 0.08), (8 if pathology == "enlarged" else 4, 2))
    return {
        "organs": organs, "zone": rng.uniform(0, 1), "noise": rng.uniform(18, 40), "lesion": pathology == "lesion",
        "gas": rng.random() < 0.5, "fixed": rng.integers(2**62),
        "nodules": [(draw_organ(rng, x, y, 0.09, 0.08, h=0.6, z=rng.uniform(-0.5, 0.5), vary=0.3, wobble=0.08),
                     rng.uniform(200, 560)) for x, y in spots],
        "veins": [draw_organ(rng, side * rng.uniform(0.4, 0.52), y, 0.05, 0.06, h=0.6, vary=0.3, wobble=0.1,
                             z=rng.uniform(-0.6, 0.6)) for side in (-1, 1) for y in (-0.15, 0.1, 0.3)],
    }  # fmt: skip


def draw_mr(size, pathology, z, patient, rng):
    """Draw one prostate slice at height z in [-1, 1]: image (2, H, W) T2 and ADC; labels 1 = peripheral, 2 = central.

    T2 is multiplied by a smooth bias field and gets Rician noise; ADC is blurred (echo-planar) with Gaussian noise.
    """
    patient = draw_mr_anatomy(patient, pathology)
    organs, zone = patient["organs"], patient["zone"]
    muscle, bone, marrow = (180, 1100, 0.2), (70, 100, 0.1), (430, 350, 0.12)
    canvas = Canvas(size, (600, 250, 0.12))
    fixed = np.random.default_rng(patient["fixed"])
    strands = canvas.distance(make_grain(fixed, size, (0.1 * size, 0.1 * size)) + 0.25)
    canvas.paint(np.abs(strands) - 0.6, (340, 500, 0.1), soft=1.5, line=0.0)
    canvas.stroke(strands)
    cut = {name: canvas.cut(organ, z) for name, organ in organs.items()}
    prostate, levator = cut["prostate"], cut["levator"]
    gland = np.maximum(cut["gland"], prostate + 1.5)
    rows = []  # region, (T2, ADC, texture), soft, line
    for side in ("right", "left"):
        rows += [(cut[f"{side} {name}"], muscle, 1.5) for name in ("gluteus", "pectineus", "obturator")]
        for name in (f"{side} femur", f"{side} pubis"):
            rows += [(cut[name], bone), (canvas.cut(organs[name], z, 0.05), marrow, 1.0, 0.0)]
    rows += [
        (levator, muscle, 1.5),
        (canvas.cut(organs["levator"], z, 0.07), (540, 300, 0.12), 1.5, 0.0),
        *((np.maximum(canvas.cut(vein, z), levator + 2), (850, 1500, 0.05)) for vein in patient["veins"]),
        (cut["rectum"], (300, 1200, 0.15)),
        (canvas.cut(organs["rectum"], z, 0.06), (15, 200, 0) if patient["gas"] else (450, 900, 0.3)),
        (cut["bladder"], (220, 1300, 0.1)),
        (canvas.cut(organs["bladder"], z, 0.05), (960, 2700, 0.01), 1.0, 0.0),
        (prostate, (170, 900, 0.1)),
        (canvas.cut(organs["prostate"], z, 0.03), (600 + 220 * zone, 1700, 0.08), 1.0, 0.0),
        (gland, (200, 1000, 0.1)),
        (gland + size / 55, (330 + 60 * zone, 1300, 0.15), 1.0, 0.0),
        *((np.maximum(canvas.cut(nodule, z), gland + 1), (signal, 700 + 1.5 * signal, 0.15))
          for nodule, signal in patient["nodules"]),
        *[(np.maximum(cut["lesion"], prostate + 1), (240, 700, 0.1), 2.0)] * patient["lesion"],
    ]  # fmt: skip
    for row in rows:
        canvas.paint(*row)
    t2, adc, texture = canvas.properties
    fraction = np.maximum(1 + texture * make_grain(rng, size, (1.3, 1.3)), 0)
    t2 = add_rician(rng, t2 * fraction * make_bias(fixed, size), patient["noise"])
    adc = ndimage.gaussian_filter(adc * fraction, 0.8) + 70 * make_grain(rng, size, (1.0, 1.0))
    mask = np.where(gland < 0, 2, prostate < 0).astype(np.uint8)
    return PhantomSlice(np.stack([t2, np.maximum(adc, 0)]).astype(np.float32), (mask,), canvas.boundary)


DRAW = {"US": draw_us, "CT": draw_ct, "MR": draw_mr}
