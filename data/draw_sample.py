"""Draw the bundled sample: synthetic colposcopy-like photographs, no medical meaning.

    python data/draw_sample.py            # redraws data/sample

The pipeline must run on a machine that has neither the Kaggle images nor a network.  This script
draws about 1,500 small pictures of the uterine cervix in the folder layout of the "Intel &
MobileODT Cervical Cancer Screening" set, with some of that set's faults planted on purpose
(`DEFECTS`).

The label is the medical definition of the transformation zone, applied to the drawn geometry.  Seen
from the os (the opening of the canal), the red columnar epithelium ends and the pale squamous
epithelium begins at the squamocolumnar junction (SCJ).  With `s(angle) = distance to the SCJ /
distance to the rim of the os`:

    Type_1   s > 1.2 at every angle                          a closed red ring outside the os
    Type_2   s >= 0.5 everywhere, s < 0.9 on at least 35 %   the junction dips into the canal, still
                                                             in view
    Type_3   s < 0.25 on at least 40 %                       the junction is lost in the dark of the
                                                             canal

Everything else (size and shape of the os, colors, framing, light, camera) comes from one
distribution for all three types, so the geometry alone tells them apart.

Randomness has two levels.  The patient gives what stays put during an examination: anatomy, colors,
texture, stain, the stand of the colposcope.  Patient and shot together give what differs between
two photographs of it. So pictures of one patient resemble each other more than the label explains,
and a split that ignores patients makes a model look better than it is.
"""

import argparse
import csv
import io
import itertools
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

SEED = 1622
TYPES = ("Type_1", "Type_2", "Type_3")
SIZE = 112  # side of a picture in pixels; the pipeline shrinks it to 56
JPEG_QUALITY = (82, 93)  # from, below

# Patients per type, in the order of the real set (Type_2 > Type_3 > Type_1) but less uneven.
TRAIN_PATIENTS = (88, 126, 108)  # one picture each in train/, perhaps more in additional/
OTHER_PATIENTS = (82, 118, 98)  # in additional/ only
TEST_PATIENTS = (7, 10, 7)  # in test/ only
# Number of the first train file; lower, train/train/Type_2/80.jpg would meet data/label_fixes.csv.
FIRST_TRAIN = 100
TEST_KNOWN = 6  # test pictures of patients who also appear in additional/, as in the real set
MORE_SHOTS = (
    0.25,
    0.25,
    0.30,
    0.20,
)  # P(0, 1, 2, 3 further shots) of a train patient in additional/
OTHER_SHOTS = (0.30, 0.30, 0.40)  # P(1, 2, 3 shots) of a patient who is in additional/ only

CANVAS = 224  # side in pixels of the drawing that a photograph is taken of
REACH = 1.9  # the canvas spans [-REACH, REACH] in both axes; unit: radius of the cervix
ANGLES = 360  # samples of s(angle) around the os


@dataclass(frozen=True)
class Defect:
    """One planted file.

    `kind` says what is wrong with `path`; `source` is the (folder, rank) it is made from.
    """

    kind: str
    path: str
    source: tuple[str, int] | None = None


_TRAIN, _ADDITIONAL = "train/train/{0}", "additional_{0}_v2/{0}"
DEFECTS = (
    Defect("empty", "additional_Type_2_v2/Type_2/2845.jpg"),
    Defect("truncated", "train/train/Type_1/1339.jpg", ("train/train/Type_1", 3)),
    Defect("text", "additional_Type_3_v2/Type_3/3001.jpg"),
    Defect("exif_rotated", "train/train/Type_2/1400.jpg", ("train/train/Type_2", 11)),
    Defect(
        "exif_rotated", "additional_Type_1_v2/Type_1/3002.jpg", ("additional_Type_1_v2/Type_1", 8)
    ),
    Defect("exact_duplicate", "additional_Type_1_v2/Type_1/3003.jpg", ("train/train/Type_1", 5)),
    Defect("exact_duplicate", "additional_Type_2_v2/Type_2/3004.jpg", ("train/train/Type_2", 7)),
    Defect(
        "exact_duplicate",
        "additional_Type_2_v2/Type_2/3005.jpg",
        ("additional_Type_2_v2/Type_2", 20),
    ),
    Defect("exact_duplicate", "additional_Type_3_v2/Type_3/3006.jpg", ("train/train/Type_3", 9)),
    Defect("near_duplicate", "additional_Type_1_v2/Type_1/3007.jpg", ("train/train/Type_1", 15)),
    Defect("near_duplicate", "additional_Type_2_v2/Type_2/3008.jpg", ("train/train/Type_2", 17)),
    Defect(
        "near_duplicate",
        "additional_Type_3_v2/Type_3/3009.jpg",
        ("additional_Type_3_v2/Type_3", 19),
    ),
)


def stream(use: str, patient: int = 0, shot: int = 0) -> np.random.Generator:
    """Random numbers of one use only, so that a change to one drawing leaves the others alone."""
    return np.random.default_rng(
        (SEED, ("layout", "anatomy", "examination", "shot").index(use) + 1, patient, shot)
    )


# ------------------------------------------------------------------------------------------ anatomy


def smooth_noise(rng: np.random.Generator, size: int, cells: int, octaves: int = 1) -> np.ndarray:
    """(size, size) float32 field, about N(0, 1), with bumps of about size / cells pixels."""
    field = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        side = cells * 2**octave
        grid = Image.fromarray(rng.standard_normal((side, side)).astype(np.float32))
        field += np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC)) / 2**octave
    return field / field.std()


def step(x: np.ndarray, width: float) -> np.ndarray:
    """Soft step from 0 (x << 0) to 1 (x >> 0) over about four widths."""
    return 1 / (1 + np.exp(-np.clip(x / width, -30, 30)))


def scj_profile(label: int, rng: np.random.Generator) -> np.ndarray:
    """(ANGLES,) s(angle) of one patient of type `label` (0, 1, 2), from -pi to pi."""
    angle = np.linspace(-math.pi, math.pi, ANGLES, endpoint=False)
    wave = sum(
        rng.normal() / k * np.cos(k * angle + rng.uniform(0, 2 * math.pi)) for k in (1, 2, 3)
    )
    # The rank of the wave is smooth in the angle and uniform on [0, 1], so a share of angles can be
    # set exactly.
    rank = np.argsort(np.argsort(wave)) / (ANGLES - 1)
    if label == 0:
        low, high = rng.uniform(1.28, 1.4), rng.uniform(1.5, 2.0)
        return np.interp(rank, (0, 1), (low, high))
    if label == 1:
        share, low, high = rng.uniform(0.40, 1.1), rng.uniform(0.60, 0.72), rng.uniform(1.0, 2.0)
        return np.interp(rank, (0, share, share + 0.5), (low, 0.84, high))
    share, high = rng.uniform(0.52, 1.1), rng.uniform(0.6, 2.2)
    return np.interp(rank, (0, share, share + 0.5), (0.03, 0.23, high))


@dataclass(frozen=True)
class Anatomy:
    """What defines a patient.  Lengths in radii of the cervix, colors in 0..255 RGB."""

    scj: np.ndarray  # (ANGLES,) s(angle)
    os_radius: float  # geometric mean of the two half axes
    os_aspect: float  # horizontal / vertical half axis
    os_center: np.ndarray  # (2,) from the center of the cervix
    squamous: np.ndarray  # (3,)
    columnar: np.ndarray  # (3,)


def draw_anatomy(label: int, rng: np.random.Generator) -> Anatomy:
    """Draw a patient.

    Only `scj` depends on the label, and it is drawn last: the rest is the same in law.
    """
    os_radius = float(np.clip(rng.normal(0.37, 0.055), 0.26, 0.50))
    os_aspect = float(np.clip(np.exp(rng.normal(0.18, 0.16)), 0.8, 1.7))
    os_center = rng.normal(0, 0.05, 2)
    squamous = np.array([220, 158, 158]) + rng.normal(0, 8, 3) + rng.normal(0, 8)
    columnar = squamous - rng.uniform(0.82, 1.12) * np.array([36, 100, 96]) + rng.normal(0, 9, 3)
    return Anatomy(scj_profile(label, rng), os_radius, os_aspect, os_center, squamous, columnar)


def paint(anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """(CANVAS, CANVAS, 3) float32 drawing, 0..255, of the cervix, its canal and surroundings."""
    axis = np.linspace(-REACH, REACH, CANVAS, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    # Warping the plane a little keeps every outline from being a perfect ellipse.
    x = x + 0.03 * smooth_noise(rng, CANVAS, 6)
    y = y + 0.03 * smooth_noise(rng, CANVAS, 6)
    portio = np.hypot(
        x / rng.uniform(0.95, 1.08), y / rng.uniform(0.92, 1.04)
    )  # 1 at the edge of the cervix

    dx, dy = x - anatomy.os_center[0], y - anatomy.os_center[1]
    distance, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    half_x = anatomy.os_radius * math.sqrt(anatomy.os_aspect)
    half_y = anatomy.os_radius / math.sqrt(anatomy.os_aspect)
    rim = 1 / np.hypot(np.cos(angle) / half_x, np.sin(angle) / half_y)
    grid = np.linspace(-math.pi, math.pi, ANGLES, endpoint=False)
    scj = np.interp(angle.ravel(), grid, anatomy.scj, period=2 * math.pi).reshape(angle.shape)
    t = distance / rim  # 0 in the middle of the canal, 1 on the rim of the os

    # Columnar epithelium out to the SCJ: red and grainy (villi); squamous epithelium beyond: pale
    # and smooth.
    red = step(scj * (1 + 0.03 * smooth_noise(rng, CANVAS, 28)) - t, 0.04)[..., None]
    grain = 9 * smooth_noise(rng, CANVAS, 56, 2)[..., None] * (1, 0.8, 0.8)
    sheen = 3 * smooth_noise(rng, CANVAS, 14, 3)[..., None]
    picture = red * (anatomy.columnar + grain) + (1 - red) * (anatomy.squamous + sheen)

    # Erythema: red patches towards the edge of the cervix in any type, so that red alone means
    # little.
    patch = step(smooth_noise(rng, CANVAS, 7, 2) - rng.uniform(-2, 2), 0.25) * step(
        portio - 0.76, 0.04
    )
    patch = (rng.uniform(0.8, 1.0) * patch)[..., None]
    picture += patch * (anatomy.columnar - anatomy.squamous) * (1 - red)

    # The canal is a funnel: its wall turns away from the light at the rim and is black in the
    # depth.
    lip = rng.uniform(0.58, 0.76)
    core = rng.uniform(0.26, 0.30)
    shade = 1 - (1 - lip) * step(1 - t, 0.03)
    shade *= 0.06 + 0.94 * step(t - core, 0.045)
    # The cervix bulges towards the viewer, and a shadow lies in the fornix around it.
    shade *= (
        1 - 0.14 * np.minimum(portio, 1.2) ** 2 - 0.35 * np.exp(-(((portio - 1.06) / 0.09) ** 2))
    )
    picture *= shade[..., None]

    # The wall of the vagina, somewhere between all pale and all red.
    flush = step(smooth_noise(rng, CANVAS, 7, 2) - rng.uniform(-2, 1.5), 0.3)[..., None]
    wall = anatomy.squamous + flush * (anatomy.columnar + grain - anatomy.squamous)
    outside = step(portio - 1.08, 0.03)[..., None]
    picture += outside * (
        wall * (rng.uniform(0.55, 0.95) + 0.08 * smooth_noise(rng, CANVAS, 8, 3)[..., None])
        - picture
    )

    # Some examinations show the blades of the speculum above and below.
    if rng.random() < 0.3:
        tilt = rng.normal(0, 0.15)
        blade = step(
            np.abs(y * math.cos(tilt) + x * math.sin(tilt)) - rng.uniform(1.12, 1.35), 0.02
        )[..., None]
        metal = np.clip(165 + 35 * smooth_noise(rng, CANVAS, 3, 2), 60, 245)[..., None]
        picture += blade * (metal - picture)
    return picture.astype(np.float32)


# -------------------------------------------------------------------------------------- photography


@dataclass(frozen=True)
class Examination:
    """What stays the same over the shots of one patient."""

    canvas: np.ndarray  # (CANVAS, CANVAS, 3) float32, 0..255
    view: float  # half the side of the picture, in radii of the cervix
    shift: np.ndarray  # (2,) center of the picture, in radii of the cervix
    turn: float  # radians
    light: np.ndarray  # (2,) hot spot, in picture halves from the center
    falloff: float  # loss of light per squared picture half from the hot spot
    exposure: float
    balance: np.ndarray  # (3,) white balance gains


def anatomy_of(label: int, patient: int) -> Anatomy:
    """Patient number -> anatomy."""
    return draw_anatomy(label, stream("anatomy", patient))


def examine(label: int, patient: int) -> Examination:
    """Patient number -> the set-up of the examination."""
    rng = stream("examination", patient)
    canvas = paint(anatomy_of(label, patient), rng)
    stain = rng.random()
    if stain < 0.15:  # acetic acid: everything paler, the columnar villi too
        canvas = canvas + 0.12 * (235 - canvas)
    elif stain < 0.20:  # Lugol's iodine, thin: a brown cast
        canvas = canvas * np.array([0.88, 0.78, 0.55], np.float32)
    return Examination(
        canvas=canvas,
        view=rng.uniform(0.70, 0.98),
        shift=rng.normal(0, 0.07, 2),
        turn=rng.normal(0, 0.2),
        light=rng.normal(0, 0.45, 2),
        falloff=rng.uniform(0.05, 0.34),
        exposure=rng.uniform(0.70, 1.22),
        balance=1 + rng.normal(0, 0.12, 3),
    )


def jpeg(image: Image.Image, quality: int, **options) -> bytes:
    """Encode an image as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return buffer.getvalue()


def photograph(examination: Examination, rng: np.random.Generator) -> bytes:
    """One shot of an examination: a JPEG of SIZE x SIZE pixels."""
    # Framing: the colposcope stands on the floor, the patient moves a little.
    view = examination.view * np.exp(rng.normal(0, 0.02))
    center = examination.shift + rng.normal(0, 0.018, 2)
    turn = examination.turn + rng.normal(0, 0.03)
    unit = CANVAS / (2 * REACH)  # canvas pixels per radius
    scale = 2 * view * unit / SIZE
    a, b = scale * math.cos(turn), -scale * math.sin(turn)
    origin = CANVAS / 2 + center * unit
    affine = (a, b, origin[0] - (a + b) * SIZE / 2, -b, a, origin[1] - (a - b) * SIZE / 2)
    canvas = Image.fromarray(np.clip(examination.canvas, 0, 255).astype(np.uint8))
    picture = canvas.transform(
        (SIZE, SIZE), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC
    )
    picture = np.asarray(picture, np.float32)

    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)

    # Blood in small clots, and a thread of mucus, anywhere on the cervix.
    if rng.random() < 0.25:
        clot = step(smooth_noise(rng, SIZE, 6, 2) - rng.uniform(1.7, 2.5), 0.1)[..., None]
        picture += 0.85 * clot * (np.array([120, 16, 22]) - picture)
    if rng.random() < 0.35:
        cx, cy, width = rng.normal(0, 0.3), rng.normal(0.1, 0.3), rng.uniform(0.05, 0.14)
        mucus = np.exp(-(((x - cx) / width) ** 2) - ((y - cy) / (2.5 * width)) ** 2)[..., None]
        picture += rng.uniform(0.3, 0.8) * mucus * (np.array([214, 208, 190]) - picture)

    # Light: a hot spot, a vignette, and glints on the wet surface.
    light = examination.light + rng.normal(0, 0.04, 2)
    spot = (x - light[0]) ** 2 + (y - light[1]) ** 2
    lamp = (
        1.02 - examination.falloff * np.minimum(spot, 2) - rng.uniform(0.02, 0.06) * (x**2 + y**2)
    )
    picture *= (examination.exposure * rng.uniform(0.96, 1.04) * lamp)[..., None]
    glint = step(
        smooth_noise(rng, SIZE, 22) + 1.2 * np.exp(-spot / 0.15) - rng.uniform(3.2, 4.2), 0.12
    )[..., None]
    picture += 0.9 * glint * (255 - picture)

    # Camera: white balance, focus, sensor noise.
    picture *= examination.balance * (1 + rng.normal(0, 0.012, 3))
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.0)))
    noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(1, 3), (SIZE, SIZE, 3))
    return jpeg(
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), int(rng.integers(*JPEG_QUALITY))
    )


# ------------------------------------------------------------------------------------------- layout


@dataclass(frozen=True)
class Picture:
    """One file of the sample, relative to its folder."""

    path: str
    label: int
    patient: int
    shot: int


def plan() -> list[Picture]:
    """Every regular picture: who is on it and where it goes."""
    rng = stream("layout")
    labels = [
        np.repeat(range(3), counts) for counts in (TRAIN_PATIENTS, OTHER_PATIENTS, TEST_PATIENTS)
    ]
    for group in labels:
        rng.shuffle(group)
    n_train, n_other = map(len, labels[:2])
    label = np.concatenate(labels)

    pictures = [
        Picture(f"{_TRAIN.format(TYPES[label[p]])}/{FIRST_TRAIN + p}.jpg", int(label[p]), p, 0)
        for p in range(n_train)
    ]
    further = [(p, 1 + k) for p in range(n_train) for k in range(rng.choice(4, p=MORE_SHOTS))]
    further += [
        (p, k)
        for p in range(n_train, n_train + n_other)
        for k in range(1 + rng.choice(3, p=OTHER_SHOTS))
    ]
    # File numbers are dealt out at random: the same number means another patient in train/ and in
    # additional/.
    for number, i in enumerate(rng.permutation(len(further))):
        p, shot = further[i]
        pictures.append(
            Picture(f"{_ADDITIONAL.format(TYPES[label[p]])}/{number}.jpg", int(label[p]), p, shot)
        )
    tested = [(p, 0) for p in range(n_train + n_other, len(label))]
    tested += [
        (int(p), 9)
        for p in rng.choice(np.arange(n_train, n_train + n_other), TEST_KNOWN, replace=False)
    ]
    for number, i in enumerate(rng.permutation(len(tested))):
        p, shot = tested[i]
        pictures.append(Picture(f"test/test/{number}.jpg", int(label[p]), p, shot))
    return pictures


def draw_picture(picture: Picture, examination: Examination | None = None) -> bytes:
    """JPEG bytes of a picture.  `examination` may be given when it is at hand."""
    examination = examination or examine(picture.label, picture.patient)
    return photograph(examination, stream("shot", picture.patient, picture.shot))


def source_of(defect: Defect, pictures: list[Picture]) -> Picture:
    """The regular picture that a defect is made from."""
    if defect.source is None:
        raise ValueError(f"expected a defect with a source, got {defect.kind!r} at {defect.path}")
    folder, rank = defect.source
    return [p for p in pictures if p.path.startswith(folder + "/")][rank]


def spoil(kind: str, source: bytes) -> bytes:
    """Content of a planted file made from the bytes of a good JPEG."""
    if kind == "empty":
        return b""
    if kind == "text":
        return b"This is not a picture: a download page saved under the name of one.\n"
    if kind == "truncated":
        return source[: int(0.55 * len(source))]
    if kind == "exact_duplicate":
        return source
    image = Image.open(io.BytesIO(source))
    if kind == "near_duplicate":
        return jpeg(image.resize((SIZE - 8, SIZE - 8), Image.Resampling.LANCZOS), 70)
    if kind == "exif_rotated":
        # Stored lying on its side; orientation 6 tells the viewer to turn it a quarter clockwise.
        exif = Image.Exif()
        exif[0x0112] = 6
        return jpeg(image.transpose(Image.Transpose.ROTATE_90), 90, exif=exif)
    raise ValueError(f"expected a known kind of defect, got {kind!r}")


def draw(root: Path) -> None:
    """Write the whole sample under `root`, replacing the folders that it owns."""
    for name in ("train", "test", *(f"additional_{t}_v2" for t in TYPES)):
        shutil.rmtree(root / name, ignore_errors=True)
    pictures = plan()
    files: dict[str, bytes] = {}
    patient_of = {p.path: p.patient for p in pictures}
    for _, shots in itertools.groupby(
        sorted(pictures, key=lambda p: p.patient), key=lambda p: p.patient
    ):
        shots = list(shots)
        examination = examine(shots[0].label, shots[0].patient)
        files |= {p.path: draw_picture(p, examination) for p in shots}
    for defect in DEFECTS:
        content = b""
        if defect.source:
            source = source_of(defect, pictures)
            content, patient_of[defect.path] = files[source.path], source.patient
        files[defect.path] = spoil(defect.kind, content)

    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    tested = [p for p in pictures if p.path.startswith("test/")]
    write_csv(
        root / "solution_stg1_release.csv",
        ("image_name", *TYPES),
        [(Path(p.path).name, *(int(p.label == k) for k in range(3))) for p in tested],
    )
    write_csv(root / "patients.csv", ("path", "patient"), sorted(patient_of.items()))


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    """Write a table with \\n line ends, so that every system writes the same bytes."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "sample")
    draw(parser.parse_args().out)


if __name__ == "__main__":
    main()
