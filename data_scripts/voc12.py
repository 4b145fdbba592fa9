"""VOC 2012 with the annotations of Hariharan et al. (SBD): 10,582 training and 1,449 validation images, as the paper uses them (Sec. 4, Settings).

trainaug = (SBD's train and val + VOC's train) - VOC's val. A mask is VOC's own where VOC has one; the others are SBD's .mat files, turned into PNG.
Without a network: fetch VOCtrainval_11-May-2012.tar (2.0 GB) and benchmark.tgz (1.4 GB), then --from-archive with both, or with their folder.
Made: <data>/voc12/ with JPEGImages/, SegmentationClassAug/ (21 classes, 255 = void), trainaug.txt, val.txt, LICENCE.txt, manifest.json.
"""
import sys
import zlib
from pathlib import Path

from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

from fetching import Archive, Source, main, matching, unpack
from lc import paths
from lc.errors import InputError

VOC_KEEP = ("JPEGImages/*.jpg", "SegmentationClass/*.png", "ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt")
SBD_KEEP = ("dataset/cls/*.mat", "dataset/train.txt", "dataset/val.txt")


def _names(listing: Path) -> set[str]:
    return set(paths.need(listing, "list", "an archive is incomplete: fetch it again").read_text().split())


def prepare(archives: list[Path], folder: Path) -> dict:
    """Merge the two archives; how many masks are from which."""
    raw = folder.parent / "raw"
    for archive, kept, below in zip(archives, (VOC_KEEP, SBD_KEEP), ("voc", "sbd")):
        unpack(archive, raw, matching(kept, below))
    own, held_out = (_names(raw / f"voc/ImageSets/Segmentation/{split}.txt") for split in ("train", "val"))
    train = (own | _names(raw / "sbd/dataset/train.txt") | _names(raw / "sbd/dataset/val.txt")) - held_out
    (folder / "JPEGImages").mkdir()
    (folder / "SegmentationClassAug").mkdir()
    for name in tqdm(sorted(train | held_out), desc="merging", unit="image", disable=None):
        _take(raw / f"voc/JPEGImages/{name}.jpg", folder / f"JPEGImages/{name}.jpg")
        mask = folder / f"SegmentationClassAug/{name}.png"
        if name in own or name in held_out:
            _take(raw / f"voc/SegmentationClass/{name}.png", mask)
        else:
            convert(raw / f"sbd/dataset/cls/{name}.mat", mask)
    lists = {"trainaug": sorted(train), "val": sorted(held_out)}
    for split, names in lists.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return {"masks": {"VOC": len(own | held_out), "SBD": len(train - own)}}


def _take(source: Path, target: Path) -> None:
    paths.need(source, "a listed file", "an archive is incomplete: fetch it again").rename(target)


def convert(source: Path, target: Path) -> None:
    """An SBD annotation (.mat, GTcls.Segmentation, values 0-20) as a PNG of class numbers."""
    paths.need(source, "SBD annotation", "benchmark.tgz is incomplete: fetch it again")
    try:
        mask = loadmat(source)["GTcls"][0, 0]["Segmentation"]
    except (KeyError, IndexError, ValueError, zlib.error) as error:
        raise InputError(f"{source.name} of benchmark.tgz holds no GTcls.Segmentation ({error}); fetch it again") from None
    Image.fromarray(mask.astype("uint8")).save(target)


# both sums: as torchvision's and TensorFlow's data set code give them; the data sets' own sites publish none
VOC = Archive("VOCtrainval_11-May-2012.tar", tuple(f"{site}/VOCtrainval_11-May-2012.tar" for site in (
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012", "http://host.robots.ox.ac.uk/pascal/VOC/voc2012", "https://data.pjreddie.com/files")),
    "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb")
SBD = Archive("benchmark.tgz", tuple(f"{site}/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz" for site in (
    "https://www2.eecs.berkeley.edu", "http://www.eecs.berkeley.edu")), "6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53")
VOC12 = Source(
    "voc12", (VOC, SBD),
    "VOC 2012: the images are from Flickr and under its terms of use; for research. Cite: Everingham, Van Gool, Williams, Winn, Zisserman, The "
    "PASCAL visual object classes (VOC) challenge, IJCV 2010. SBD: for research. Cite: Hariharan, Arbelaez, Bourdev, Maji, Malik, Semantic contours from "
    "inverse detectors, ICCV 2011.", prepare, needs=6 * 10 ** 9)

if __name__ == "__main__":
    sys.exit(main(VOC12, __doc__))
