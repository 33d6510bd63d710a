"""The parsers of the three programs, given the names that tables elsewhere declare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from util.options import common, finetune, inference, pretrain
from util.options.parser import Parser


def pretrain_parser(
    doc: str, *, mask_shapes: Sequence[str], scale_heads: Sequence[str], stems: Sequence[str]
) -> Parser:
    """The parser of main_pretrain, whose docstring is `doc`; names are those of SatMAE where it has the same option."""
    parser = Parser("main_pretrain", usage="main_pretrain [options]", description=doc.split("\n\n")[0])
    common.add_data_options(parser)
    common.add_model_options(parser, mask_shapes=mask_shapes, scale_heads=scale_heads, stems=stems)
    common.add_training_options(parser)
    common.add_run_options(parser)
    pretrain.add_pretrain_options(parser)
    return parser


def finetune_parser(doc: str, choices: finetune.Choices) -> Parser:
    """The parser of main_finetune, under the names that SatMAE users know where they exist there."""
    parser = Parser("main_finetune", usage="main_finetune [options]", description=doc.split("\n\n")[0])
    finetune.add_all_options(parser, choices)
    return parser


def inference_parser(doc: str, products: Mapping[str, str]) -> Parser:
    """The parser of main_inference; `products` are what it writes, with the help of each."""
    parser = Parser("main_inference", usage="main_inference [options]", description=doc.split("\n\n")[0])
    inference.add_source_options(parser, products=products)
    inference.add_result_options(parser)
    inference.add_run_options(parser)
    return parser
