"""Changes of good files: {name: the new bytes, or a function of the path} for every format that is read."""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib

import h5py
import nibabel
import numpy as np
import torch
from PIL import Image, PngImagePlugin

DEEP = 10**6  # brackets in brackets


# ---- changes of any file: {name: its new bytes, or a function of the path}


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def folder(path):
    path.unlink()
    path.mkdir()


def link(to):
    def place(path):
        path.unlink()
        path.symlink_to(to)

    return place


def of_any(good):
    noise = np.random.default_rng(0).integers(0, 256, len(good), np.uint8).tobytes()
    return {
        "empty": b"",
        "one byte": good[:1],
        "half": good[: len(good) // 2],
        "zeros": bytes(len(good)),
        "noise": noise,
        "another kind": b"%PDF-1.4\n%%EOF\n",
        "a page": b"<!DOCTYPE html><html>404</html>\n",
        "a FIFO": fifo,
        "a folder": folder,
        "a link to nothing": link("nowhere"),
        "a link to itself": lambda path: link(path.name)(path),
        "an endless device": link("/dev/zero"),
    }


# ---- changes of JSON

SYNTAX = {
    "cut": lambda text: text[: len(text) * 2 // 3],
    "null": lambda text: "null",
    "a number": lambda text: "7",
    "a text": lambda text: '"x"',
    "an empty list": lambda text: "[]",
    "a list": lambda text: "[[1], 2]",
    "an empty object": lambda text: "{}",
    "deep": lambda text: "[" * DEEP + "]" * DEEP,
    "deep objects": lambda text: '{"a":' * DEEP + "1" + "}" * DEEP,
    "long number": lambda text: "1" * 10**5,
    "two values": lambda text: text + text,
    "trailing text": lambda text: text + "x",
}
OTHER = {str: 5, int: "x", float: "x", bool: "x", list: {"a": 1}, dict: [5], type(None): {}}


def places(value, depth=4):
    """Yield the path of every value in nested objects; of a list, those in the first element."""
    for key in value if isinstance(value, dict) else range(min(1, len(value))) if isinstance(value, list) else ():
        yield (key,)
        if depth > 1:
            yield from ((key, *more) for more in places(value[key], depth - 1))


def changed(content, place, change):
    """Return a copy of nested objects in which change(object, key) was called at one place."""
    content = json.loads(json.dumps(content))
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    change(inner, place[-1])
    return content


def of_object(content):
    """Yield (name, changed content): every value missing, of another kind, null, and numbers that cannot be."""
    for place in places(content):
        inner = content
        for key in place:
            inner = inner[key]
        name = ".".join(map(str, place))
        others = {"other kind": OTHER[type(inner)], "null": None}
        if isinstance(inner, int | float) and not isinstance(inner, bool):
            others |= {"negative": -1, "huge": 10**8, "endless": float("inf"), "a fraction": 0.3}
        if isinstance(inner, str):
            others |= {"outside": "../../../etc/passwd"}
        if isinstance(inner, list):
            others |= {"emptied": []}
        yield f"{name} missing", changed(content, place, lambda object, key: object.pop(key))
        for what, other in others.items():
            if other != inner or type(other) is not type(inner):
                yield f"{name} {what}", changed(content, place, lambda object, key, other=other: object.__setitem__(key, other))


def of_json(good):
    text, content = good.decode(), json.loads(good)
    found = {name: change(text).encode() for name, change in SYNTAX.items()}
    found |= {"not UTF-8": b'{"a": "\xff"}', "UTF-16": text.encode("utf-16")}
    return found | {name: json.dumps(one).encode() for name, one in of_object(content)}


def of_lines(good):
    lines = good.decode().splitlines(keepends=True)
    found = {f"line 1 {name}": change(lines[0].strip()) for name, change in SYNTAX.items() if not name.startswith("deep")}
    found = {name: "".join([line + "\n", *lines[1:]]).encode() for name, line in found.items()}
    found |= {"deep": ("[" * DEEP + "]" * DEEP + "\n").encode() + good, "not UTF-8": b'{"a": "\xff"}\n' + good}
    found |= {"last line cut": good[: -len(lines[-1]) // 2], "first line twice": lines[0].encode() + good}
    return found | {
        f"line 1 {name}": "".join([json.dumps(one) + "\n", *lines[1:]]).encode() for name, one in of_object(json.loads(lines[0]))
    }


# ---- changes of pictures


def png(array=None, size=None, data=None, kind=0, depth=8, chunks=()):
    """Return a PNG file with a header of its own."""
    height, width = size or array.shape
    data = data if data is not None else zlib.compress(b"".join(b"\0" + row.tobytes() for row in array))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)), *chunks, (b"IDAT", data), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def picture(array, kind, mode=None, **options):
    memory, image = io.BytesIO(), Image.fromarray(array)
    (image.convert(mode) if mode else image).save(memory, kind, **options)
    return memory.getvalue()


def of_picture(good):
    grey = np.arange(192, dtype=np.uint8).reshape(12, 16)
    rows = np.zeros((1, 1), np.uint8)
    return {
        "a bomb of 900 megapixels": png(size=(30000, 30000), data=zlib.compress(bytes(30000 * 3751)), depth=1),
        "a bomb of 90 megapixels": png(size=(9000, 10000), data=zlib.compress(bytes(9000 * 1251)), depth=1),
        "a header of 4 gigapixels": png(size=(65535, 65535), data=zlib.compress(b"")),
        "no pixel": png(size=(0, 0), data=zlib.compress(b"")),
        "one pixel": png(rows),
        "another size": png(np.zeros((11, 16), np.uint8)),
        "a bomb of text": png(grey, chunks=[(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))]),
        "a bomb of a profile": png(grey, chunks=[(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8)))]),
        "a palette without colours": png(grey, kind=3),
        "an impossible depth": png(grey, depth=7),
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 12\n%%EndComments\nshowpage\n%%EOF\n",
    }


def tiff(tag, kind, value, base):
    """Return a TIFF file with one entry of its directory changed."""
    memory = bytearray(base)
    (start,) = struct.unpack("<I", memory[4:8])
    for n in range(struct.unpack("<H", memory[start : start + 2])[0]):
        place = start + 2 + 12 * n
        if struct.unpack("<H", memory[place : place + 2])[0] == tag:
            memory[place + 2 : place + 12] = struct.pack("<HII", kind, 1, value)
    return bytes(memory)


def of_tiff(good):
    nan, endless = np.ones((12, 16), np.float32), np.ones((12, 16), np.float32)
    nan[3, 4], endless[3, 4] = np.nan, -np.inf
    entries = {"width": 256, "height": 257, "bits": 258, "compression": 259, "colours": 262, "strips": 273, "samples": 277}
    return (
        {"NaN": picture(nan, "TIFF"), "infinity": picture(endless, "TIFF")}
        | {"Lab": picture(np.zeros((12, 16, 3), np.uint8), "TIFF", "LAB")}
        | {f"{name} of {value}": tiff(tag, 4, value, good) for name, tag in entries.items() for value in (0, 2**31 - 1)}
    )


def of_mask(good):
    values = np.zeros((12, 16), np.uint8)
    values[4:8, 4:8] = 77
    return {
        "an unknown class": png(values),
        "fractions": picture(values / np.float32(50), "TIFF"),
        "NaN": picture(np.full((12, 16), np.nan, np.float32), "TIFF"),
    }


# ---- changes of tables, volumes, weights, states


def of_table(good):
    return {
        "other columns": b"file,text\n" + good.split(b"\n", 1)[1],
        "three columns": good.replace(b"picture 2", b"a,b"),
        "a name twice": good + b"p1,again\n",
        "a name less": good.replace(b"p2,picture 2\n", b""),
        "a zero byte": good.replace(b"picture 2", b"a\0b"),
        "not UTF-8": good.replace(b"picture 2", b"\xff"),
        "an open quote": good.replace(b"picture 2", b'"picture 2'),
        "a long field": good.replace(b"picture 2", b"x" * 200_000),
        "UTF-16": good.decode().encode("utf-16"),
        "without a head": good.split(b"\n", 1)[1],
    }


def header_of(content, changes, packed):
    """Return a NIfTI file with fields of its header changed: {byte: (struct format, value)}."""
    content = bytearray(content)
    for place, (form, value) in changes.items():
        content[place : place + struct.calcsize(form)] = struct.pack(form, *np.atleast_1d(value).tolist())
    return gzip.compress(bytes(content), 1) if packed else bytes(content)


def of_volume(good):
    packed = good[:2] == b"\x1f\x8b"
    plain = gzip.decompress(good) if packed else good
    changes = {
        "no axis": {40: ("<8h", [0] * 8)},
        "an axis of 0": {42: ("<h", 0)},
        "a last axis of 0": {46: ("<h", 0)},
        "a negative axis": {42: ("<h", -6)},
        "a header of 32767 x 32767 x 32767": {42: ("<3h", [32767] * 3)},
        "a header of 2000 x 2000 x 2000": {42: ("<3h", [2000] * 3)},
        "more axes": {40: ("<h", 7)},
        "two axes": {40: ("<h", 2)},
        "an unknown number format": {70: ("<h", 999)},
        "complex numbers": {70: ("<2h", [32, 64])},
        "RGB": {70: ("<2h", [128, 24])},
        "the data far behind": {108: ("<f", 1e18)},
        "the data before the start": {108: ("<f", -1e6)},
        "NaN scale": {112: ("<2f", [np.nan, 0])},
        "endless scale": {112: ("<2f", [np.inf, 0])},
        "a huge scale": {112: ("<2f", [1e38, 1e38])},
        "no transform": {252: ("<2h", [0, 0])},
        "NaN affine": {252: ("<2h", [0, 1]), 280: ("<f", np.nan)},
        "zero affine": {252: ("<2h", [0, 1]), 280: ("<12f", [0] * 12)},
        "endless affine": {252: ("<2h", [0, 1]), 280: ("<f", np.inf)},
        "a shifted affine": {252: ("<2h", [0, 1]), 292: ("<f", 50)},
        "spacing of 0": {252: ("<2h", [0, 0]), 80: ("<3f", [0, 0, 0])},
        "NaN spacing": {252: ("<2h", [0, 0]), 80: ("<3f", [np.nan] * 3)},
        "no magic": {344: ("<4s", b"xxxx")},
        "a header of another size": {0: ("<i", 12345)},
    }
    changes["no magic"] = {344: ("<i", 0)}
    found = {name: header_of(plain, change, packed) for name, change in changes.items()}
    for name, value in (("NaN", np.nan), ("infinity", np.inf), ("1e300", 1e300), ("fractions", 0.3)):
        array = np.zeros((6, 5, 4))
        array[2, 2, 2] = value
        image = nibabel.Nifti1Image(array, np.diag((-2.0, -2.0, 3.0, 1.0))).to_bytes()
        found[name] = gzip.compress(image) if packed else image
    if packed:
        found["a bomb"] = gzip.compress(header_of(plain, {42: ("<3h", [800, 800, 700])}, False) + bytes(2 * 800 * 800 * 700), 1)
    return found


def safetensors(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def of_safetensors(good):
    size = struct.unpack("<Q", good[:8])[0]
    header, body = json.loads(good[8 : 8 + size]), good[8 + size :]
    name = next(name for name in header if name != "__metadata__" and header[name]["dtype"] == "F32")
    entries = {
        "a longer shape": {"shape": [10**9, 10**9]},
        "offsets beyond": {"data_offsets": [0, 2**62]},
        "another dtype": {"dtype": "I64"},
        "an unknown dtype": {"dtype": "X9"},
        "negative shape": {"shape": [-1]},
        "no shape": {"shape": None},
        "empty shape": {"shape": [0]},
        "offsets turned": {"data_offsets": header[name]["data_offsets"][::-1]},
    }
    found = {what: safetensors(header | {name: header[name] | entry}, body) for what, entry in entries.items()}
    found |= {"a header of 2^60 bytes": struct.pack("<Q", 2**60) + good[8:], "a deep header": safetensors(b"[" * DEEP)}
    found |= {"a tensor less": safetensors({key: value for key, value in header.items() if key != name}, body)}
    start, end = header[name]["data_offsets"]
    found["NaN"] = good[: 8 + size + start] + np.full((end - start) // 4, np.nan, np.float32).tobytes() + good[8 + size + end :]
    own = json.loads(header["__metadata__"]["emit"])
    with_own = lambda text: safetensors(header | {"__metadata__": {"emit": text}}, body)  # noqa: E731
    found |= {f"own header {what}": with_own(change(json.dumps(own))) for what, change in SYNTAX.items()}
    return found | {f"own header {what}": with_own(json.dumps(one)) for what, one in of_object(own)}


class Call:
    """Pickles to a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def saved(content, **options):
    memory = io.BytesIO()
    torch.save(content, memory, **options)
    return memory.getvalue()


def of_pickle(good, path):
    tensors = torch.load(io.BytesIO(good), weights_only=True)
    name, options = next(iter(tensors)), {"_use_new_zipfile_serialization": "legacy" not in str(path)}
    others = {
        "a list": [1],
        "numbers": {name: 1},
        "a tensor that repeats one number": tensors | {name: torch.zeros(1).expand(10**6, 10**6)},
        "a meta tensor": tensors | {name: torch.empty(10**6, 10**6, device="meta")},
        "a sparse tensor": tensors | {name: torch.eye(3).to_sparse()},
        "NaN": tensors | {name: torch.full_like(tensors[name], np.nan)},
        "integers": tensors | {name: tensors[name].long()},
        "a tensor less": {key: tensors[key] for key in list(tensors)[1:]},
        "a number as name": {5: tensors[name]},
        "a call": {name: Call(os.getcwd, ())},
        "complex numbers": tensors | {name: tensors[name].cfloat()},
    }
    found = {what: saved(one, **options) for what, one in others.items()}
    if options["_use_new_zipfile_serialization"]:
        found["a packed bomb"] = repack(good, lambda name, data: bytes(3 * 10**8) if name.endswith("data.pkl") else data)
    return found


def repack(content, change):
    memory = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return memory.getvalue()


def of_keras(good):
    def with_(change):
        memory = io.BytesIO(good)
        with h5py.File(memory, "r+") as file:
            change(file)
        return memory.getvalue()

    place = "dsn1/vars/0"

    def replace(**options):
        def change(file):
            del file[place]
            file.create_dataset(place, **options)

        return with_(change)

    return {
        "a dataset of 10^12": replace(shape=(10**6, 10**6), dtype="f4", chunks=(1, 1000)),
        "another file's data": replace(shape=(1, 1, 1, 1), dtype="f4", external=[("/proc/cpuinfo", 0, 4)]),
        "texts": replace(data=["a", "b"], dtype=h5py.string_dtype()),
        "NaN": replace(data=np.full((1, 1, 1, 1), np.nan, np.float32)),
        "a dataset less": with_(lambda file: file.__delitem__(place)),
        "no number": replace(shape=(0,), dtype="f4"),
    }


def of_state(good):
    state = torch.load(io.BytesIO(good), weights_only=True)
    found = {f"{name} missing": {key: value for key, value in state.items() if key != name} for name in state}
    weights = state["weights"]
    name, ema = next(iter(weights)), state["ema"]
    others = {
        "step negative": {"step": -1},
        "step of text": {"step": "x"},
        "step too late": {"step": 99},
        "step of a fraction": {"step": 2.5},
        "weights of a list": {"weights": list(weights.values())},
        "weights of numbers": {"weights": dict.fromkeys(weights, 1.0)},
        "weights of another shape": {"weights": weights | {name: torch.zeros(9)}},
        "NaN": {"weights": weights | {name: weights[name] * np.nan}},
        "no average": {"ema": None},
        "an average of text": {"ema": ["x"] * len(ema)},
        "a shorter average": {"ema": ema[1:]},
        "an average of another shape": {"ema": [torch.zeros(3) for _ in ema]},
        "sums of text": {"sums": {"loss": "x"}},
        "sums of a list": {"sums": [1]},
        "no optimizer": {"optimizer": {}},
        "an optimizer of text": {"optimizer": "x"},
        "another optimizer": {"optimizer": {"state": {}, "param_groups": [{"lr": 1, "params": [0, 1, 2, 3, 4]}]}},
        "an optimizer's moments of another shape": {
            "optimizer": state["optimizer"]
            | {
                "state": {
                    n: {k: torch.zeros(7) if k == "exp_avg" else v for k, v in one.items()}
                    for n, one in state["optimizer"]["state"].items()
                }
            }
        },
        "fewer hashes": {"hashes": state["hashes"][:3]},
        "hashes of fractions": {"hashes": state["hashes"].float()},
        "hashes of text": {"hashes": "x"},
        "no hashes": {"hashes": None},
        "buffers of a list": {"buffers": []},
    }
    found |= {what: state | change for what, change in others.items()}
    found["a list"] = [state]
    found = {what: saved(one) for what, one in found.items()}
    return found | {"a packed bomb": repack(good, lambda name, data: bytes(3 * 10**8) if name.endswith("data.pkl") else data)}


def of_sampled(good):
    def with_(text):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("emit.sample", text)
        return picture(np.zeros((12, 16), np.uint8), "PNG", pnginfo=info)

    with Image.open(io.BytesIO(good)) as file:
        about = json.loads(file.text["emit.sample"])
    found = {name: with_(change(json.dumps(about))) for name, change in SYNTAX.items()}
    return found | {name: with_(json.dumps(one)) for name, one in of_object(about)}


def rehash(root, path, content):
    """Put other bytes in a list of the ledger, under the name of their hash, and name it in ledger.json."""

    def place(path):
        folder = path.parents[1] / "fold0" / "ledger.json"
        digest = hashlib.sha256(content).hexdigest()
        (path.parent / f"{digest}.npy").write_bytes(content)
        folder.write_text(folder.read_text().replace(path.stem, digest))

    return place


def npy(array, **options):
    memory = io.BytesIO()
    np.save(memory, array, **options)
    return memory.getvalue()


def of_list(good):
    huge = npy(np.zeros(8, np.uint64)).replace(b"(8,), }" + b" " * 12, b"(900000000000,), }" + b" ")
    others = {
        "a pickle": pickle.dumps([1]),
        "objects": npy(np.array([{}], object), allow_pickle=True),
        "fractions": npy(np.ones(3)),
        "two axes": npy(np.ones((2, 2), np.uint64)),
        "a header of 900 gigabytes": huge,
        "another number of pictures": npy(np.arange(77, dtype=np.uint64)),
    }
    return {f"rightly named: {what}": rehash(None, None, content) for what, content in others.items()}


def of_manifest(good):
    lines = [json.loads(line) for line in good.decode().splitlines()]

    def with_(**change):
        return "".join(json.dumps(line | change if n == 0 else line) + "\n" for n, line in enumerate(lines)).encode()

    outside = "../../fold1/images/" + "x.png"

    def escape(path):  # the files are there, and whole
        for kind in ("images", "masks", "edges"):
            (path.parent / kind / "sub").mkdir(exist_ok=True)
            shutil.copy(path.parent / kind / lines[0]["file"], path.parent.parent / f"{kind}.png")
            (path.parent.parent / "fold1" / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(path.parent / kind / lines[0]["file"], path.parent.parent / "fold1" / kind / "x.png")
        outside = {kind: f"../../fold1/{kind}/x.png" for kind in ("images",)}
        path.write_bytes(with_(file=outside["images"]))

    return {"a file outside": with_(file=outside), "an absolute file": with_(file="/etc/passwd"), "a whole file outside": escape}


# ---- all

OF = {
    ".png": of_picture,
    ".jpg": of_picture,
    ".tif": of_tiff,
    ".bmp": of_picture,
    ".csv": of_table,
    ".json": of_json,
    ".jsonl": of_lines,
    ".nii": of_volume,
    ".gz": of_volume,
    ".safetensors": of_safetensors,
    ".h5": of_keras,
    ".npy": of_list,
}


def changes_of(path):
    """Return {name: new bytes or function of the path} of every change of this file."""
    good = path.read_bytes()
    found = of_any(good)
    if path.name == "state.pt":
        return found | of_state(good)
    if path.suffix == ".pt":
        return found | of_pickle(good, path)
    if path.name == "sampled.png":
        return found | of_sampled(good)
    found |= OF[path.suffix](good)
    if path.parent.name == "masks":
        found |= of_mask(good)
    return found | (of_manifest(good) if path.name == "manifest.jsonl" else {})
