"""Table of what main_inference can make. A new product is a module that ends in its `ProductType`, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from util.inference import embeddings, gap_filling, prediction, reconstruction, superresolution
from util.inference.product import ProductType

PRODUCTS: dict[str, ProductType] = {
    product_type.name: product_type
    for product_type in (
        embeddings.EMBEDDINGS,
        reconstruction.RECONSTRUCTION,
        gap_filling.GAPFILL,
        superresolution.SUPERRESOLUTION,
        prediction.PREDICTION,
    )
}
"""Every product, by the value of --output."""


def check_checkpoint(product_type: ProductType, path: str, state: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of the wrong program.

    Args:
        product_type: what is asked for.
        path: of the checkpoint.
        state: its contents.

    Raises:
        ValueError: the checkpoint holds no model of ours, or one that cannot make the product.
    """
    name, is_finetuned = product_type.name, "task" in state
    if not is_finetuned and state["model_config"].get("decoder_depth") is None:
        raise ValueError(f"--checkpoint {path}: expected a checkpoint of main_pretrain or main_finetune; give its path")
    if not is_finetuned and not product_type.pretrained:
        raise ValueError(
            f"--output {name}: {path} is a checkpoint of pre-training, which learns no labels; fine-tune it first: "
            f"python -m main_finetune --finetune {path} --labels LABELS"
        )
    if is_finetuned and not product_type.finetuned:
        possible = ", ".join(other.name for other in PRODUCTS.values() if other.finetuned)
        raise ValueError(
            f"--output {name}: {path} was fine-tuned for {state['task']['kind']} and has no decoder to reconstruct "
            f"layers; give the checkpoint of main_pretrain, or one of --output {possible}"
        )
