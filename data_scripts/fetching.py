"""What the data scripts share: fetch archives, unpack them safely, prepare a folder whole or not at all, check it, write its manifest.

A transfer that broke goes on where it stopped, mirrors are tried in turn, a SHA-256 is checked: the published one, or else the one that was noted
on first use in <data>/downloads/<archive>.sha256. Whatever goes wrong is one line (InputError) with the next step.
"""
import argparse
import gzip
import hashlib
import json
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import requests
from tqdm import tqdm

from lc import paths, records
from lc.config import DataConfig
from lc.data import SPECS, SegmentationSet
from lc.errors import InputError

CHUNK = 64 * 2 ** 10  # bytes; what a broken line may cost
TRIES = 5             # attempts on one mirror that bring no new byte
OTHER_DISK = "free some space, or point LC_DATA (or --data) at another disk"
PAUSE = 1.0           # seconds before the second attempt, doubled before each further one


@dataclass(frozen=True)
class Archive:
    """A file to fetch. urls: mirrors in the order they are tried; sha256: "" where none is published."""
    name: str
    urls: tuple[str, ...] = ()
    sha256: str = ""


@dataclass(frozen=True)
class Source:
    """How <data>/<name> is made. prepare(archives, folder) fills the folder and returns what the manifest says of it; needs: free
    bytes it takes; missing(archive, downloads): fetch what has no address, or raise the next step."""
    name: str
    archives: tuple[Archive, ...]
    terms: str
    prepare: Callable[[list[Path], Path], dict]
    needs: int
    missing: Callable[[Archive, Path], Path] | None = None


def need_space(folder: Path, size: int) -> None:
    """InputError unless `size` bytes are free in folder."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(f"{folder} has {free / 1e9:.1f} GB free, {size / 1e9:.1f} GB are needed; {OTHER_DISK}")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(archive: Archive, folder: Path, urls: tuple[str, ...]) -> Path:
    """The archive fetched from the first mirror that gives it whole; each mirror has a part file of its own, which a later call goes on with."""
    failures = []
    for url in urls:
        part = folder / f"{archive.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"
        try:
            _fetch(url, part)
        except requests.RequestException as error:
            failures.append(f"{url}: {error}")
            continue
        if archive.sha256 and sha256(part) != archive.sha256:
            failures.append(f"{url}: its SHA-256 is not {archive.sha256}")
            part.unlink()
            continue
        return part.rename(folder / archive.name)
    raise InputError(f"download of {archive.name} failed ({'; '.join(failures)}); run again to go on, or fetch it in a browser, then "
                     "make data PROFILE=... ARCHIVES=FILE (without make: --from-archive FILE)")


def _fetch(url: str, part: Path) -> None:
    """Complete the part file; gives up after TRIES attempts without a new byte, or when the server says the file is not there."""
    idle = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            return _stream(url, part, have)
        except requests.RequestException as error:
            idle = 0 if part.exists() and part.stat().st_size > have else idle + 1
            if idle == TRIES or (error.response is not None and error.response.status_code < 500):
                raise
            time.sleep(PAUSE * 2 ** idle)


def _stream(url: str, part: Path, have: int) -> None:
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, stream=True, timeout=30, headers=headers) as reply:
        if reply.status_code == 416:  # nothing after what is here
            if reply.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            part.unlink()  # another file, or too much of it
            return _stream(url, part, 0)
        reply.raise_for_status()
        have = have if reply.status_code == 206 else 0  # this server does not resume
        left = int(reply.headers.get("Content-Length", 0))
        need_space(part.parent, left)
        with open(part, "ab" if have else "wb") as out, \
                tqdm(desc=part.name, total=have + left or None, initial=have, unit="B", unit_scale=True, disable=None) as bar:
            for chunk in reply.iter_content(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))


def matching(patterns: tuple[str, ...], below: str = "") -> Callable[[PurePosixPath], str | None]:
    """Where `unpack` puts a member: what matches a pattern, by its path from there on, in the folder `below`."""
    from_there_on = lambda member, pattern: str(PurePosixPath(below, *member.parts[-pattern.count("/") - 1:]))
    return lambda member: next((from_there_on(member, pattern) for pattern in patterns if member.match(pattern)), None)


def unpack(path: Path, folder: Path, place: Callable[[PurePosixPath], str | None]) -> int:
    """Unpack the files for which place(name) is not None to folder/place(name); their number. Links and devices are left out, and Python's own checks
    keep names inside the folder; InputError for what is no archive, or damaged."""
    count, bar = 0, partial(tqdm, desc=f"unpacking {path.name}", unit="file", disable=None)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as bundle:
                for entry in bar(bundle.infolist()):
                    if not entry.is_dir() and (goal := place(PurePosixPath(entry.filename))):
                        entry.filename, count = goal, count + 1
                        bundle.extract(entry, folder)
        else:
            with tarfile.open(path) as bundle:
                for entry in bar(bundle):
                    if entry.isreg() and (goal := place(PurePosixPath(entry.name))):
                        bundle.extract(entry.replace(name=goal), folder, filter="data")
                        count += 1
                while bundle.fileobj.read(2 ** 20):  # up to the check sum of a .tgz, which stands behind the last member
                    pass
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is no archive, or damaged ({why}); delete it and run again, or fetch it again") from None
    return count


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A scratch folder on the same disk that becomes `folder` when the block ends well, and vanishes otherwise."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-", ignore_cleanup_errors=True) as scratch:
        made = Path(scratch, folder.name)
        made.mkdir()
        yield made
        made.rename(folder)


def obtain(source: Source, downloads: Path, given: list[Path], urls: list[str]) -> list[Path]:
    """A file for each archive: one that was given (itself, or in a given folder), else one in downloads, else fetched."""
    found = []
    for path in given:
        paths.need(path, "archive", "give the file, or the folder that holds it")
    for position, archive in enumerate(source.archives):
        files = [path / archive.name if path.is_dir() else path for path in given]
        files = [path for path in files if path.exists() and (path.name == archive.name or len(source.archives) == 1)]
        if files or (downloads / archive.name).exists():
            found.append((files or [downloads / archive.name])[0])
        elif mirrors := tuple(urls[position:position + 1]) or archive.urls:
            found.append(download(archive, downloads, mirrors))
        else:
            found.append(source.missing(archive, downloads))
    return found


def check_sum(path: Path, archive: Archive, note: Path) -> str:
    """The SHA-256 of an archive; InputError if it is not the published one, or the one in `note`."""
    found, expected = sha256(path), archive.sha256 or (note.read_text().split()[0] if note.exists() else "")
    if expected and found != expected:
        whose, choice = ("published", "") if archive.sha256 else (f"{note} (noted on first use)", " (or the note, if the new one is right)")
        raise InputError(f"{path} has SHA-256 {found}, {whose} is {expected}: damaged, or another version; delete or replace it{choice} and run again")
    return found


def check(source: Source, root: Path) -> dict:
    """Read every image and label of the splits under root/<name>: counts, sizes, hashes; InputError at the first that does not fit."""
    splits = {}
    for split, expected in SPECS[source.name].counts.items():
        data = SegmentationSet(DataConfig(source.name), split, root)
        if len(data) != expected:
            raise InputError(f"{data.spec.title}'s {split} list holds {len(data)} images, it should hold {expected}; fetch the archives again")
        with ThreadPoolExecutor() as pool:
            shapes = pool.map(lambda i: data.decode(i)[1].shape, range(len(data)))
            sizes = list(tqdm(shapes, desc=f"checking {split}", total=len(data), unit="image", disable=None))
        splits[split] = {"images": len(data), "smallest": [min(side) for side in zip(*sizes)], "largest": [max(side) for side in zip(*sizes)],
                         "sha256": data.fingerprint()}
    return splits


def provide(source: Source, root: Path, given: list[Path], urls: list[str]) -> dict:
    """Make root/<name> unless it is there, check it either way, and return its manifest, which also lies in a folder made here."""
    folder, downloads = root / source.name, root / "downloads"
    kept = folder / "manifest.json"
    if folder.exists():
        made = json.loads(kept.read_text()) if kept.exists() else {"archives": "unknown: the folder was not made by this script"}
        splits = check(source, root)
        if made.get("splits", splits) != splits:
            raise InputError(f"{folder} is no longer what {kept} says; move it away and run again")
        return {"data": source.name, "terms": source.terms, **made, "folder": str(folder), "splits": splits}
    downloads.mkdir(parents=True, exist_ok=True)
    need_space(root, source.needs)
    files = obtain(source, downloads, given, urls)
    notes = [downloads / f"{archive.name}.sha256" for archive in source.archives]
    sums = [check_sum(*each) for each in zip(files, source.archives, notes)]
    with whole(folder) as scratch:
        prepared = source.prepare(files, scratch)
        made = {"data": source.name, "terms": source.terms, "prepared": prepared, "splits": check(source, scratch.parent),
                "archives": {a.name: {"sha256": s, "published": bool(a.sha256), "urls": a.urls} for a, s in zip(source.archives, sums)}}
        (scratch / "LICENCE.txt").write_text(source.terms + "\n")
        (scratch / "manifest.json").write_text(json.dumps(made, indent=1) + "\n")
    for archive, file, total, note in zip(source.archives, files, sums, notes):
        if not archive.sha256 and not note.exists():
            note.write_text(f"{total}  {archive.name}\n")
            print(f"{source.name}: no SHA-256 of {archive.name} is published; that of {file} is noted in {note}, and later ones are compared with it")
    return {**made, "folder": str(folder)}


def main(source: Source, description: str, arguments: list[str] | None = None) -> int:
    """Command line of a data script: 0 when the data is there and checked, 2 otherwise."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the data sets (default: $LC_DATA, else data/)")
    parser.add_argument("--manifest", type=Path, default=paths.ROOT / "build/data" / f"{source.name}.json")
    parser.add_argument("--from-archive", type=Path, nargs="+", default=[], metavar="FILE",
                        help=f"use these instead of downloading: {', '.join(a.name for a in source.archives)}, or folders that hold them")
    parser.add_argument("--url", nargs="+", default=[], help="addresses to fetch from instead, in the same order")
    args = parser.parse_args(arguments)
    root = paths.data_root(args.data)
    try:
        manifest = provide(source, root, args.from_archive, args.url)
        records.write_whole(args.manifest, (json.dumps(manifest, indent=1) + "\n").encode())
    except InputError as error:
        print(f"{source.name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{source.name}: writing below {root} failed ({error}); {OTHER_DISK}", file=sys.stderr)
        return 2
    counts = "/".join(str(split["images"]) for split in manifest["splits"].values())
    print(f"{source.name}: {counts} images checked in {manifest['folder']}; manifest {args.manifest}\n{source.terms}")
    return 0
