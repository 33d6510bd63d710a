"""Tags of TensorBoard curves, in the order in which a reader wants them, and what each says.

TensorBoard sorts groups by name, so that the groups are numbered: skill and losses first. Tags do not name a method or
a fold: these are runs of their own, whose curves then lie over each other.
"""

from __future__ import annotations

SKILL, LOSS, ERROR, LAYER_LOSS = "1_skill", "2_loss", "3_error", "4_layer_loss"
OPTIMISER, SPEED, MEMORY = "5_optimiser", "6_speed", "7_memory"
SCORE = "1_score"

ABOUT = {
    f"{SKILL}/": "1 - squared error / that of interpolation or the mean, whichever is better, on held-out ground. 1 is "
    "perfect; below 0 interpolation is better. No unit.",
    f"{SCORE}/validation": "Score on validation ground, by which a fit ends. No unit, or the unit of the values.",
    f"{SCORE}/": "Score on test ground that the fit was not trained on.",
    f"{LOSS}/training_base": "Squared error at the base scale on training tiles, model units squared.",
    f"{LOSS}/training_finer": "Absolute error at finer scales on training tiles, model units.",
    f"{LOSS}/training_texture": "Error of the textures of hidden patches on training tiles, logarithm.",
    f"{LOSS}/training": "Loss on training ground, weighted over layers and scales, model units.",
    f"{LOSS}/held_out_base": "Squared error at the base scale on held-out tiles, model units squared.",
    f"{LOSS}/held_out_finer": "Absolute error at finer scales on held-out tiles, model units.",
    f"{LOSS}/held_out_texture": "Error of the textures of hidden patches on held-out tiles, logarithm.",
    f"{LOSS}/held_out": "Loss on held-out tiles, weighted over layers and scales, model units.",
    f"{LAYER_LOSS}/": "Training loss of one layer at one scale, model units (squared at 1x).",
    f"{OPTIMISER}/lr": "Learning rate.",
    f"{OPTIMISER}/grad_norm": "Norm of the gradient before clipping.",
    f"{OPTIMISER}/": "State of the gradient scaler.",
    f"{SPEED}/tiles_per_s": "Tiles or windows trained on a second, all processes.",
    f"{SPEED}/wait_share": "Fraction of the time spent waiting for data, 0 to 1.",
    f"{SPEED}/": "CPU seconds of this process.",
    f"{MEMORY}/": "Most memory so far, MiB.",
}
"""Beginning of a tag -> what its curve says; the first that fits counts."""


def about(tag: str, unit: str = "") -> str:
    """What a curve says, with the unit of its values where that is the layer's."""
    if tag.startswith(f"{ERROR}/"):
        if tag.endswith("_accuracy"):
            return "Fraction of held-out pixels whose class is right, 0 to 1."
        return f"Root mean squared error on held-out ground, {unit or 'units of the layer'}."
    return next((text for start, text in ABOUT.items() if tag.startswith(start)), "")
