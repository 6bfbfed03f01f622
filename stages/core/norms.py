"""Perturbation budgets: a norm and a radius ε, which mean nothing without each other, as one value.

Tensors are only used through their own methods, so that reading parameters and writing the report
need no torch. ε is in pixel units, pixel values lie in [0, 1].
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from torch import Tensor

UNRECOGNIZABLE = 64 / 255  # change of every pixel at which no image is left to recognize


def _per_image(values: "Tensor") -> "Tensor":
    """(B,) -> (B, 1, 1, 1)."""
    return values[:, None, None, None]


@dataclass(frozen=True)
class Norm(ABC):
    """How large a perturbation (B, 3, H, W) is; ``eps``: a number, or (B, 1, 1, 1), one per image.

    Attributes:
        name: in params.yaml and in tables.
        symbol: in texts.
        plausible: smallest and largest ε that this norm is used with.
        example: a usual ε, for error messages.
        axis_scale: what ε is multiplied by on the axis of a chart.
        noise: distribution of random numbers whose direction has no preferred axis in this norm.
    """

    name: ClassVar[str]
    symbol: ClassVar[str]
    plausible: ClassVar[tuple[float, float]]
    example: ClassVar[str]
    axis_scale: ClassVar[int]
    noise: ClassVar[str]

    @abstractmethod
    def size(self, delta: "Tensor") -> "Tensor":
        """Norm of each perturbation: (B, 3, H, W) -> (B,)."""

    @abstractmethod
    def project(self, x: "Tensor", x_adv: "Tensor", eps: Any) -> "Tensor":
        """An image in [0, 1] within ε of x, near x_adv: (B, 3, H, W) each."""

    @abstractmethod
    def clip(self, delta: "Tensor", eps: Any) -> "Tensor":
        """The nearest perturbation of norm at most ε."""

    @abstractmethod
    def steepest_ascent(self, gradient: "Tensor") -> "Tensor":
        """The step of norm 1 along which the linearized loss increases most."""

    @abstractmethod
    def unit_noise(self, noise: "Tensor") -> "Tensor":
        """Noise (B, 3, H, W) as a perturbation of norm at most 1."""

    @abstractmethod
    def tolerance(self, eps: float) -> float:
        """How much rounding in float32 may add to the norm of a perturbation of norm ε."""

    @abstractmethod
    def limit(self, values: int) -> float:
        """The ε beyond which no image of so many pixel values is left to recognize."""

    @abstractmethod
    def format(self, eps: float) -> str:
        """ε as a text."""

    def random_start(self, x: "Tensor", eps: Any, noise: "Tensor") -> "Tensor":
        """The image in the ball around x to which the noise leads."""
        return self.project(x, x + eps * self.unit_noise(noise), eps)


class Linf(Norm):
    """The largest change of any pixel value."""

    name, symbol, noise, axis_scale = "linf", "L∞", "uniform", 255
    plausible, example = (1e-4, 0.5), "8/255"  # at 0.5 a gray pixel can become anything

    def size(self, delta: "Tensor") -> "Tensor":
        return delta.abs().flatten(1).amax(1)

    def project(self, x: "Tensor", x_adv: "Tensor", eps: Any) -> "Tensor":
        """The nearest such image."""
        return x_adv.maximum(x - eps).minimum(x + eps).clamp(0, 1)

    def clip(self, delta: "Tensor", eps: Any) -> "Tensor":
        return delta.clamp(-eps, eps)

    def steepest_ascent(self, gradient: "Tensor") -> "Tensor":
        """The gradient's sign."""
        return gradient.sign()

    def unit_noise(self, noise: "Tensor") -> "Tensor":
        return noise.clamp(-1, 1)

    def tolerance(self, eps: float) -> float:
        return 1e-6

    def limit(self, values: int) -> float:
        return UNRECOGNIZABLE

    def format(self, eps: float) -> str:
        """``8/255``, ``0.06/255`` below an eighth, other values in pixel units: ``0.01``."""
        if 0 < eps * 255 < 1 / 8:
            return f"{eps * 255:.2g}/255"
        levels = Fraction(eps * 255).limit_denominator(8)
        if not eps or abs(float(levels) - eps * 255) > 1e-3 * eps * 255:
            return f"{eps:.4g}"
        return f"{float(levels):g}/255"


class L2(Norm):
    """The Euclidean norm of the whole perturbation."""

    name, symbol, noise, axis_scale = "l2", "L2", "gaussian", 1
    plausible, example = (0.1, 100.0), "0.5"

    def size(self, delta: "Tensor") -> "Tensor":
        return delta.flatten(1).norm(dim=1)

    def project(self, x: "Tensor", x_adv: "Tensor", eps: Any) -> "Tensor":
        """x_adv scaled back to the ball, then clipped to [0, 1]."""
        return (x + self.clip(x_adv - x, eps)).clamp(0, 1)

    def clip(self, delta: "Tensor", eps: Any) -> "Tensor":
        return delta * (eps / _per_image(self.size(delta)).clamp_min(1e-12)).clamp_max(1)

    def steepest_ascent(self, gradient: "Tensor") -> "Tensor":
        """The gradient's direction."""
        return gradient / _per_image(self.size(gradient)).clamp_min(1e-12)

    def unit_noise(self, noise: "Tensor") -> "Tensor":
        return self.steepest_ascent(noise)

    def tolerance(self, eps: float) -> float:
        return 1e-6 + 1e-5 * eps  # a sum over all pixels rounds more than one pixel

    def limit(self, values: int) -> float:
        return UNRECOGNIZABLE * values**0.5

    def format(self, eps: float) -> str:
        return f"{eps:.4g}"


NORMS: Mapping[str, Norm] = {norm.name: norm for norm in (Linf(), L2())}


@dataclass(frozen=True)
class Budget:
    """What an attacker may do: perturbations whose norm is at most ``eps``.

    Attributes:
        norm: one of NORMS.
        eps: a number; inside an attack, or one for each image of the batch, Tensor (B, 1, 1, 1).
    """

    norm: Norm
    eps: Any

    @classmethod
    def of(cls, norm: str, eps: float) -> Self:
        """The budget in the norm of this name. Raises ValueError for an unknown name."""
        if norm not in NORMS:
            raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
        return cls(NORMS[norm], eps)

    def __str__(self) -> str:
        """``L∞, ε = 8/255``."""
        return f"{self.norm.symbol}, ε = {self.norm.format(self.eps)}"

    @property
    def short(self) -> str:
        """``8/255``, ``L2 0.5``: for names of steps."""
        prefix = "" if self.norm.name == "linf" else f"{self.norm.symbol} "
        return prefix + self.norm.format(self.eps)

    def with_eps(self, eps: Any) -> Self:
        """The same norm with another radius."""
        return replace(self, eps=eps)

    def project(self, x: "Tensor", x_adv: "Tensor") -> "Tensor":
        """An image in [0, 1] within the budget of x, near x_adv: (B, 3, H, W) each."""
        return self.norm.project(x, x_adv, self.eps)

    def random_start(self, x: "Tensor", noise: "Tensor") -> "Tensor":
        """The image within the budget of x to which the noise leads."""
        return self.norm.random_start(x, self.eps, noise)
