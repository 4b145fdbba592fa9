"""Cityscapes, fine annotations: 2,975 training and 500 validation images of 2048x1024, 19 classes; the test labels are not public.

The download needs an account (https://www.cityscapes-dataset.com/register/). Either fetch leftImg8bit_trainvaltest.zip (11 GB) and
gtFine_trainvaltest.zip (241 MB) in a browser and give both, or their folder, to --from-archive; or `pip install cityscapesscripts`, whose
csDownload then asks for the account here. A folder in the official layout is used as it is: link it as <data>/cityscapes.
Label files stay as published (label ids); lc.data maps them to the 19 classes. Test images are kept for `python -m lc export --images`.
"""
import shutil
import subprocess
import sys
from pathlib import Path

from fetching import Archive, Source, main, matching, unpack
from lc.errors import InputError

KEEP = ("leftImg8bit/*/*/*_leftImg8bit.png", "gtFine/train/*/*_gtFine_labelIds.png", "gtFine/val/*/*_gtFine_labelIds.png")


def prepare(archives: list[Path], folder: Path) -> dict:
    """Unpack images and label ids; the number of files from each archive."""
    counts = {archive.name: unpack(archive, folder, matching(KEEP)) for archive in archives}
    for name in (name for name, count in counts.items() if not count):
        raise InputError(f"{name} holds none of {', '.join(KEEP)}: another archive; fetch it from https://www.cityscapes-dataset.com/downloads/")
    return {"files": counts}


def official(archive: Archive, downloads: Path) -> Path:
    """The archive through the official downloader, which asks for the user's account; InputError with the steps if it is not here."""
    tool = shutil.which("csDownload") or shutil.which("csDownload", path=Path(sys.executable).parent)
    target = downloads / archive.name
    if tool and subprocess.run([tool, "-r", "-d", str(downloads), archive.name]).returncode == 0 and target.exists():
        return target
    names = " ".join(a.name for a in CITYSCAPES.archives)
    raise InputError(f"{archive.name} is not in {downloads} and {'csDownload failed' if tool else 'needs an account'}: register at "
                     f"https://www.cityscapes-dataset.com/register/, download {names}, then --from-archive {names} (with make: ARCHIVES='{names}'); "
                     "or install cityscapesscripts and run again")


CITYSCAPES = Source(
    "cityscapes", (Archive("leftImg8bit_trainvaltest.zip"), Archive("gtFine_trainvaltest.zip")),
    "Cityscapes: free for research by registered users, not to be redistributed (https://www.cityscapes-dataset.com/license/). Cite: Cordts, Omran, "
    "Ramos, Rehfeld, Enzweiler, Benenson, Franke, Roth, Schiele, The Cityscapes dataset for semantic urban scene understanding, CVPR 2016.",
    prepare, needs=13 * 10 ** 9, missing=official)

if __name__ == "__main__":
    sys.exit(main(CITYSCAPES, __doc__))
