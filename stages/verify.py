"""Check the claims of an evidence pack: score its adversarial examples again, without an attack.

Run: python -m stages.verify PACK [--model FILE] [--images FOLDER]

Reads a pack that stages.pack wrote, the model's weights and, where the pack holds no images, the
photographs, which are found in the folder by their digests. Writes nothing. Not a stage of the
pipeline. Exits with status 1 when the pack is refused, or a claim fails.
"""

import argparse
from pathlib import Path

from stages.core.errors import InputError
from stages.core.paths import weights_path
from stages.core.processes import run_cli
from stages.evidence.claims import Claim, LoadImages, check_claims
from stages.evidence.pack import EvidencePack, read_pack, sha256
from stages.evidence.photographs import Photographs
from stages.models import classifier


def main(pack: Path, model: Path | None = None, images: Path | None = None) -> list[Claim]:
    """Print which claims hold.

    Args:
        pack: its folder.
        model: the weights; None: those of the pipeline in the current folder.
        images: the folder of the photographs; None: the images in the pack.

    Raises:
        InputError: when the pack or the model is refused, or a claim fails.
    """
    opened = read_pack(pack)
    claimed = opened.manifest
    print(f"{pack}: SHA-256 {opened.sha256}; {summary(opened)}")
    weights = model or weights_path(claimed.model)
    network = load_model(weights, opened)
    claims = check_claims(opened, network, loader(opened, images))
    print("\n".join(map(str, claims)))
    print(
        f"A pack can refute robustness, never prove it: for {claimed.robust_correct} images it "
        "holds no adversarial example, and a stronger attack may find one."
    )
    if failed := sum(not claim.holds for claim in claims):
        raise InputError(f"{pack}: expected {len(claims)} claims that hold, got {failed} that fail")
    return claims


def summary(pack: EvidencePack) -> str:
    """What the pack is about."""
    claimed, counts = pack.manifest, pack.rows.loc[pack.perturbed, "attack"].value_counts()
    found = ", ".join(f"{count} by {name}" for name, count in counts.items())
    return (
        f"model {claimed.model}, {claimed.budget}, {claimed.images} test images, "
        f"{int(pack.perturbed.sum())} adversarial examples ({found or 'none'})"
    )


def load_model(weights: Path, pack: EvidencePack) -> classifier.Classifier:
    """The model of the pack. Raises InputError for any other one."""
    claimed = pack.manifest
    if not weights.is_file():
        raise InputError(f"{weights}: expected the weights of the model, got no file: give --model")
    if (digest := sha256(weights)) != claimed.model_sha256:
        raise InputError(
            f"{weights}: expected the model of the pack, SHA-256 {claimed.model_sha256}, "
            f"got {digest}"
        )
    return classifier.load(weights, claimed.classes, claimed.image_size)


def loader(pack: EvidencePack, images: Path | None) -> LoadImages:
    """Where the images come from."""
    if images is not None:
        return Photographs(images, pack).load
    if not pack.has_images:
        raise InputError("--images: expected a folder, for the pack holds no images, got none")
    return pack.images


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pack", type=Path, help="folder that stages.pack wrote")
    parser.add_argument("--model", type=Path, help="the weights, a safetensors file")
    parser.add_argument("--images", type=Path, help="folder of the photographs")
    run_cli(main, **vars(parser.parse_args()))
