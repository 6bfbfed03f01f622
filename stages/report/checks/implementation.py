"""Are model and attacks implemented as intended?"""

from stages.report.checks.check import Check, measured

CHECKS = (
    Check(
        "D1",
        "Perturbation norm above ε, in float32 or 8 bits",
        measured("attack_checks", "norm_excess"),
        reason="An attack outside its budget overstates its success.",
        remedy="The attack is wrong: project onto the ball after every step.",
        fail=0,
    ),
    Check(
        "D2",
        "Model outputs look like probabilities",
        measured("model_checks", "looks_like_softmax"),
        reason="The gradients of a softmax vanish where it is confident.",
        remedy="Remove the softmax: attacks need logits.",
        fail=0,
    ),
    Check(
        "D3",
        "Logit change between batch sizes or repeats",
        measured("model_checks", "batch_dependence"),
        reason="Attacks assume a function of the image alone.",
        remedy="BatchNorm in train mode, or a random model: put it into eval mode, or attack the "
        "expectation over its randomness.",
        fail=1e-4,
    ),
    Check(
        "D4",
        "Tensors or modes that an attack changed in the model",
        measured("model_checks", "changed_state"),
        reason="An attack must not train the model that it is run on.",
        remedy="Take gradients with respect to the input only, in eval mode.",
        fail=0,
    ),
    Check(
        "D6",
        "Relative error of the gradient vs. finite differences",
        measured("model_checks", "gradient_error"),
        reason="Attacks follow the gradient that autograd returns.",
        remedy="A layer that isn't differentiable: replace its gradient (BPDA), or use black-box "
        "attacks.",
        fail=0.05,
    ),
    Check(
        "D23",
        "Attack successes changed by 8-bit quantization",
        measured("attack_checks", "quantization"),
        reason="Adversarial examples that don't survive as image files threaten fewer systems.",
        remedy="Report robust accuracy on quantized images, too.",
        warn=0.03,
        rate=True,
    ),
    Check(
        "D24",
        "Extra successes of PGD in float32",
        measured("attack_checks", "float32"),
        reason="Attacks are computed in bfloat16 where that is faster; INCONCLUSIVE where they "
        "were not.",
        remedy="Set runtime.precision to fp32.",
        warn=0.03,
        rate=True,
    ),
)
