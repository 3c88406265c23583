"""Image GPT (Chen et al. 2020, "Generative Pretraining from Pixels"): a Transformer over the codes of an image.

Shape letters: B batch, H W rows and columns of codes, N = H W codes of an image, row by row, D width, K codes of the
tokenizer, S classes of the head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitral.data.masking import cosine_counts, hidden, hidden_count
from vitral.models.activation_checkpointing import checkpointed_call
from vitral.models.attention import AttentionContext
from vitral.models.frozen_tokenizer import FrozenTokenizer
from vitral.models.igpt_config import IGPTConfig
from vitral.models.layers import Block, Linear
from vitral.models.model import ImageModel, check_capture
from vitral.models.palette import Palette
from vitral.structs import EncoderOutput

_NORM_EPS = 1e-5


class IGPT(ImageModel):
    """The codes of an image, from the first row to the last: each one's distribution given those before it.

    Pre-norm blocks with norms that divide by the root of the mean square, quick GELUs and learned positions, as
    published. Row K of the embeddings is the start token, rows K + 1 ... start an image of a class; with `mask_ratio`,
    where nothing starts, row K marks a hidden code, or a hidden class in the class token, which is then in front of all
    codes, without position and output. Features are the mean over tokens after the final norm.
    """

    config: IGPTConfig  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor

    tokenizer: Palette | FrozenTokenizer

    def __init__(self, config: IGPTConfig) -> None:
        super().__init__(config)
        c = config
        self.tokenizer = Palette(c.colors, c.in_channels) if c.tokenizer is None else FrozenTokenizer(c.tokenizer)
        self.token_embed = nn.Parameter(torch.empty(c.colors + 1 + c.class_tokens, c.width))
        self.pos_embed = nn.Parameter(torch.empty(c.tokens, c.width))
        self.drop = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(
            Block(c.width, c.heads, c.mlp_dim, c.dropout, gelu="quick", norm_eps=_NORM_EPS, norm="rms")
            for _ in range(c.depth)
        )
        self.norm = nn.RMSNorm(c.width, eps=_NORM_EPS)
        self.code_head = Linear(c.width, c.colors, bias=False)
        self.head = Linear(c.width, c.num_classes) if c.num_classes else nn.Identity()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialize every parameter again, from torch's global random state.

        Embeddings N(0, 0.02), positions N(0, 0.01); both heads zero, so that at first all codes are equally
        probable; blocks as in the Vision Transformer.
        """
        for block in self.blocks:
            assert isinstance(block, Block)
            block.init_weights()
        self.norm.reset_parameters()
        nn.init.normal_(self.token_embed, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        for parameter in (self.code_head.weight, *self.head.parameters()):
            nn.init.zeros_(parameter)

    def codes(self, images_BCHW: Tensor) -> Tensor:
        """The codes of images of the model's size, row by row: int64 [B, N]. Raises UserError for other images."""
        self.check_size(images_BCHW)
        images_BCHW = self.check_images(images_BCHW)
        if isinstance(self.tokenizer, FrozenTokenizer):
            return self.tokenizer.codes(images_BCHW)
        return self.tokenizer.encode(images_BCHW).flatten(1)

    def images(self, codes_BN: Tensor) -> Tensor:
        """The images [B, C, H, W] in [0,1] of these codes."""
        if isinstance(self.tokenizer, FrozenTokenizer):
            return self.tokenizer.images(codes_BN)
        return self.tokenizer.decode(codes_BN.unflatten(1, self.grid))

    def start_tokens(self, labels_B: Tensor) -> Tensor:
        """The token in front of an image of each of these classes; -1: of any."""
        return labels_B + self.config.colors + 1

    def read(
        self,
        codes_BN: Tensor,
        labels_B: Tensor | None = None,
        hidden_BN: Tensor | None = None,
        capture: Sequence[str] = (),
    ) -> EncoderOutput:
        """Codes to tokens after the final norm, `patches_BND`: token i depends on the codes before i alone, so that it
        predicts code i; with `config.mask_ratio` on all codes that are not hidden.

        labels_B: class of each image, -1 or None: any. hidden_BN: bool, codes that are not shown.
        capture: "embed": tokens before the first block; "blocks.3": after this one. Raises UserError for an unknown
        name to capture.
        """
        check_capture(capture, ["embed", *(f"blocks.{i}" for i in range(len(self.blocks)))])
        c = self.config
        captured: dict[str, Tensor] = {}
        assert hidden_BN is None or not c.causal
        tokens_BN = codes_BN if hidden_BN is None else codes_BN.masked_fill(hidden_BN, c.colors)
        labels_B = codes_BN.new_full((len(codes_BN),), -1) if labels_B is None else labels_B
        start_B1 = self.start_tokens(labels_B)[:, None]
        if c.causal:
            tokens_BN = torch.cat([start_B1, codes_BN[:, :-1]], dim=1)
        x_BND = F.embedding(tokens_BN, self.token_embed) + self.pos_embed[: tokens_BN.shape[1]]
        first = 0 if c.causal or not c.class_tokens else 1  # tokens that stand for no code
        if first:
            x_BND = torch.cat([F.embedding(start_B1, self.token_embed), x_BND], dim=1)
        x_BND = self.drop(x_BND)
        if "embed" in capture:
            captured["embed"] = x_BND[:, first:]
        context = AttentionContext(causal=c.causal)
        for i, block in enumerate(self.blocks):
            x_BND = checkpointed_call(block, x_BND, context) if self.recomputes(i) else block(x_BND, context)
            if f"blocks.{i}" in capture:
                captured[f"blocks.{i}"] = x_BND[:, first:]
        return EncoderOutput(None, None, self.norm(x_BND[:, first:]), self.grid, None, None, captured)

    def nll(self, tokens_BND: Tensor, codes_BN: Tensor) -> Tensor:
        """The negative log-probability of each code, by the tokens of `read`: nats [B, N], in float32 or better."""
        logits_BNK = self.code_head(tokens_BND)
        wide = logits_BNK if logits_BNK.dtype == torch.float64 else logits_BNK.float()
        return F.cross_entropy(wide.flatten(0, 1), codes_BN.flatten(), reduction="none").view(codes_BN.shape)

    def code_nats(
        self,
        images_BCHW: Tensor,
        labels_B: Tensor | None,
        sample_ids_B: Tensor,
        seed: int = 0,
        step: int | Tensor = 0,
    ) -> tuple[Tensor, Tensor]:
        """The negative log-probability of the codes of each image and their number, [B] each; of the hidden ones where
        these are predicted, which depend on seed, step and `sample_ids_B`. labels_B: see `read`."""
        codes_BN = self.codes(images_BCHW)
        hidden_BN = None if self.config.causal else self.hide(sample_ids_B, seed, step)
        nll_BN = self.nll(self.read(codes_BN, labels_B, hidden_BN).patches_BND, codes_BN)
        if hidden_BN is None:
            return nll_BN.sum(1), torch.full_like(nll_BN[:, 0], self.config.tokens)
        return (nll_BN * hidden_BN).sum(1), hidden_BN.sum(1)

    def hide(self, sample_ids_B: Tensor, seed: int, step: int | Tensor) -> Tensor:
        """Which codes are hidden from a model that predicts such ones: bool [B, N]."""
        ratio, tokens = self.config.mask_ratio, self.config.tokens
        if ratio == "cosine":
            counts_B = cosine_counts(seed, step, sample_ids_B, tokens)
            return hidden_count(seed, step, sample_ids_B, tokens, counts_B)
        return hidden(seed, step, sample_ids_B, tokens, ratio)

    def class_log_probs(self, codes_BN: Tensor) -> Tensor:
        """The log-probability of codes, all or the first ones, given each class that there is a token for, in nats:
        [B, class_tokens]."""
        assert self.config.causal
        labels = range(self.config.class_tokens)
        rows = [self.nll(self.read(codes_BN, codes_BN[:, 0] * 0 + label).patches_BND, codes_BN) for label in labels]
        return -torch.stack([nll_BN.sum(1) for nll_BN in rows], dim=1)

    def encode(self, images_BCHW: Tensor, *, capture: Sequence[str] = ()) -> EncoderOutput:
        """Images of the model's size to tokens, of any class; see `read`."""
        return self.read(self.codes(images_BCHW), capture=capture)

    def pool(self, out: EncoderOutput) -> Tensor:
        """The mean over all tokens, [B, D]."""
        return out.patches_BND.mean(1)

    def classify(self, pooled_BD: Tensor) -> Tensor:
        """The head alone: pooled features [B, D] to logits [B, S]; the features themselves where there is no head."""
        return self.head(pooled_BD)

    @property
    def checkpointable(self) -> list[nn.Module]:
        """Its blocks."""
        return list(self.blocks)
