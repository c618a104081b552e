"""Drawn anatomy: one breast ultrasound, one abdominal CT or one prostate MR slice, with its labels and boundaries.

Not a simulation: what each modality keeps of its physics stands at its function, and nothing clinical follows from it.
Rows run from anterior to posterior (ultrasound: from the skin down), columns from the patient's right to left. Lengths
are fractions of half the picture's width. Random draws come from two numpy generators: `patient`, which gives every
picture of a patient the same anatomy, and `rng`, the picture's own.
"""

from collections import namedtuple
from typing import NamedTuple

import numpy as np
from scipy import ndimage

AIR, FAT, MUSCLE, LUNG = (-1000, 0), (-100, 8), (55, 25), (-850, 20)  # HU and its texture

# image (C, H, W) in physical units, masks: labels (H, W) of each object, boundary (H, W) in [0, 1].
PhantomSlice = namedtuple("PhantomSlice", "image masks boundary")


class Organ(NamedTuple):
    """An ellipsoid with a wobbling contour: one row of a scene, painted over the rows before it."""

    x: float  # centre
    y: float
    a: float  # radii
    b: float
    values: tuple  # tissue properties
    h: float = 9.0  # radius and centre along the slice axis, z in [-1, 1]
    z: float = 0.0
    angle: float = 0.0
    vary: float = 0.08  # of place, size and angle from patient to patient, half of it of the contour; a part of the radii
    wall: float = 0.0  # thickness of a wall that `values` fill, around `inner`
    inner: tuple = ()
    label: int = 0
    name: str = ""
    within: str = None  # name of an organ before it, whose contour it keeps clear of
    clear: float = 0.05

    def mirror(self):
        """Return the organ and its like on the other side."""
        return self, self._replace(x=-self.x, angle=-self.angle)


class Canvas:
    """Tissue properties (C, H, W), painted region over region, their labels and the visible boundary between them.

    x, y: pixel centres, in [-1, 1] divided by `stretch`. Regions are signed distances in pixels, negative inside.
    """

    def __init__(self, size, background, stretch=(1.0, 1.0)):
        centres = (np.arange(size) + 0.5) / size * 2 - 1
        self.size = size
        self.x, self.y = centres[None, :] / stretch[0], centres[:, None] / stretch[1]
        self.properties = np.tile(np.array(background, float)[:, None, None], (1, size, size))
        self.boundary, self.labels = np.zeros((size, size)), np.zeros((size, size), np.uint8)

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

    def paint(self, distance, values, soft=1.0, line=1.0, label=0):
        """Cover a region with values, over an edge `soft` pixels wide; draw its contour 1.5 pixels wide."""
        cover = np.clip(0.5 - distance / soft, 0, 1)
        self.properties += cover * (np.array(values, float)[:, None, None] - self.properties)
        self.labels[distance < 0] = label
        self.boundary *= 1 - np.clip(0.5 - distance, 0, 1)
        self.stroke(distance, line)

    def stroke(self, distance, line=1.0):
        """Add a line to the boundary map."""
        self.boundary = np.maximum(self.boundary, line * np.clip(1.25 - np.abs(distance), 0, 1))

    def brighten(self, distance, amount, reach=1.5):
        """Add to the first property along a curve, up to `reach` pixels from it."""
        self.properties[0] += amount * np.clip(reach - np.abs(distance), 0, 1)

    def paint_organs(self, organs, z, patient):
        """Paint a patient's organs in order, as the slice at height z cuts them; return their distances by name."""
        distances = {None: -np.inf}
        for organ in organs:
            dx, dy, dz, da, db, dh, turn = patient.normal(0, organ.vary, 7)
            wave = draw_wave(patient, organ.vary / 2, 2, 4)
            height = (z - organ.z - dz * min(organ.h, 1) / 2) / (organ.h * np.exp(dh))
            radii = (organ.a, organ.b) * np.exp((da, db)) * np.sqrt(max(1 - height**2, 0))
            for depth, values in ((0, organ.values), (organ.wall, organ.inner))[: 1 + bool(organ.wall)]:
                a, b = radii - depth
                x, y = organ.x + dx * organ.a, organ.y + dy * organ.b
                blob = self.blob(x, y, a, b, organ.angle + turn, wave) if min(a, b) > 0.02 else np.inf  # slice misses it
                distance = np.maximum(blob, distances[organ.within] + organ.clear * self.size / 2)
                self.paint(distance, values, line=float(depth == 0 or depth > 0.05), label=organ.label)  # thin walls: one line
            distances[organ.name] = distance
        return distances


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
    masks = [draw_lesion(canvas, rng, pathology, curves, gland) for _ in range(lesions)] or [canvas.labels]
    level, texture, attenuation = canvas.properties
    rows = np.arange(size)[:, None] + (curves[1] - curves[1].mean()) * size / 2  # fibres follow the layers
    columns = np.broadcast_to(np.arange(size), (size, size))
    fibre = ndimage.map_coordinates(make_grain(rng, size, (1.1, size / 12)), [rows, columns], order=1, mode="wrap")
    beam = ndimage.gaussian_filter1d(np.cumsum(attenuation, axis=0) / size, size / 64, axis=1)
    speckle = add_rician(rng, np.zeros((size, size)), 1.0, (0.9, 1.4)) / np.sqrt(2)  # fully developed: Rayleigh, rms 1
    speckle = 20 * np.log10(speckle + 0.15)  # the scanner's floor keeps the nulls from going black
    image = np.clip(1 + (level + texture * fibre - beam + gain + speckle) / 60, 0, 1)
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


def draw_ct(size, pathology, z, patient, rng):
    """Draw one abdominal slice at height z in [-1, 1]: image (1, H, W) in HU, mask with label 1 = spleen.

    Air -1000, lung -850, fat -100, muscle 55, organs from plain to portal-venous phase (spleen 48 to 120, liver 58 to
    110); Gaussian noise of 10 to 18 HU with a grain. Gas lies on top of the stomach's fluid: the patient lies supine.
    """
    contrast, fat, fluid, noise = patient.uniform((0, 0.05, 5, 10), (1, 0.17, 40, 18))
    canvas = Canvas(size, AIR, patient.uniform((0.86, 0.64), (0.94, 0.76)))
    large = 1.35 if pathology == "splenomegaly" else 1.0
    bone, vessel, kidney = (420, 40), (42 + 150 * contrast, 0), (32 + 150 * contrast, 5)
    liver, spleen = (58 + 52 * contrast, 5), (48 + 72 * contrast, 5)
    organs = [
        Organ(0, 0.98, 0.8, 0.24, (-30, 0), vary=0, wall=0.06, inner=AIR),  # the table
        Organ(0, 0, 1, 1, FAT, vary=0.02, wall=fat, inner=MUSCLE, name="body"),
        Organ(0, 0, 1, 1, LUNG, name="chest", within="body", clear=0.1),
        Organ(0, 0, 1.1 - fat, 1.1 - fat, FAT, h=2.2, z=-1, vary=0.02, name="abdomen", within="chest", clear=0),
        *Organ(0.24, 0.68, 0.24, 0.2, MUSCLE).mirror(),
        Organ(0, 0.78, 0.035, 0.14, bone),  # a vertebra's processes, arch around the canal, and body
        *Organ(0.18, 0.66, 0.1, 0.035, bone).mirror(),
        Organ(0, 0.65, 0.11, 0.1, bone, wall=0.05, inner=(30, 0)),
        Organ(0, 0.46, 0.15, 0.17, bone, wall=0.04, inner=(230, 40)),
        *(Organ(x, y, 0.15, 0.14, (fluid + 15, 30), h=0.7, z=-0.9, vary=0.2, within="abdomen")  # bowel
          for x, y in patient.uniform((-0.45, -0.6), (0.55, -0.05), (8, 2))),
        Organ(0.06, 0.24, 0.065, 0.085, vessel),  # aorta and cava
        Organ(-0.14, 0.2, 0.08, 0.09, vessel),
        Organ(-0.42, -0.06, 0.68, 0.46, liver, h=1.4, z=0.3, angle=-0.5, within="abdomen"),
        Organ(0.7, 0.22, 0.13 * (1 + large), 0.4 * large, spleen, h=large, z=0.2, angle=0.25, label=1, name="spleen",
              within="abdomen"),
        *[Organ(0.62, 0.18, 0.09, 0.13, (15, 5), h=0.5, z=0.25, vary=0.2, label=1, within="spleen")]
        * (pathology == "splenic_lesion"),
        *Organ(0.4, 0.42, 0.15, 0.2, kidney, h=0.8, z=-0.5, angle=0.4, wall=0.1, inner=FAT, within="abdomen").mirror(),
        Organ(0.38, -0.3, 0.3, 0.27, (fluid, 10), h=1.1, z=0.3, angle=-0.5, name="stomach", within="abdomen"),
    ]  # fmt: skip
    for theta in np.pi * (0.22 * np.arange(4) - 0.28 + patient.uniform(-0.06, 0.06, 4)):  # ribs
        x, y = (0.95 - fat) * np.cos(theta), (0.95 - fat) * np.sin(theta)
        organs += Organ(x, y, 0.035, 0.12, (450, 60), angle=theta).mirror()
    stomach = canvas.paint_organs(organs, z, patient)["stomach"]
    canvas.paint(np.maximum(stomach + size / 50, canvas.distance(canvas.y + 0.38)), (-950, 0))  # gas
    level, texture = canvas.properties
    image = level + texture * make_grain(rng, size, (1.2, 1.2)) + noise * make_grain(rng, size, (0.8, 0.8))
    return PhantomSlice(np.maximum(image, -1024)[None].astype(np.float32), (canvas.labels,), canvas.boundary)


# Prostate MR. Properties: T2-weighted signal, ADC in 1e-6 mm^2/s, texture as a fraction of the signal.


def draw_mr(size, pathology, z, patient, rng):
    """Draw one prostate slice at height z in [-1, 1]: image (2, H, W) T2 and ADC; labels 1 = peripheral, 2 = central.

    T2 is multiplied by a smooth bias field and gets Rician noise; ADC is blurred (echo-planar) with Gaussian noise.
    """
    zone, noise = patient.uniform((0, 18), (1, 40))
    bias, side, gas = make_bias(patient, size), patient.choice((-1, 1)), patient.random() < 0.5
    grown = 1.3 if pathology == "enlarged" else 1.0
    whole = (1 + grown) / 2
    muscle, bone, marrow = (180, 1100, 0.2), (70, 100, 0.1), (430, 350, 0.12)
    nodules = patient.uniform((-0.2, -0.2, -0.5, 200), (0.2, 0.08, 0.5, 560), (8, 4))
    organs = [
        *Organ(0.75, 0.98, 0.5, 0.3, muscle, angle=-0.5).mirror(),  # gluteus, pectineus and obturator
        *Organ(0.75, -0.85, 0.3, 0.2, muscle, angle=-0.5).mirror(),
        *Organ(0.72, 0, 0.17, 0.55, muscle, angle=0.15).mirror(),
        *Organ(1.12, -0.12, 0.4, 0.42, bone, h=1.6, z=0.4, wall=0.05, inner=marrow).mirror(),  # femur and pubis
        *Organ(0.3, -0.78, 0.32, 0.16, bone, h=1, z=-0.8, angle=0.35, wall=0.05, inner=marrow).mirror(),
        Organ(0, 0.3, 0.55, 0.68, muscle, h=3, z=1, vary=0.03, wall=0.07, inner=(540, 300, 0.12), name="levator"),
        Organ(0, 0.62, 0.22, 0.18, (300, 1200, 0.15), vary=0.15, wall=0.06,
              inner=(15, 200, 0) if gas else (450, 900, 0.3)),  # rectum
        Organ(0, -0.5, 0.44, 0.3, (220, 1300, 0.1), h=0.9, z=1.0, wall=0.05, inner=(960, 2700, 0.01)),  # bladder
        *Organ(0.43, 0.2, 0.05, 0.06, (850, 1500, 0.05), h=0.8, vary=0.2, within="levator").mirror(),  # veins
        Organ(0, 0.02, 0.42 * whole, 0.34 * whole, (170, 1300, 0.1), h=1.3, wall=0.03,
              inner=(600 + 220 * zone, 1700, 0.08), label=1, name="prostate"),
        Organ(0, -0.05, 0.29 * grown, 0.22 * grown, (200, 1000, 0.1), h=1.25, z=0.1, wall=0.036,
              inner=(330 + 60 * zone, 1300, 0.15), label=2, name="gland", within="prostate"),
        *(Organ(x, y, 0.09, 0.08, (signal, 700 + 1.5 * signal, 0.15), h=0.6, z=height, vary=0.2, label=2, within="gland")
          for x, y, height, signal in nodules[: 8 if pathology == "enlarged" else 4]),
    ]  # fmt: skip
    if pathology == "lesion":
        organs.append(Organ(0.24 * side, 0.2, 0.12, 0.09, (240, 700, 0.1), h=0.7, vary=0.15, label=1, within="prostate"))
    canvas = Canvas(size, (600, 250, 0.12))
    canvas.paint_organs(organs, z, patient)
    t2, adc, texture = canvas.properties
    fraction = np.maximum(1 + texture * make_grain(rng, size, (1.3, 1.3)), 0)
    t2 = add_rician(rng, t2 * fraction * bias, noise)
    adc = ndimage.gaussian_filter(adc * fraction, 0.8) + 70 * make_grain(rng, size, (1.0, 1.0))
    return PhantomSlice(np.stack([t2, np.maximum(adc, 0)]).astype(np.float32), (canvas.labels,), canvas.boundary)


DRAW = {"US": draw_us, "CT": draw_ct, "MR": draw_mr}
