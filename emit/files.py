"""What every file of ours needs: a fingerprint, a write that is whole or did not happen, room on the disk."""

import csv
import hashlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from textwrap import shorten
from typing import Literal, get_args, get_origin

from emit.errors import InputError


def sha256(path):
    """Return the SHA-256 of a file, or of a folder, as 64 hexadecimal digits.

    A folder's is that of the lines "hash  relative name" of all files below it, sorted by name: what the program
    sha256sum prints for them.
    """
    path = Path(path)
    if path.is_dir():
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        return hashlib.sha256(os.fsencode("".join(f"{sha256(path / name)}  {name}\n" for name in names))).hexdigest()
    check_file(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def write_atomic(path, write):
    """Replace the file at path by what write(temporary_path) writes, all of it or nothing.

    The temporary file lies in the same folder (created when missing), reaches the disk, then takes the name. When
    anything fails, the old file stays and the temporary one is removed; an OSError, such as a full disk, becomes an
    InputError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a kill leaves, the next write replaces
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # so that a crash of the machine cannot undo the rename
        os.close(folder)
    except (OSError, RuntimeError) as error:  # torch.save meets a full disk with a RuntimeError
        raise _unwritable(path, error) from error
    finally:
        if temporary.exists():
            temporary.unlink()


def _unwritable(path, error):
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return InputError(f"{path}: could not be written ({reason}); free space or choose another folder")


def append_line(path, content):
    """Append a line of JSON. What a kill or a full disk leaves of it, `read_lines` leaves out."""
    try:
        with open(path, "a") as file:
            file.write(json.dumps(content) + "\n")
    except OSError as error:
        raise _unwritable(path, error) from error


def write_bytes(path, content):
    """Replace the file at path by these bytes."""
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def write_text(path, text):
    """Replace the file at path by this text."""
    write_bytes(path, text.encode())


def write_json(path, content, indent=None):
    """Replace the file at path by the content as JSON."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def check_file(path):
    """Raise InputError where the path is neither a plain file nor missing: a pipe would be waited for without end."""
    if os.path.lexists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: cannot be read (it is no file); give a file")


def check_zip(path):
    """Raise ValueError where a zip archive is packed: torch writes none, and a small one may fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
                raise ValueError("a packed archive, which torch does not write")


def read_text(path, todo):
    """Return the text of a UTF-8 file. todo: what to do about a bad one, in the InputError."""
    check_file(path)
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); {todo}") from error


def parse_json(text, kind, path, todo):
    """Return the JSON in a text; InputError, about the path, unless it is of a kind (`find_misfit`)."""
    try:
        content = json.loads(text)
        if fault := find_misfit(content, kind):
            raise ValueError(fault)
        return content
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged ({error}); {todo}") from error


def read_json(path, kind, todo="copy it from where it was written, or choose another folder"):
    """Return the JSON in a file; InputError where it is missing, or not of a kind (`find_misfit`)."""
    return parse_json(read_text(path, todo), kind, path, todo)


def find_misfit(value, kind, name="it"):
    """Say why a value out of a JSON file is not of a kind, None where it is.

    kind: a type hint; a range of whole numbers; a tuple: any of its kinds; [kind]: a list; {key: kind}: an object, in which a
    missing key is None.
    """
    options, origin, inside = get_args(kind), get_origin(kind), ()
    if isinstance(kind, dict) or origin is dict:
        fits = isinstance(value, dict)
        kinds = dict.fromkeys(value if fits else (), options[1]) if origin else kind
        inside = [(value.get(key), one, key) for key, one in kinds.items()] if fits else ()
    elif isinstance(kind, list) or origin in (list, tuple):
        fits = isinstance(value, list | tuple)
        inside = [(one, (options or kind)[0], f"{name}[{place}]") for place, one in enumerate(value if fits else ())]
    elif options or isinstance(kind, tuple):
        fits = value in options if origin is Literal else any(find_misfit(value, one) is None for one in options or kind)
    elif isinstance(kind, range):
        fits = type(value) is int and value in kind
    else:
        wanted = {float: (int, float), Path: (str, Path), None: type(None)}.get(kind, kind)
        fits = isinstance(value, wanted) and (kind in (bool, object) or not isinstance(value, bool))
    if not fits:
        kind = type(kind) if isinstance(kind, dict | list) else kind
        return f"{name} is {shorten(repr(value), 60)}, not {getattr(kind, '__name__', kind)}"
    return next(filter(None, (find_misfit(*one) for one in inside)), None)


def write_table(path, rows):
    """Replace the file at path by these dicts as CSV; every number can be read back exactly."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def check_room(folder, size):
    """Refuse to begin where `size` bytes have no room: for results that are written after hours."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(f"{folder}: has {free / 1e9:.1f} GB free, and the results need {size / 1e9:.1f}; free space")
