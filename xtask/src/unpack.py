"""Unpacks members of a wheel or a tar.gz: unpack.py ARCHIVE FOLDER STRIP MEMBER..."""
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath


def members(archive):
    """Yields (name, open) for each plain file of the archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    yield info.filename, lambda info=info: wheel.open(info)
    else:
        with tarfile.open(archive) as source:
            for info in source:
                if info.isfile():
                    yield info.name, lambda info=info: source.extractfile(info)


def main():
    archive, folder, strip, *wanted = sys.argv[1:]
    missing = set(wanted)
    for name, opened in members(archive):
        found = {w for w in wanted if name == w or w.endswith("/") and name.startswith(w)}
        if not found:
            continue
        missing -= found
        parts = PurePosixPath(name).parts[int(strip):]
        if not parts or ".." in parts or PurePosixPath(name).is_absolute():
            sys.exit(f"{name} would be unpacked outside of {folder}")
        path = Path(folder, *parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        with opened() as source, open(path, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    if missing:
        sys.exit(f"{archive} holds nothing named " + ", ".join(sorted(missing)))


main()
