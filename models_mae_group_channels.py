"""The grouped-channel multi-scale masked autoencoder, for pre-training.

Most tokens of an image are removed. The encoder (`models_vit_group_channels.py`) reads the tokens of all channel
groups that stay visible, a small decoder predicts the pixels of the removed ones, and cross-scale heads predict finer
images.

References: SatMAE++ (Noman et al., CVPR 2024, arXiv 2403.05419), SatMAE (Cong et al., NeurIPS 2022) and MAE
(He et al., CVPR 2022). Parameter names and shapes are those of SatMAE++, so that its weights load. Differences:

- Predictions are put back into channel order before any loss or head, so groups may list channels in any order.
- Values of invalid pixels have no effect, and a token without valid pixels is replaced by a no-data token.
- A channel is scored only at the scales listed for it; `scale_heads="subpixel"` are light heads, not those of SatMAE++.
- `norm_pix_loss` normalises each channel of a patch separately, because layers may have different units.
- `mask_ratio` is the fraction of the tokens with valid pixels that is removed.
- With a stem, visible tokens see their own fine pixels, so finer scales are scored inside removed tokens alone.
- The texture of hidden patches may be predicted as well (`util/model/texture.py`).

Shape letters: N batch, C channels, Y layers, H W base-scale pixels, G groups, L patches per group, D encoder width, E
decoder width, p patch edge, s scale. `mask` is the token mask, 1 = removed; `valid` is data validity, True = usable.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from models_vit_group_channels import MODEL_SIZES as MODEL_SIZES
from models_vit_group_channels import NORM_LAYER, GroupChannelEncoder, check_images, encoder_arguments, model_size
from models_vit_group_channels import GroupChannelsVisionTransformer as GroupChannelsVisionTransformer
from models_vit_group_channels import ModelSize as ModelSize
from models_vit_group_channels import check_partition as check_partition
from util.model.layer_losses import (
    BASE_LOSS,
    FINER_LOSS,
    LayerChannels,
    layer_channels,
    layer_errors,
    layers_of_channels,
    to_fractions,
)
from util.model.native_stem import STEMS as STEMS
from util.model.patches import (
    SENTINEL_GROUPS,
    patchify,
    random_masking,
    token_pixels,
    unpatchify,
    visible_valid_counts,
)
from util.model.reconstruction_losses import error_totals, masked_patch_mean, patch_moments, pixel_mean
from util.model.scale_heads import (
    SubpixelHead,
    UpsampleBlock,
    at_least_float32,
    detail_rank,
    full_precision,
    mean_pool,
    plan_subpixel,
)
from util.model.texture import LEAST_EDGE, TextureHead, TextureSource, source_images


def check_scored(
    scored: Mapping[Any, Sequence[int]] | None, *, scales: Sequence[int], in_chans: int
) -> dict[int, tuple[int, ...]]:
    """Return the channels scored at each scale, sorted; all channels if `scored` is None.

    Raises:
        ValueError: scales are not 1 followed by increasing whole numbers, `scored` names an unknown scale or channel,
            or no channel is scored at the base scale.
    """
    if not scales or scales[0] != 1 or any(b <= a for a, b in zip(scales, scales[1:], strict=False)):
        raise ValueError(f"scales {tuple(scales)}: expected 1 followed by increasing whole numbers, such as 1 2 4")
    if scored is None:
        return {s: tuple(range(in_chans)) for s in scales}
    given = {int(s): tuple(sorted({int(c) for c in channels})) for s, channels in scored.items()}
    for s, channels in given.items():
        if s not in scales or any(not 0 <= c < in_chans for c in channels):
            raise ValueError(
                f"scored channels {list(channels)} at scale {s}: expected scales from {tuple(scales)} and "
                f"channels from 0 to {in_chans - 1}"
            )
    if not given.get(1):
        raise ValueError("no channel is scored at scale 1: expected at least one; list it under scored[1]")
    return {s: given.get(s, ()) for s in scales}


def _shapes_may_depend_on_data(imgs: Tensor) -> bool:
    """True on a CPU; elsewhere the program would wait for them, and graphs and tensors without memory have none."""
    return type(imgs) is Tensor and imgs.device.type == "cpu" and not torch.compiler.is_compiling()


NOT_IN_CONFIG = ("self", "__class__", "norm_layer", "layers", "target_groups", "texture")
"""Arguments and local names of the model that `config` does not take as they are."""


class Reconstruction(NamedTuple):
    """Result of a forward pass with `details`; S scales, in the order of the model's `scales`."""

    loss: Tensor  # scalar, base scale
    ms_loss: Tensor  # scalar, mean over the finer scales; 0 if none is scored
    pred: Tensor  # (N, C, L, p*p), in the units of the loss; before the softmax of class fractions
    mask: Tensor  # (N, G, L), 1 = removed
    images: dict[int, Tensor]  # scale -> (N, C, sH, sW), model units or class fractions; 0 where not scored
    error_sums: Tensor  # (S, Y): sum over valid pixels, at the base scale only those of removed tokens
    error_counts: Tensor  # (S, Y): number of pixels in each sum
    texture_loss: Tensor | None = None  # scalar, of a model with a texture head

    @property
    def losses(self) -> tuple[Tensor, ...]:
        """The terms of the total loss: base scale, finer scales and, with a texture head, texture."""
        terms = (self.loss, self.ms_loss)
        return terms if self.texture_loss is None else (*terms, self.texture_loss)


class MaskedAutoencoderGroupChannelViT(GroupChannelEncoder):
    """The masked autoencoder for pre-training.

    Positional arguments are those of SatMAE++; keyword-only ones are additions.

    Args:
        spatial_mask: remove a patch in all groups together.
        norm_pix_loss: predict patches normalised, channel by channel, over their own valid pixels.
        proj_ratio: width of the shared heads as a multiple of `in_chans`.
        scales: reconstructed scales, 1 first; an image at scale s has s times as many pixels along each side.
        scored: channels scored at each scale; None: all. No channel is scored at a scale that is not listed.
        scale_heads: "shared", the published heads, or "subpixel", light ones.
        channel_weights: weight of each channel in the losses; None: all 1. A channel of weight 0 is ignored.
        layers: the channels of each layer, see `util.model.layer_losses.layer_channels`; None: each channel is a layer
            of values.
        stem, native_scales, detail_scales: whether and how tokens see pixels finer than the base pixel, see
            `GroupChannelEncoder`.
        target_groups: number of the last groups, which are targets: their tokens are removed from every image, and
            neither noise nor mask ratio counts them.
        grad_checkpointing: recompute the blocks in the backward pass to save memory.
        texture: also predict the texture of layers of values, see `util.model.texture`; all other weights start as
            without.

    Raises:
        ValueError: the groups are not a partition of the channels, widths are not divisible, scales or weights do not
            fit, or no layer can have a texture.
    """

    weights_1: Tensor
    is_scored: Tensor
    first_channel: Tensor
    layer_order: Tensor

    def __init__(
        self,
        img_size: int = 96,
        patch_size: int = 8,
        in_chans: int = 10,
        spatial_mask: bool = False,
        channel_groups: Sequence[Sequence[int]] = SENTINEL_GROUPS,
        channel_embed: int = 256,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        decoder_channel_embed: int = 128,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4,
        norm_layer: Any = NORM_LAYER,
        norm_pix_loss: bool = False,
        proj_ratio: int = 4,
        *,
        scales: Sequence[int] = (1, 2, 4),
        scored: Mapping[Any, Sequence[int]] | None = None,
        scale_heads: str = "shared",
        channel_weights: Sequence[float] | None = None,
        layers: Sequence[Mapping[str, Any]] | None = None,
        stem: str = "base",
        native_scales: Sequence[int] | None = None,
        detail_scales: Sequence[float] | None = None,
        target_groups: int = 0,
        grad_checkpointing: bool = False,
        texture: bool = False,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in NOT_IN_CONFIG}
        if layers is not None:  # `where` is for messages alone
            arguments["layers"] = [{k: v for k, v in layer.items() if k != "where"} for layer in layers]
        own = {"norm_layer": norm_layer, "target_groups": target_groups, "grad_checkpointing": grad_checkpointing}
        super().__init__(**encoder_arguments(arguments), **own, train_embeddings=False)
        self.scales = tuple(int(s) for s in scales)
        self.scored = check_scored(scored, scales=self.scales, in_chans=in_chans)
        self.spatial_mask, self.norm_pix_loss, self.scale_heads = spatial_mask, norm_pix_loss, scale_heads
        self._register_layers(layers)
        weights = [1.0] * in_chans if channel_weights is None else [float(w) for w in channel_weights]
        self._register_loss_weights(weights)
        #: Arguments that rebuild the model, except `norm_layer`; can be written as JSON.
        self.config: dict[str, Any] = arguments | {
            "channel_groups": [list(group) for group in self.channel_groups],
            "scales": list(self.scales),
            "scored": {str(s): list(channels) for s, channels in self.scored.items()},
            "channel_weights": weights,
            **(
                {"target_groups": target_groups} if target_groups else {}
            ),  # absent as in checkpoints of versions without
            **({"texture": True} if texture else {}),
        }
        self.norm = norm_layer(embed_dim)
        self._build_decoder(norm_layer)
        self._build_scale_heads()
        self.init_weights()
        self.texture_head = self._build_texture_head() if texture else None

    def _register_layers(self, layers: Sequence[Mapping[str, Any]] | None) -> None:
        """Register the channels of each layer, and the layers of each group and scored at each scale."""
        self.layers = layer_channels(layers, self.in_chans)
        grouped = [layers_of_channels(self.layers, group, "channel_groups") for group in self.channel_groups]
        #: Numbers of the layers that are targets.
        self.target_layers = [number for numbers in grouped[self.encoded_groups :] for number in numbers]
        self.layer_group_sizes = [len(numbers) for numbers in grouped]
        self._register_index("layer_order", [number for numbers in grouped for number in numbers])
        self._register_index("first_channel", [layer.first for layer in self.layers])
        #: For each scale, the numbers of the layers scored there.
        self.scored_layers = {
            s: layers_of_channels(self.layers, channels, "scored") for s, channels in self.scored.items()
        }
        has_values = [layer.has_values for layer in self.layers for _ in layer.channels]
        self.register_buffer("has_values", torch.tensor(has_values).view(1, -1, 1, 1), persistent=False)

    def _register_loss_weights(self, weights: Sequence[float]) -> None:
        """Register the weight of each layer at each scale: 0 where it is not scored."""
        if len(weights) != self.in_chans or min(weights) < 0:
            raise ValueError(
                f"channel_weights {list(weights)}: expected {self.in_chans} numbers >= 0, one for each channel"
            )
        for s in self.scales:
            at_scale = torch.tensor([weights[y.first] if y.first in self.scored[s] else 0.0 for y in self.layers])
            self.register_buffer(f"weights_{s}", at_scale, persistent=False)
        flags = [[c in self.scored[s] for c in range(self.in_chans)] for s in self.scales]
        self.register_buffer("is_scored", torch.tensor(flags), persistent=False)

    def _build_decoder(self, norm_layer: Any) -> None:
        """Add the decoder: embedding, mask token, blocks, and a linear prediction of pixels for each group."""
        config, width = self.config, self.config["decoder_embed_dim"]
        heads = config["decoder_num_heads"]
        self.decoder_embed = nn.Linear(config["embed_dim"], width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        # The last row of the group embedding belongs to the class token.
        position, group = self._embeddings(width, config["decoder_channel_embed"], heads, rows=self.num_groups + 1)
        self.decoder_pos_embed = nn.Parameter(position, requires_grad=False)
        self.decoder_channel_embed = nn.Parameter(group, requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(width, heads, config["mlp_ratio"], qkv_bias=True, norm_layer=norm_layer)
            for _ in range(config["decoder_depth"])
        )
        self.decoder_norm = norm_layer(width)
        self.decoder_pred = nn.ModuleList(nn.Linear(width, size * self.patch_size**2) for size in self.group_sizes)

    def _build_scale_heads(self) -> None:
        """Add the heads of finer scales.

        Raises:
            ValueError: there are no heads of that name, or they do not suit the scales.
        """
        if self.scale_heads not in SCALE_HEADS:
            raise ValueError(f"scale_heads {self.scale_heads!r}: expected one of {', '.join(SCALE_HEADS)}")
        SCALE_HEADS[self.scale_heads].build(self)

    def build_shared_heads(self) -> None:
        """Add the published heads: `up_block1` doubles the base scale, `up_block2` doubles that, and so on.

        Raises:
            ValueError: a scale is not a power of two.
        """
        width = self.in_chans * self.config["proj_ratio"]
        finest = max(s for s in self.scales if self.scored[s])
        self.head_scales = [2 ** (k + 1) for k in range(finest.bit_length() - 1)]
        odd = [s for s in self.scales if s & (s - 1)]
        if odd:
            raise ValueError(
                f"scales {self.scales} with scale_heads 'shared': {odd} are not powers of two; expected only "
                "powers of two, or scale_heads 'subpixel'"
            )
        if not self.head_scales:
            return
        self.proj_up_conv = nn.Conv2d(self.in_chans, width, 1)
        self.proj_up_norm = LayerNorm2d(width, eps=1e-6)
        for k, s in enumerate(self.head_scales, start=1):
            self.add_module(f"up_block{k}", UpsampleBlock(width, self.in_chans if self.scored.get(s) else 0))

    def build_subpixel_heads(self) -> None:
        """Add the light heads, one `SubpixelHead` for each scale at which channels are predicted directly."""
        self.plan = plan_subpixel(self.scored)
        rank = detail_rank(self.config, scored=self.scored)
        self.subpixel_heads = nn.ModuleDict()
        self.head_layers: dict[int, list[LayerChannels]] = {}
        for s, sources in self.plan.items():
            for source, channels in sources.items():
                self._register_index(f"from_{source}_to_{s}", channels)
            predicted = sources.get(s, ())
            if predicted:
                self.head_layers[s] = self._layers_among(predicted)
                self.subpixel_heads[str(s)] = SubpixelHead(
                    scale=s,
                    channel_groups=[[c for c in group if c in predicted] for group in self.channel_groups],
                    patch_size=self.patch_size,
                    width=self.config["decoder_embed_dim"],
                    rank=rank,
                    fraction_channels=[c for layer in self.layers if layer.has_fractions for c in layer.channels],
                )

    def _build_texture_head(self) -> TextureHead:
        """The head that predicts textures of the scored layers of values whose patches are wide enough.

        Raises:
            ValueError: there is no such layer.
        """
        details = self.config["detail_scales"] or [0.0] * self.in_chans
        sources = [source for source in self._texture_sources() if source.scale * self.patch_size >= LEAST_EDGE]
        if not sources:
            raise ValueError(
                f"texture with patch_size {self.patch_size}: no scored layer of values has {LEAST_EDGE} or more of its "
                "pixels along a patch; use larger patches, or do without (--texture_weight 0)"
            )
        return TextureHead(
            sources,
            groups=self.num_groups,
            details=[float(details[source.channel]) for source in sources],
            patch_size=self.patch_size,
            width=self.config["decoder_embed_dim"],
        )

    def _texture_sources(self) -> list[TextureSource]:
        """The finest pixels of each scored layer of values, group by group: native ones or those of a target.

        A layer whose native pixels do not divide those of its group is interpolated among them: its target counts.
        """
        number_of = {layer.first: number for number, layer in enumerate(self.layers) if layer.has_values}
        with_native = [g for g, scale in enumerate(self.native_scales) if scale > 1]
        sources = []
        for g, group in enumerate(self.channel_groups):
            for k, c in enumerate(group):
                if c not in number_of or c not in self.scored[1] or not self.config["channel_weights"][c]:
                    continue
                scale, native = max(s for s in self.scales if c in self.scored[s]), None
                own = self.config["native_scales"][c] if g in with_native else 1
                if own > 1 and own >= scale and not self.native_scales[g] % own:
                    # A coarser layer of the group has each of its pixels repeated.
                    scale, native = own, (with_native.index(g), k, self.native_scales[g] // own)
                sources.append(TextureSource(c, number_of[c], g, scale, native))
        return sources

    def can_learn(self, *, hides: bool) -> tuple[bool, ...]:
        """Whether each of the `losses` of a `Reconstruction` has anything to learn from.

        Args:
            hides: tokens are removed; those of targets always are.
        """
        removed = set(range(len(self.layers))) if hides else set(self.target_layers)
        learnt = {
            s: {number for number, weight in enumerate(getattr(self, f"weights_{s}").tolist()) if weight}
            for s in self.scales
        }
        finer = {number for s in self.scales[1:] for number in learnt[s]}
        terms = (bool(learnt[1] & removed), bool(finer & removed if self.embeds_native else finer))
        if self.texture_head is None:
            return terms
        return (*terms, any(source.layer in removed for source in self.texture_head.sources))

    def init_weights(self) -> None:
        """Initialise as MAE does; light heads start as interpolation, shared ones with PyTorch's default."""
        super().init_weights()
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, SubpixelHead):
                module.init_weights()

    def _noise(self, imgs: Tensor, noise: Tensor | None) -> Tensor:
        """The given noise if its shape is right, or uniform noise if None: (N, G*L), or (N, L) with `spatial_mask`.

        G counts the encoded groups, here and wherever noise is an argument.
        """
        positions = self.num_patches * (1 if self.spatial_mask else self.encoded_groups)
        if noise is None:
            return torch.rand(imgs.shape[0], positions, device=imgs.device)
        if noise.shape != (imgs.shape[0], positions):
            raise ValueError(
                f"noise of shape {tuple(noise.shape)}: expected ({imgs.shape[0]}, {positions}), a number for each "
                + ("patch (spatial_mask)" if self.spatial_mask else "token")
            )
        return noise

    def forward_encoder(
        self, imgs: Tensor, mask_ratio: float, *, valid: Tensor, noise: Tensor, native: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode the visible tokens.

        Args:
            imgs: (N, C, H, W), model units, 0 where invalid.
            mask_ratio: fraction of valid tokens to remove, 0 <= ratio < 1.
            valid: (N, C, H, W) bool, True = usable.
            noise: (N, G*L), or (N, L) with `spatial_mask`; valid tokens with the smallest noise stay visible.
            native: native pixels, as in `forward`.

        Returns:
            latent (N, 1 + visible, D), class token first; mask (N, G, L), 1 = removed; ids_restore (N, G*L).

        Raises:
            ValueError: the ratio leaves no visible token.
        """
        keep = int(noise.shape[1] * (1 - mask_ratio))
        if not 0 < keep <= noise.shape[1]:
            raise ValueError(
                f"mask_ratio {mask_ratio} leaves {keep} of {noise.shape[1]} positions visible: expected at "
                "least one; choose a ratio from 0 to below 1"
            )
        return self._encode_visible(imgs, valid=valid, native=native, noise=noise, keep=keep, mask_ratio=mask_ratio)

    def _encode_visible(
        self,
        imgs: Tensor,
        *,
        valid: Tensor,
        native: Sequence[Tensor],
        noise: Tensor,
        keep: int,
        mask_ratio: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode `keep` visible tokens; otherwise as `forward_encoder`.

        Args:
            mask_ratio: fraction of valid tokens to remove; None: as many valid tokens are visible as there are.
        """
        tokens, token_valid = self.embed(imgs, valid)
        spatial, counts = self.spatial_mask, None
        if mask_ratio is not None:
            counts = visible_valid_counts(token_valid, mask_ratio, keep=keep, spatial=spatial)
        ids_keep, ids_restore, mask = random_masking(
            noise, keep=keep, token_valid=token_valid, spatial=spatial, keep_valid=counts
        )
        if self.embeds_native and _shapes_may_depend_on_data(imgs):
            tokens = self.add_stems_where(tokens, token_valid & (mask < 0.5), imgs, valid, native)
        elif self.embeds_native:
            tokens = self.add_stems(tokens, token_valid, self.stem_maps(imgs, valid, native))
        x = tokens.flatten(1, 2)  # (N, G*L, D)
        x = x.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm(self.run_blocks(self.blocks, x)), *self._with_targets(mask, ids_restore)

    def _with_targets(self, mask: Tensor, ids_restore: Tensor) -> tuple[Tensor, Tensor]:
        """Mask and order of the encoded groups with those of the targets, which are the last of the removed tokens."""
        targets = self.num_groups - self.encoded_groups
        if not targets:
            return mask, ids_restore
        last = torch.arange(ids_restore.shape[1], self.num_groups * self.num_patches, device=mask.device)
        return F.pad(mask, (0, 0, 0, targets), value=1.0), torch.cat([ids_restore, last.expand(len(mask), -1)], dim=1)

    def forward_tokens(
        self, imgs: Tensor, valid: Tensor | None = None, native: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode all tokens; none is removed, and nothing is random.

        Args:
            imgs: (N, C, H, W), model units.
            valid: (N, C, H, W) bool, True = usable; all if None.
            native: native pixels, as in `forward`.

        Returns:
            tokens (N, G, L, D) of the encoded groups, at least float32, and (N, G, L) bool, True where a token has a
            valid pixel; features of the others come from their surroundings alone.

        Raises:
            ValueError: shapes or types do not fit the model.
        """
        imgs, valid = self._prepare(imgs, valid)
        own = self._check_native(native, imgs.shape[0])
        tokens, token_valid = self.embed(imgs, valid)
        if self.embeds_native:
            tokens = self.add_stems(tokens, token_valid, self.stem_maps(imgs, valid, own))
        x = torch.cat([self.cls_token.expand(imgs.shape[0], -1, -1), tokens.flatten(1, 2)], dim=1)
        x = at_least_float32(self.norm(self.run_blocks(self.blocks, x)))
        return x[:, 1:].unflatten(1, (self.encoded_groups, self.num_patches)), token_valid

    def valid_positions(self, valid: Tensor) -> Tensor:
        """Whether each position that masking may remove has a valid pixel.

        Args:
            valid: (N, C, H, W) bool, True = usable.

        Returns:
            (N, G*L) bool, or (N, L) with `spatial_mask`.
        """
        tokens = self.token_validity(valid)
        return tokens.any(dim=1) if self.spatial_mask else tokens.flatten(1)

    def reconstruct(
        self,
        imgs: Tensor,
        valid: Tensor | None = None,
        native: Sequence[Tensor] | None = None,
        *,
        noise: Tensor,
        keep: int,
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Predict images of every scale from some of the tokens, without targets.

        Args:
            imgs: (N, C, H, W), model units.
            valid: (N, C, H, W) bool, True = usable; all if None.
            native: native pixels, as in `forward`.
            noise: (N, G*L), or (N, L) with `spatial_mask`; valid tokens with the smallest noise stay visible.
            keep: number of visible tokens, or of visible patches with `spatial_mask`.

        Returns:
            {scale: (N, C, sH, sW)} in model units, and (N, C, L) bool, True where a channel's token was hidden. At the
            base scale, and with a stem at every scale, only pixels of hidden tokens are predictions; the loss does not
            train the others.

        Raises:
            ValueError: shapes or types do not fit the model, or the model predicts normalised pixels.
        """
        if self.norm_pix_loss:
            raise ValueError(
                "the model predicts pixels normalised by their own patch (norm_pix_loss), which cannot be converted "
                "back to physical units; train without --norm_pix_loss to reconstruct"
            )
        imgs, valid = self._prepare(imgs, valid)
        latent, mask, ids_restore = self._encode_visible(
            imgs,
            valid=valid,
            native=self._check_native(native, imgs.shape[0]),
            noise=self._noise(imgs, noise),
            keep=keep,
        )
        tokens = self.forward_decoder(latent, ids_restore)
        pred = self.predict_patches(tokens)
        hidden = mask.index_select(1, self.group_of_channel) > 0  # (N, C, L)
        patches, patch_valid = patchify(imgs, self.patch_size), patchify(valid, self.patch_size)
        images = self.predict_finer(pred, patches, visible=patch_valid & ~hidden.unsqueeze(-1), tokens=tokens)
        images[1] = unpatchify(to_fractions(pred, self.layers), self.patch_size)
        return images, hidden

    def forward_decoder(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """Insert the mask token for removed tokens and decode: (N, 1 + visible, D) -> (N, G, L, E)."""
        x = at_least_float32(self.decoder_embed(latent))
        n, _, width = x.shape
        removed = self.mask_token.expand(n, ids_restore.shape[1] + 1 - x.shape[1], -1)
        tokens = torch.cat([x[:, 1:], removed], dim=1)
        tokens = tokens.gather(1, ids_restore.unsqueeze(-1).expand(-1, -1, width))
        embedding = self._token_embedding(self.decoder_pos_embed[:, 1:], self.decoder_channel_embed[:, :-1])
        cls_embedding = torch.cat([self.decoder_pos_embed[:, :1], self.decoder_channel_embed[:, -1:]], dim=-1)
        x = torch.cat([x[:, :1] + cls_embedding, tokens + embedding.flatten(1, 2)], dim=1)
        x = self.decoder_norm(self.run_blocks(self.decoder_blocks, x))
        return x[:, 1:].unflatten(1, (self.num_groups, self.num_patches))

    def predict_patches(self, tokens: Tensor) -> Tensor:
        """Predict base-scale pixels in channel order, in full precision: (N, G, L, E) -> (N, C, L, p*p)."""
        with full_precision(tokens.device):
            tokens = at_least_float32(tokens)
            parts = [
                linear(tokens[:, i]).unflatten(-1, (size, -1)).transpose(1, 2)  # (N, channels of the group, L, p*p)
                for i, (linear, size) in enumerate(zip(self.decoder_pred, self.group_sizes, strict=True))
            ]
            return torch.cat(parts, dim=1).index_select(1, self.channel_order)

    def predict_finer(self, pred: Tensor, patches: Tensor, *, visible: Tensor, tokens: Tensor) -> dict[int, Tensor]:
        """Predict the images of the scored finer scales.

        Args:
            pred: (N, C, L, p*p) base-scale prediction.
            patches: (N, C, L, p*p) base-scale input.
            visible: (N, C, L, p*p) bool, True = valid, and visible to the encoder.
            tokens: (N, G, L, E) from the decoder.

        Returns:
            {scale: (N, C, sH, sW)}, at least float32.
        """
        predict = SCALE_HEADS[self.scale_heads].predict
        return predict(self, to_fractions(pred, self.layers), patches, visible, tokens)

    def predict_shared(self, pred: Tensor, patches: Tensor, visible: Tensor, tokens: Tensor) -> dict[int, Tensor]:
        """Apply the published heads to the base-scale prediction alone; arguments as in `predict_finer`."""
        images: dict[int, Tensor] = {}
        if not self.head_scales:
            return images
        base = unpatchify(pred, self.patch_size)  # (N, C, H, W)
        with full_precision(base.device):  # before the norm large values would overflow in fp16
            x = self.proj_up_norm(F.gelu(self.proj_up_conv(base)))
        for k, s in enumerate(self.head_scales, start=1):
            x, image = getattr(self, f"up_block{k}")(x)
            if image is not None:
                images[s] = to_fractions(at_least_float32(image), self.layers)
        return images

    def _layers_among(self, channels: Sequence[int]) -> list[LayerChannels]:
        """The layers of some channels, with channel numbers counted within these channels."""
        whole = [self.layers[number] for number in layers_of_channels(self.layers, channels, "scored")]
        firsts = accumulate((layer.count for layer in whole), initial=0)
        return [replace(layer, first=first) for layer, first in zip(whole, firsts, strict=False)]

    def predict_subpixel(self, pred: Tensor, patches: Tensor, visible: Tensor, tokens: Tensor) -> dict[int, Tensor]:
        """Apply the light heads to visible pixels, predictions of hidden ones, and tokens; see `predict_finer`."""
        # Normalised predictions and pixels in model units cannot be interpolated together.
        known = torch.zeros_like(visible) if self.norm_pix_loss else visible
        base = unpatchify(torch.where(known, patches, pred), self.patch_size)  # (N, C, H, W)
        known = unpatchify(known, self.patch_size)
        images: dict[int, Tensor] = {}
        n, channels, height, width = base.shape
        for s, sources in self.plan.items():
            whole = None
            for source in sources:
                index = getattr(self, f"from_{source}_to_{s}")
                if source == s:
                    part = to_fractions(self.subpixel_heads[str(s)](base, tokens, known), self.head_layers[s])
                else:
                    part = mean_pool(images[source].index_select(1, index), source // s)
                if len(index) == channels:
                    whole = part
                else:
                    whole = base.new_zeros(n, channels, s * height, s * width) if whole is None else whole
                    whole = whole.index_copy(1, index, part)
            images[s] = whole
        return images

    def forward(
        self,
        imgs: Tensor,
        imgs_up: Sequence[Tensor | None],
        mask_ratio: float = 0.75,
        valid: Tensor | None = None,
        valid_up: Sequence[Tensor | None] | None = None,
        noise: Tensor | None = None,
        details: bool = False,
        native: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor] | Reconstruction:
        """Remove tokens, reconstruct the image at all scales, and compute the losses.

        Args:
            imgs: (N, C, H, W) at the base scale, model units.
            imgs_up: a target (N, C, sH, sW) for each finer scale, in order; None where no channel is scored.
            mask_ratio: fraction of valid tokens to remove.
            valid: (N, C, H, W) bool, True = usable; all if None.
            valid_up: validity of each finer target.
            noise: (N, G*L), or (N, L) with `spatial_mask`; valid tokens with the smallest noise stay visible. None:
                uniform random numbers.
            details: return a `Reconstruction`, which adds images, sums of errors and the loss of textures.
            native: native pixels of the groups that have finer ones, (N, c, sH, sW) each in the order of the groups,
                model units, NaN = invalid; needed unless the stem is "base".

        Returns:
            loss and ms_loss, float32 scalars; pred (N, C, L, p*p) in channel order; mask (N, G, L), 1 = removed. The
            training loop forms the total loss, 0.6 * loss + 0.4 * ms_loss.

        Raises:
            ValueError: shapes or types do not fit the model, or the mask ratio leaves no visible token.
        """
        imgs, valid = self._prepare(imgs, valid)
        finer = self._check_finer(imgs_up, valid_up)
        noise, own = self._noise(imgs, noise), self._check_native(native, imgs.shape[0])
        latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio, valid=valid, noise=noise, native=own)
        tokens = self.forward_decoder(latent, ids_restore)
        pred = self.predict_patches(tokens)

        patches, patch_valid = patchify(imgs, self.patch_size), patchify(valid, self.patch_size)
        removed = mask.index_select(1, self.group_of_channel).unsqueeze(-1) > 0  # (N, C, L, 1)
        images = self.predict_finer(pred, patches, visible=patch_valid & ~removed, tokens=tokens)
        with full_precision(imgs.device):
            mean, std = self._moments(patches, patch_valid) if self.norm_pix_loss else (0.0, 1.0)
            target = (patches - mean) / std if self.norm_pix_loss else patches
            error = layer_errors(to_fractions(pred, self.layers), target, self.layers, default=BASE_LOSS)
            layer_valid = patch_valid.index_select(1, self.first_channel)
            loss = self._base_loss(error, mask=mask, valid=layer_valid)
            finer_errors = {
                s: layer_errors(images[s], image, self.layers, default=FINER_LOSS) for s, (image, _) in finer.items()
            }
            hidden = removed.index_select(1, self.first_channel)  # (N, Y, L, 1)
            finer_valid = {s: self._scored_finer(ok, hidden, scale=s) for s, (_, ok) in finer.items()}
            result = (loss, self._finer_loss(finer_errors, finer_valid, zero=loss.new_zeros(())), pred, mask)
            if not details:
                return result
            images[1] = unpatchify(to_fractions(pred * std + mean, self.layers), self.patch_size)
            totals = {1: error_totals(error, layer_valid & hidden)}
            totals |= {s: error_totals(finer_errors[s], ok) for s, ok in finer_valid.items()}
            texture = None
            if self.texture_head is not None:
                own_pixels = source_images(self.texture_head.sources, {1: (imgs, valid), **finer}, own)
                texture = self.texture_head.loss(tokens, own_pixels, mask=mask, weights=self.weights_1)
            return self._reconstruction(result, images, totals, texture)

    def _scored_finer(self, valid: Tensor, hidden: Tensor, *, scale: int) -> Tensor:
        """Where layers are scored at a finer scale, (N, Y, sH, sW) bool: with a stem inside removed tokens alone.

        Args:
            valid: (N, C, sH, sW) bool, validity of the target.
            hidden: (N, Y, L, 1) bool, True = removed.
            scale: s.
        """
        valid = valid.index_select(1, self.first_channel)
        if not self.embeds_native:
            return valid
        return valid & token_pixels(hidden.squeeze(-1), scale=scale, patch_size=self.patch_size)

    def _moments(self, patches: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each patch; 0 and 1 for angles and class fractions."""
        mean, std = patch_moments(patches, valid)
        return torch.where(self.has_values, mean, 0.0), torch.where(self.has_values, std, 1.0)

    def _base_loss(self, error: Tensor, *, mask: Tensor, valid: Tensor) -> Tensor:
        """Mean over removed tokens of their errors (N, Y, L, p*p)."""
        return masked_patch_mean(
            error,
            mask=mask,
            valid=valid,
            weights=self.weights_1,
            group_order=self.layer_order,
            group_sizes=self.layer_group_sizes,
        )

    def _finer_loss(self, errors: Mapping[int, Tensor], valid: Mapping[int, Tensor], *, zero: Tensor) -> Tensor:
        """Mean over the scored finer scales of their errors (N, Y, sH, sW); zero if there is none."""
        terms = [pixel_mean(errors[s], valid=ok, weights=getattr(self, f"weights_{s}")) for s, ok in valid.items()]
        return torch.stack(terms).mean() if terms else zero

    def _check_finer(
        self, imgs_up: Sequence[Tensor | None], valid_up: Sequence[Tensor | None] | None
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Target and validity of each finer scale at which channels are scored."""
        scales = self.scales[1:]
        validity = [None] * len(scales) if valid_up is None else list(valid_up)
        if len(imgs_up) != len(scales) or len(validity) != len(scales):
            raise ValueError(
                f"{len(imgs_up)} finer targets and {len(validity)} validity masks: expected {len(scales)}, one "
                f"for each of the scales {list(scales)}"
            )
        finer = {}
        for s, image, ok in zip(scales, imgs_up, validity, strict=True):
            if self.scored[s]:
                if image is None:
                    raise ValueError(
                        f"target of scale {s} is None, but channels {self.scored[s]} are scored there; give one"
                    )
                image, ok = check_images(
                    f"target of scale {s}", image, ok, channels=self.in_chans, size=self.img_size * s
                )
                finer[s] = torch.where(ok, image, 0.0), ok
        return finer

    def _reconstruction(
        self,
        result: tuple[Tensor, Tensor, Tensor, Tensor],
        images: dict[int, Tensor],
        totals: dict[int, tuple[Tensor, Tensor]],
        texture: Tensor | None,
    ) -> Reconstruction:
        """Arrange the details by scale, with zeros where a layer is not scored."""
        zeros = (torch.zeros_like(self.weights_1), torch.zeros_like(self.weights_1))
        sums, counts = zip(*(totals.get(s, zeros) for s in self.scales), strict=True)
        scored_images = {
            s: torch.where(scored.view(1, -1, 1, 1), images[s], 0.0)
            for s, scored in zip(self.scales, self.is_scored, strict=True)
            if s in images
        }
        is_scored = self.is_scored.index_select(1, self.first_channel)
        error_sums = torch.where(is_scored, torch.stack(sums), 0.0).detach()
        return Reconstruction(*result, scored_images, error_sums, torch.stack(counts) * is_scored, texture)


@dataclass(frozen=True)
class ScaleHeads:
    """One choice of `--scale_heads`: the heads that predict the finer scales.

    Attributes:
        build: adds the modules to the model itself, so that parameters have the names of SatMAE++.
        predict: takes the model and the arguments of `predict_finer`, with class fractions in `pred`; returns
            {scale: (N, C, sH, sW)}.
    """

    build: Callable[[MaskedAutoencoderGroupChannelViT], None]
    predict: Callable[[MaskedAutoencoderGroupChannelViT, Tensor, Tensor, Tensor, Tensor], dict[int, Tensor]]


SCALE_HEADS = {
    "subpixel": ScaleHeads(
        MaskedAutoencoderGroupChannelViT.build_subpixel_heads, MaskedAutoencoderGroupChannelViT.predict_subpixel
    ),
    "shared": ScaleHeads(
        MaskedAutoencoderGroupChannelViT.build_shared_heads, MaskedAutoencoderGroupChannelViT.predict_shared
    ),
}


def build_model(name: str, **arguments: Any) -> MaskedAutoencoderGroupChannelViT:
    """Build a masked autoencoder by the name of its size.

    Args:
        name: tiny, small, base or large, or the name of a function below.
        **arguments: of the model; they override those of the size.

    Raises:
        ValueError: the name is unknown, or the arguments do not fit.
    """
    return MaskedAutoencoderGroupChannelViT(**{**asdict(model_size(name)), **arguments})


# `patch16` in these names is historical; `patch_size` sets the patch size.
mae_vit_tiny_patch16 = partial(build_model, "tiny")
mae_vit_small_patch16 = partial(build_model, "small")
mae_vit_base_patch16 = partial(build_model, "base")
mae_vit_large_patch16 = partial(build_model, "large")
