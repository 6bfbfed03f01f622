"""Where the gradient of a model points: its share in the middle of the image.

The gradient of the margin at an image says which pixels an attacker would change; it explains no
decision (Adebayo et al., arXiv:1810.03292). That of robust models follows the shapes in an image
more closely (Tsipras et al., arXiv:1805.12152).
"""

from typing import Any

from torch import Tensor

from stages.attacks.gradient import margin_gradient
from stages.core.tables import Table
from stages.measurements.context import Context, Measurement
from stages.measurements.target import Batch, TargetModel
from stages.models.inference import frozen_eval_mode

TABLE = Table(
    "gradients",
    {
        "path": (str, "image"),
        "label": (str, "class"),
        "central_share": (float, "of the squared gradient: what lies in the central quarter"),
    },
)


def input_gradient(target: TargetModel, x: Tensor, y: Tensor) -> Tensor:
    """Gradient (B, 3, H, W) of the margin loss at x, in float32."""
    with frozen_eval_mode(target.fused_model):
        return margin_gradient(target.fused_model, x, y)


def central_energy(gradient: Tensor) -> Tensor:
    """Share of the squared gradient (B, 3, H, W) in the central quarter of the area, (B,).

    0.25 where it is uniform.
    """
    height, width = gradient.shape[-2:]
    # Scaled, for squares of small numbers would vanish.
    scaled = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-30)
    energy = scaled.square().sum(1)  # (B, H, W)
    rows, columns = (slice(side // 4, side - side // 4) for side in (height, width))
    return energy[:, rows, columns].sum((1, 2)) / energy.sum((1, 2)).clamp_min(1e-30)


def central_share(target: TargetModel, batch: Batch) -> dict[str, Tensor]:
    """`central_energy` of the images of a batch."""
    return {"share": central_energy(input_gradient(target, batch.x, batch.y))}


def run(context: Context) -> dict[str, Any]:
    """gradients.csv."""
    target = context.target
    result = context.steps.run("gradients", target, target.everything, central_share)
    images = context.images(target.everything, "path", "label")
    return {TABLE.name: images.assign(central_share=result["share"].numpy())}


MEASUREMENT = Measurement(run, (TABLE,))
