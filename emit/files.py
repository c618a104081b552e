"""What every file of ours needs: a fingerprint, a write that is whole or did not happen, room on the disk."""

import csv
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

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
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{path}: could not be written ({reason}); free space or choose another folder") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def write_bytes(path, content):
    """Replace the file at path by these bytes."""
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def write_text(path, text):
    """Replace the file at path by this text."""
    write_bytes(path, text.encode())


def write_json(path, content, indent=None):
    """Replace the file at path by the content as JSON."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def read_json(path, *keys):
    """Return the JSON object in a file of a run; InputError where it is missing or damaged, or lacks one of the keys."""
    try:
        content = json.loads(Path(path).read_text())
        return {key: content[key] for key in keys}
    except FileNotFoundError as error:
        words = "is missing, and tells what the run began with; copy it along or choose another folder"
        raise InputError(f"{path}: {words}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged; copy it from where it was written, or choose another folder") from error


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
