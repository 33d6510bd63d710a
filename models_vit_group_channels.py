"""The grouped-channel encoder, and the models for fine-tuning that are built on it.

Channels are divided into groups. Each group has its own patch embedding, and one transformer reads the tokens of all
groups. Two models add a head: `GroupChannelsVisionTransformer` classifies a whole tile, `GroupChannelsDensePredictor`
predicts each of its pixels. The masked autoencoder of `models_mae_group_channels.py` inherits the same encoder, so that
weights can be copied between the models by name.

References: SatMAE++ (Noman et al., CVPR 2024, arXiv 2403.05419), SatMAE (Cong et al., NeurIPS 2022) and MAE
(He et al., CVPR 2022). Parameter names and shapes of encoder and classifier are those of SatMAE++. The dense
predictor is an addition, and so are validity (values of invalid pixels have no effect) and stems, by which tokens and
dense heads see pixels finer than the base pixel (`util/model/native_stem.py`).

Shape letters: N batch, C channels, H W base-scale pixels, G groups, L patches per group, D encoder width, p patch
edge, s scale, K outputs, M feature maps of a stem. `valid` is data validity, True = usable.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from util.model.native_stem import STEM_MAPS, STEMS, NativeStem, StemFeatures, StemPixels, maps_by_patch, patches_of
from util.model.patches import SENTINEL_GROUPS, token_validity
from util.model.pos_embed import sincos_1d, sincos_2d
from util.model.scale_heads import at_least_float32, full_precision
from util.model.task_heads import HEAD_WIDTH, HeadSize, make_task_head

NORM_LAYER = partial(nn.LayerNorm, eps=1e-6)
STEM_BATCH = 64
"""Visible patches are filled up to a multiple of this: memory of few sizes is used again, but not that of many."""
MOST_EXPLICIT_TOKENS = 512
"""Most tokens for which scores of attention are written out, see `explicit_is_faster`."""


def check_partition(channel_groups: Sequence[Sequence[int]], in_chans: int) -> tuple[tuple[int, ...], ...]:
    """Return the groups as tuples, after checking that they hold each channel exactly once.

    Raises:
        ValueError: a group is empty, or a channel is missing, repeated or out of range.
    """
    groups = tuple(tuple(int(c) for c in group) for group in channel_groups)
    listed = [c for group in groups for c in group]
    problems = {
        "missing": [c for c in range(in_chans) if c not in listed],
        "more than once": sorted({c for c in listed if listed.count(c) > 1}),
        "out of range": sorted({c for c in listed if not 0 <= c < in_chans}),
        "empty groups": [i for i, group in enumerate(groups) if not group],
    }
    found = "; ".join(f"{what} {which}" for what, which in problems.items() if which)
    if found:
        raise ValueError(
            f"channel_groups {groups}: {found}; expected each of channels 0 to {in_chans - 1} in exactly one"
        )
    return groups


@dataclass(frozen=True)
class ModelSize:
    """Widths and depths of a model; those of the decoder are used only in pre-training."""

    embed_dim: int
    depth: int
    num_heads: int
    channel_embed: int
    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    decoder_channel_embed: int = 128


MODEL_SIZES = {
    "tiny": ModelSize(192, 6, 3, 64, 128, 2, 4, 32),
    "small": ModelSize(384, 12, 6, 96, 256, 4, 8, 64),
    "base": ModelSize(768, 12, 12, 256),
    "large": ModelSize(1024, 24, 16, 256),
}


def model_size(name: str) -> ModelSize:
    """Look up a size.

    Args:
        name: tiny, small, base or large, or a full name such as mae_vit_tiny_patch16.

    Raises:
        ValueError: the name is unknown.
    """
    size = MODEL_SIZES.get(name.removeprefix("mae_vit_").removesuffix("_patch16"))
    if size is None:
        raise ValueError(f"model {name!r}: expected one of {', '.join(MODEL_SIZES)}, or mae_vit_tiny_patch16 and so on")
    return size


class GroupChannelEncoder(nn.Module):
    """Patch embeddings of the groups, position and group embeddings, and transformer blocks.

    Models inherit it, rather than contain it, so that parameters have the same names in all of them. SatMAE++ lacks
    `nodata_token` and `stems`: loading weights without them leaves the token as it is, and makes stems that start by
    adding nothing to the tokens.

    Args:
        stem: whether tokens and dense heads see pixels finer than the base pixel, one of `STEMS`.
        native_scales: for each channel, how many of its native pixels lie along the edge of a base pixel; a group is
            seen at the largest of its channels. Needed unless `stem` is "base".
        detail_scales: for each channel, the standard deviation of its native pixels within a base pixel, model units; 0
            if that has no meaning. Needed likewise.
        target_groups: number of the last groups, which are predicted in pre-training and never encoded.

    Attributes:
        encoded_groups: number of the first groups, which are encoded: all but the targets.
        fused_attention: whether blocks use PyTorch's fused attention; None: where that is faster.

    Raises:
        ValueError: the stem is unknown, its scales do not fit the channels, or no group is encoded.
    """

    fused_attention: bool | None = None

    def __init__(
        self,
        *,
        img_size: int,
        patch_size: int,
        in_chans: int,
        channel_groups: Sequence[Sequence[int]],
        channel_embed: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        norm_layer: Any,
        train_embeddings: bool,
        stem: str = "base",
        native_scales: Sequence[int] | None = None,
        detail_scales: Sequence[float] | None = None,
        target_groups: int = 0,
        drop_path: float = 0.0,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"img_size {img_size}: expected a multiple of patch_size {patch_size}")
        self.channel_groups = check_partition(channel_groups, in_chans)
        self.group_sizes = [len(group) for group in self.channel_groups]
        self.img_size, self.patch_size, self.in_chans = img_size, patch_size, in_chans
        self.num_groups, self.num_patches = len(self.channel_groups), (img_size // patch_size) ** 2
        self.grad_checkpointing = grad_checkpointing
        if not 0 <= target_groups < self.num_groups:
            raise ValueError(
                f"target_groups {target_groups} of {self.num_groups} channel groups: expected at least one group that "
                "is encoded; give fewer targets"
            )
        self.encoded_groups = self.num_groups - target_groups

        order = [c for group in self.channel_groups for c in group]
        group_of = {c: i for i, group in enumerate(self.channel_groups) for c in group}
        self._register_index("group_order", order)  # channel order -> concatenated groups
        self._register_index("channel_order", [order.index(c) for c in range(in_chans)])  # and back
        self._register_index("group_of_channel", [group_of[c] for c in range(in_chans)])

        encoded = self.group_sizes[: self.encoded_groups]
        self.patch_embed = nn.ModuleList(PatchEmbed(img_size, patch_size, size, embed_dim) for size in encoded)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.nodata_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        position, group = self._embeddings(embed_dim, channel_embed, num_heads, rows=self.encoded_groups)
        self.pos_embed = nn.Parameter(position, requires_grad=train_embeddings)
        self.channel_embed = nn.Parameter(group, requires_grad=train_embeddings)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=True, norm_layer=norm_layer, drop_path=rate)
            for rate in _linear_ramp(drop_path, depth)
        )
        self._build_stems(stem, native_scales, detail_scales, width=embed_dim)
        self.register_load_state_dict_pre_hook(_keep_what_is_new)

    def _register_index(self, name: str, values: Sequence[int]) -> None:
        """Register indices as a buffer that is not in the state dict."""
        self.register_buffer(name, torch.tensor(list(values), dtype=torch.int64), persistent=False)

    def _embeddings(self, width: int, group_width: int, num_heads: int, *, rows: int) -> tuple[Tensor, Tensor]:
        """Sine-cosine embeddings of position (1, 1+L, width - group_width) and group number (1, rows, group_width).

        Row 0 of the position embedding belongs to the class token and is zero.
        """
        if width % num_heads or group_width % 2 or (width - group_width) % 4 or group_width >= width:
            raise ValueError(
                f"width {width} with {num_heads} heads and {group_width} for the channel embedding: expected "
                "a width divisible by the number of heads, an even channel embedding, and a multiple of 4 left for "
                "the position embedding"
            )
        grid = sincos_2d(self.img_size // self.patch_size, width - group_width)
        position = torch.cat([torch.zeros_like(grid[:1]), grid])[None]
        return position, sincos_1d(torch.arange(rows), group_width)[None]

    def _build_stems(
        self, stem: str, native_scales: Sequence[int] | None, detail_scales: Sequence[float] | None, *, width: int
    ) -> None:
        """Add a stem for each group, with a projection to tokens if these see native pixels."""
        if stem not in STEMS:
            raise ValueError(f"stem {stem!r}: expected one of {', '.join(STEMS)}")
        self.stem, self.embeds_native = stem, stem in ("native", "tokens")
        self.stems = nn.ModuleList()
        self.native_scales = (1,) * self.encoded_groups
        if not self._needs_stems():
            return
        scales, details = list(native_scales or ()), list(detail_scales or ())
        if len(scales) != self.in_chans or len(details) != self.in_chans or min(scales) < 1 or min(details) < 0:
            raise ValueError(
                f"stem {stem!r} with native_scales {scales} and detail_scales {details}: expected for each of "
                f"{self.in_chans} channels a whole number of at least 1 and a number of at least 0"
            )
        encoded = self.channel_groups[: self.encoded_groups]
        self.native_scales = tuple(max(scales[c] for c in group) for group in encoded)
        self.group_details = [tuple(float(details[c]) for c in group) for group in encoded]
        for scale, group_details in zip(self.native_scales, self.group_details, strict=True):
            self.stems.append(
                NativeStem(
                    scale=scale,
                    detail_scales=group_details,
                    patch_pixels=self.patch_size**2 if self.embeds_native else None,
                    width=width,
                )
            )

    def _needs_stems(self) -> bool:
        """Whether anything in the model sees native pixels."""
        return self.embeds_native

    @property
    def native_shapes(self) -> list[tuple[int, int]]:
        """Channels and edge of each image of native pixels that the model takes: of groups finer than base pixels."""
        return [
            (size, scale * self.img_size)
            for size, scale in zip(self.group_sizes[: self.encoded_groups], self.native_scales, strict=True)
            if scale > 1
        ]

    def init_weights(self) -> None:
        """Initialise as MAE does: xavier-uniform linear layers and patch embeddings, normal(0.02) tokens.

        Norms start with weight 1 and bias 0, and biases of linear layers at 0; convolutions of the shared heads keep
        PyTorch's default.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embed in self.patch_embed:
            nn.init.xavier_uniform_(embed.proj.weight.view(embed.proj.weight.shape[0], -1))
        for token in (self.cls_token, self.nodata_token):
            nn.init.normal_(token, std=0.02)

    def _prepare(self, imgs: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images, at least float32 and 0 where invalid, and their validity."""
        imgs, valid = check_images("imgs", imgs, valid, channels=self.in_chans, size=self.img_size)
        return torch.where(valid, imgs, 0.0), valid

    def embed(self, imgs: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Embed patches as tokens, and add position and group embeddings.

        A token without valid pixels is replaced by the no-data token. The computation is in full precision even under
        autocast, because extreme values such as 1e5 overflow in fp16.

        Args:
            imgs: (N, C, H, W), model units, 0 where invalid.
            valid: (N, C, H, W) bool, True = usable.

        Returns:
            tokens (N, G, L, D), and (N, G, L) bool, True where a token has a valid pixel; G encoded groups.
        """
        token_valid = self.token_validity(valid)
        with full_precision(imgs.device):
            parts = self._encoded_parts(imgs)
            tokens = torch.stack([embed(part) for embed, part in zip(self.patch_embed, parts, strict=True)], dim=1)
            tokens = torch.where(token_valid.unsqueeze(-1), tokens, self.nodata_token.unsqueeze(1))
            return tokens + self._token_embedding(self.pos_embed[:, 1:], self.channel_embed), token_valid

    def token_validity(self, valid: Tensor) -> Tensor:
        """Validity of pixels (N, C, H, W) -> (N, G, L) bool of encoded groups, True where a token has a valid pixel."""
        groups = {"group_order": self.group_order, "group_sizes": self.group_sizes}
        return token_validity(valid, self.patch_size, **groups)[:, : self.encoded_groups]

    def _encoded_parts(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (N, C, H, W) -> the channels of each encoded group."""
        return images.index_select(1, self.group_order).split(self.group_sizes, dim=1)[: self.encoded_groups]

    def _check_native(self, native: Sequence[Tensor] | None, count: int) -> list[Tensor]:
        """The images of native pixels, after checking their shapes; none if the model sees base pixels alone.

        Raises:
            ValueError: images are missing or have other shapes.
        """
        if not self.stems:
            return []
        expected = [(count, size, edge, edge) for size, edge in self.native_shapes]
        found = [tuple(image.shape) for image in native or ()]
        if found != expected:
            raise ValueError(
                f"native images of shapes {found}: expected {expected}, one for each channel group with pixels finer "
                f"than the base pixel (stem {self.stem!r}); read the layers at their native pixels"
            )
        return list(native or ())

    def _patches_by_group(
        self, imgs: Tensor, valid: Tensor, native: Sequence[Tensor], *, patch_size: int
    ) -> Iterator[tuple[NativeStem, StemPixels]]:
        """Yield each group's stem and views of its patches, (N, side, side, ...)."""
        bases, usable = self._encoded_parts(imgs), self._encoded_parts(valid)
        images = iter(native)
        for module, scale, base, ok in zip(self.stems, self.native_scales, bases, usable, strict=True):
            assert isinstance(module, NativeStem)
            own = next(images) if scale > 1 else None
            yield module, patches_of(own, base, ok, patch_size=patch_size, scale=scale)

    def stem_maps(self, imgs: Tensor, valid: Tensor, native: Sequence[Tensor]) -> list[Tensor]:
        """Feature maps of whole images, (N, H, W, M) for each group if there are stems; arguments as of `embed`."""
        if not self.stems:
            return []
        # One patch as large as the image: no pixel is moved before it is sorted by base pixel.
        return [
            module(StemPixels(*(x.flatten(0, 2) for x in patches)))
            for module, patches in self._patches_by_group(imgs, valid, native, patch_size=self.img_size)
        ]

    def add_stems(self, tokens: Tensor, token_valid: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Add to valid tokens (N, G, L, D) what their feature maps, as of `stem_maps`, say."""
        parts = [
            module.tokens(maps_by_patch(part, self.patch_size)).view(tokens.shape[0], self.num_patches, -1)
            for module, part in zip(self.stems, maps, strict=True)
        ]
        return tokens + torch.where(token_valid.unsqueeze(-1), torch.stack(parts, dim=1), 0.0)

    def add_stems_where(
        self, tokens: Tensor, seen: Tensor, imgs: Tensor, valid: Tensor, native: Sequence[Tensor]
    ) -> Tensor:
        """As `add_stems` for the tokens that are `seen`, (N, G, L) bool, alone: others cost nothing.

        The number of these tokens decides shapes, for which a GPU would have to wait.
        """
        side = self.img_size // self.patch_size
        by_group = self._patches_by_group(imgs, valid, native, patch_size=self.patch_size)
        for g, (module, patches) in enumerate(by_group):
            n, place = seen[:, g].nonzero(as_tuple=True)
            at = F.pad(torch.stack([n, place // side, place % side]), (0, -len(n) % STEM_BATCH))
            chosen = StemPixels(*(x[tuple(at)] for x in patches))
            group = torch.full_like(n, g)
            added = tokens[n, group, place] + module.tokens(module(chosen))[: len(n)]  # without what fills it up
            tokens = tokens.index_put((n, group, place), added)
        return tokens

    def _token_embedding(self, position: Tensor, group: Tensor) -> Tensor:
        """Concatenate position (1, L, -) and group (1, G, -) embeddings to (1, G, L, width)."""
        size = (1, group.shape[1], position.shape[1], -1)
        return torch.cat([position.unsqueeze(1).expand(size), group.unsqueeze(2).expand(size)], dim=-1)

    def run_blocks(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        """Apply transformer blocks to (N, tokens, width); the residual stream keeps the precision of `x`."""
        fused = not explicit_is_faster(x) if self.fused_attention is None else self.fused_attention
        for block in blocks:
            if block.attn.fused_attn != fused:
                block.attn.fused_attn = fused
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


def explicit_is_faster(x: Tensor) -> bool:
    """True if attention over (N, tokens, width) is faster as matrix products than as PyTorch's fused kernel.

    It is in bfloat16 on a CPU, where the backward pass of the kernel takes two to five times as long. With very many
    tokens its scores, which the kernel does not keep, would take more memory than all else.
    """
    if x.device.type != "cpu" or x.shape[1] > MOST_EXPLICIT_TOKENS:
        return False
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _linear_ramp(last: float, count: int) -> list[float]:
    return [last * i / max(count - 1, 1) for i in range(count)]


def _keep_what_is_new(module: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    """Add what weights such as the published ones lack, so that they load strictly and mean the same.

    The no-data token and the stems stay as they are, but for the projections of stems, which become zero.
    """
    state_dict.setdefault(prefix + "nodata_token", module.nodata_token.detach())
    if not any(name.startswith(prefix + "stems.") for name in state_dict):
        for name, value in module.stems.state_dict(prefix=prefix + "stems.").items():
            state_dict[name] = torch.zeros_like(value) if ".proj." in name else value


def check_images(name: str, images: Tensor, valid: Tensor | None, *, channels: int, size: int) -> tuple[Tensor, Tensor]:
    """Images, at least float32, and their validity, all True if None.

    Raises:
        ValueError: shapes or types do not fit.
    """
    if images.ndim != 4 or images.shape[1:] != (channels, size, size):
        raise ValueError(
            f"{name} of shape {tuple(images.shape)}: expected (N, {channels}, {size}, {size}) from in_chans, "
            "img_size and scales; build the model for this size, or cut the images to it"
        )
    if valid is None:
        valid = torch.ones_like(images, dtype=torch.bool)
    if valid.shape != images.shape or valid.dtype != torch.bool:
        raise ValueError(
            f"validity of {name} of shape {tuple(valid.shape)}, {valid.dtype}: expected bool of shape "
            f"{tuple(images.shape)}, True = usable"
        )
    return at_least_float32(images), valid


class EncoderWithHead(GroupChannelEncoder):
    """Base class of the models for fine-tuning: the encoder applied to all tokens.

    A subclass adds `head`, and `norm` or `fc_norm` before it. `channel_cls_embed` is the group embedding of the class
    token, as in SatMAE++; it starts at zero, because the class token has none in pre-training.
    """

    #: Arguments with which `build_finetune_model` rebuilds the model, except `norm_layer`; can be written as JSON.
    config: dict[str, Any]
    encoder_frozen = False

    def __init__(self, *, channel_embed: int, **encoder: Any) -> None:
        super().__init__(channel_embed=channel_embed, train_embeddings=True, **encoder)
        self.channel_cls_embed = nn.Parameter(torch.zeros(1, 1, channel_embed))

    def _encode(self, imgs: Tensor, valid: Tensor, native: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode images returned by `_prepare`, without gradients if the encoder is frozen.

        Returns:
            (N, 1 + G*L, D) after the last block, class token first; (N, G, L) bool, True where a token has a valid
            pixel; and the feature maps of the stems.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_frozen):
            tokens, token_valid = self.embed(imgs, valid)
            maps = self.stem_maps(imgs, valid, native)
            if self.embeds_native:
                tokens = self.add_stems(tokens, token_valid, maps)
            cls_embedding = torch.cat([self.pos_embed[:, :1], self.channel_cls_embed], dim=-1)
            cls = (self.cls_token + cls_embedding).expand(imgs.shape[0], -1, -1)
            x = self.run_blocks(self.blocks, torch.cat([cls, tokens.flatten(1, 2)], dim=1))
        return x, token_valid, maps

    def forward_tokens(
        self, imgs: Tensor, valid: Tensor | None = None, native: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode all tokens; none is removed.

        Args:
            imgs: (N, C, H, W), model units.
            valid: (N, C, H, W) bool, True = usable; all if None.
            native: native pixels of the groups that have finer ones, (N, c, sH, sW) each, model units, NaN = invalid;
                needed unless the stem is "base".

        Returns:
            tokens (N, G, L, D), at least float32, after `norm` if the model has one (with `global_pool` it has none),
            and (N, G, L) bool, True where a token has a valid pixel; features of the others come from their
            surroundings alone.

        Raises:
            ValueError: shapes or types do not fit the model.
        """
        imgs, valid = self._prepare(imgs, valid)
        x, token_valid, _ = self._encode(imgs, valid, self._check_native(native, imgs.shape[0]))
        return self._tokens(x), token_valid

    def _tokens(self, x: Tensor) -> Tensor:
        """(N, 1 + G*L, D) after the last block -> (N, G, L, D), after `norm` if there is one."""
        x = at_least_float32(self.norm(x) if hasattr(self, "norm") else x)
        return x[:, 1:].unflatten(1, (self.num_groups, self.num_patches))

    def train(self, mode: bool = True) -> "EncoderWithHead":
        """Switch between training and evaluation; a frozen encoder stays in evaluation, without drop path."""
        super().train(mode)
        if self.encoder_frozen:
            for part in (self.patch_embed, self.stems, self.blocks):
                part.eval()
        return self

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns for timm's `param_groups_layer_decay`: embeddings, then each block, then norm and head together.

        Args:
            coarse: treat all blocks as one layer.
        """
        return {
            "stem": r"^(?:cls_token|nodata_token|pos_embed|channel_embed|channel_cls_embed|patch_embed|stems)",
            "blocks": r"^blocks" if coarse else r"^blocks\.(\d+)",
        }

    def no_weight_decay(self) -> set[str]:
        """Names of tokens and embeddings, which weight decay would harm; timm excludes vectors by itself."""
        return {"cls_token", "nodata_token", "pos_embed", "channel_embed", "channel_cls_embed"}


class GroupChannelsVisionTransformer(EncoderWithHead):
    """The encoder with a classification head: one prediction for each tile.

    Args:
        num_classes: number of outputs.
        global_pool: classify the mean over tokens with valid pixels; else the class token.
        drop_path: probability that training skips the last block; it increases linearly from 0 for the first.
        grad_checkpointing: recompute the blocks in the backward pass to save memory.
    """

    def __init__(
        self,
        img_size: int = 96,
        patch_size: int = 8,
        in_chans: int = 10,
        num_classes: int = 62,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4,
        *,
        channel_groups: Sequence[Sequence[int]] = SENTINEL_GROUPS,
        channel_embed: int = 256,
        global_pool: bool = True,
        stem: str = "base",
        native_scales: Sequence[int] | None = None,
        detail_scales: Sequence[float] | None = None,
        drop_path: float = 0.0,
        norm_layer: Any = NORM_LAYER,
        grad_checkpointing: bool = False,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "norm_layer", "__class__")}
        encoder = {k: v for k, v in arguments.items() if k not in ("num_classes", "global_pool")}
        super().__init__(**encoder, norm_layer=norm_layer)
        groups = [list(group) for group in self.channel_groups]
        self.config = {"kind": "classification"} | arguments | {"channel_groups": groups}
        self.global_pool = global_pool
        if global_pool:
            self.fc_norm = norm_layer(embed_dim)
        else:
            self.norm = norm_layer(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)
        self.init_weights()

    def forward_features(
        self, imgs: Tensor, valid: Tensor | None = None, native: Sequence[Tensor] | None = None
    ) -> Tensor:
        """One embedding per sample: the mean over tokens with valid pixels, or the class token.

        Args:
            imgs: (N, C, H, W), model units.
            valid: (N, C, H, W) bool, True = usable; all if None.
            native: native pixels, as in `forward_tokens`.

        Returns:
            (N, D); the mean over tokens is 0, before the norm, in a sample without valid pixels.

        Raises:
            ValueError: shapes or types do not fit the model.
        """
        imgs, valid = self._prepare(imgs, valid)
        x, token_valid, _ = self._encode(imgs, valid, self._check_native(native, imgs.shape[0]))
        if not self.global_pool:
            return self.norm(x)[:, 0]
        weight = token_valid.flatten(1).unsqueeze(-1).to(x.dtype)
        return self.fc_norm((x[:, 1:] * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1))

    def forward(self, imgs: Tensor, valid: Tensor | None = None, native: Sequence[Tensor] | None = None) -> Tensor:
        """Class scores before the softmax, (N, num_classes); arguments as in `forward_features`."""
        return self.head(self.forward_features(imgs, valid, native))


class GroupChannelsDensePredictor(EncoderWithHead):
    """The encoder with a head that predicts each pixel: classes before the softmax, or values in model units.

    Args:
        num_outputs: K, the number of classes, or 1 for values.
        scale: s; outputs have s pixels along each side of a base pixel.
        head: "linear" or "upsample", see `util/model/task_heads.py`.
        head_width: number of feature maps of the upsampling head at the base scale.
        drop_path: probability that training skips the last block; it increases linearly from 0 for the first.
        grad_checkpointing: recompute the blocks in the backward pass to save memory.

    Raises:
        ValueError: the groups are not a partition of the channels, widths are not divisible, or the head is unknown or
            cannot predict this scale.
    """

    def __init__(
        self,
        img_size: int = 96,
        patch_size: int = 8,
        in_chans: int = 10,
        num_outputs: int = 1,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4,
        *,
        scale: int = 1,
        head: str = "upsample",
        head_width: int = HEAD_WIDTH,
        channel_groups: Sequence[Sequence[int]] = SENTINEL_GROUPS,
        channel_embed: int = 256,
        stem: str = "base",
        native_scales: Sequence[int] | None = None,
        detail_scales: Sequence[float] | None = None,
        drop_path: float = 0.0,
        norm_layer: Any = NORM_LAYER,
        grad_checkpointing: bool = False,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "norm_layer", "__class__")}
        encoder = {k: v for k, v in arguments.items() if k not in ("num_outputs", "scale", "head", "head_width")}
        super().__init__(**encoder, norm_layer=norm_layer)
        groups = [list(group) for group in self.channel_groups]
        self.config = {"kind": "dense"} | arguments | {"channel_groups": groups}
        self.scale = scale
        self.norm = norm_layer(embed_dim)
        size = HeadSize(
            groups=self.num_groups,
            width=embed_dim,
            patch_size=patch_size,
            scale=scale,
            outputs=num_outputs,
            channels=in_chans,
            head_width=head_width,
            **self._head_stems(),
        )
        self.head = make_task_head(head, size)
        self.init_weights()
        self.head.init_weights()

    def _needs_stems(self) -> bool:
        return self.stem != "base"

    @property
    def _head_sees_native(self) -> bool:
        return self.stem in ("native", "head")

    def _head_stems(self) -> dict[str, Any]:
        """What the head is built for: the stems' maps, and the groups with pixels finer than the base pixel."""
        if not self._head_sees_native:
            return {}
        finer = [g for g, scale in enumerate(self.native_scales) if scale > 1]
        return {
            "stem_maps": STEM_MAPS * self.num_groups,
            "native": tuple((self.native_scales[g], self.group_details[g]) for g in finer),
            "native_channels": tuple(self.channel_groups[g] for g in finer),
        }

    def forward(self, imgs: Tensor, valid: Tensor | None = None, native: Sequence[Tensor] | None = None) -> Tensor:
        """Predict every pixel.

        Args:
            imgs: (N, C, H, W), model units.
            valid: (N, C, H, W) bool, True = usable; all if None.
            native: native pixels, as in `forward_tokens`.

        Returns:
            (N, K, sH, sW), at least float32. In a patch without valid pixels in any group, the prediction follows from
            its position and surroundings alone.

        Raises:
            ValueError: shapes or types do not fit the model.
        """
        imgs, valid = self._prepare(imgs, valid)
        own = self._check_native(native, imgs.shape[0])
        x, token_valid, maps = self._encode(imgs, valid, own)
        if not self._head_sees_native:
            return self.head(self._tokens(x), token_valid, imgs, valid)
        features = StemFeatures(torch.cat(maps, dim=3), own)
        return self.head(self._tokens(x), token_valid, imgs, valid, features)


FINETUNE_MODELS = {"classification": GroupChannelsVisionTransformer, "dense": GroupChannelsDensePredictor}
ENCODER_ARGUMENTS = (
    "img_size",
    "patch_size",
    "in_chans",
    "channel_groups",
    "channel_embed",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "stem",
    "native_scales",
    "detail_scales",
)
STEM_ARGUMENTS = ("stem", "native_scales", "detail_scales")
TRAINED_WHEN_FROZEN = ("norm.", "fc_norm.", "head.")


def encoder_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the encoder, from the config of any model for fine-tuning or of the masked autoencoder.

    Configs of older checkpoints lack those of stems, and so have none.
    """
    return {key: config[key] for key in ENCODER_ARGUMENTS if key in config or key not in STEM_ARGUMENTS}


def build_finetune_model(config: Mapping[str, Any]) -> GroupChannelsVisionTransformer | GroupChannelsDensePredictor:
    """Build a model for fine-tuning.

    Args:
        config: a model's own `config`; or its `kind` ("dense" or "classification"), optionally a `size` (tiny, small,
            base or large), and arguments of the model, which override those of the size.

    Raises:
        ValueError: kind or size is unknown, or the arguments do not fit.
    """
    arguments = dict(config)
    kind, name = arguments.pop("kind", None), arguments.pop("size", None)
    if kind not in FINETUNE_MODELS:
        raise ValueError(f"kind of model {kind!r}: expected one of {', '.join(FINETUNE_MODELS)}")
    size = {} if name is None else {k: v for k, v in asdict(model_size(name)).items() if k in ENCODER_ARGUMENTS}
    return FINETUNE_MODELS[kind](**{**size, **arguments})


def freeze_encoder(model: EncoderWithHead) -> None:
    """Train only the head and the norm before it; the encoder runs in evaluation mode without gradients.

    Call it before creating the optimiser and wrapping the model for several processes.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(TRAINED_WHEN_FROZEN))
    model.encoder_frozen = True
    model.train(model.training)
