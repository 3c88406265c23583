"""BEiT (Bao et al. 2022, arXiv 2106.08254): predict the visual tokens of masked patches.

Shape letters: B batch, C channels, H W image height and width, N patches, M masked ones, D width, K codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitral.data.masking import blocks, kept_count
from vitral.models.layers import Linear
from vitral.models.model import ImageModel
from vitral.models.registry import token_encoder
from vitral.models.vit import VisionTransformer
from vitral.objectives.beit_config import BeitConfig
from vitral.objectives.collapse_monitors import feature_rank, feature_std
from vitral.objectives.losses import wide
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.visual_tokens import visual_tokens
from vitral.structs import Batch, StepOutput

_STD = 0.02  # of the mask token and the head, cut at one deviation
_GRAY = 0.5  # what is shown of masked patches


class BEiT(Objective):
    """Cross-entropy of the masked patches' visual tokens, in nats.

    Masks are made of blocks and have exact counts (algorithm 1, which may mask fewer). The mask token takes the place
    of patch embeddings before positions are added; the tokenizer sees the whole view. The head reads patches behind the
    final norm, also where that follows the pooling.
    """

    model: VisionTransformer  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor
    step_in_graph = True

    def __init__(self, factory: Callable[[], ImageModel], config: BeitConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        model = token_encoder(factory())
        assert model is not None
        self.model = model  # pyright: ignore[reportIncompatibleVariableOverride] - a narrower one
        self.config, self.seed = config, context.seed
        self.tokenizer = visual_tokens(config, model.config, context)
        self.mask_token = nn.Parameter(torch.empty(model.config.width))
        self.predict = Linear(model.config.width, self.tokenizer.count)
        for drawn in (self.mask_token, self.predict.weight):
            nn.init.trunc_normal_(drawn, std=_STD, a=-_STD, b=_STD)
        nn.init.zeros_(self.predict.bias)

    def compile_key(self, step: int) -> int:
        """All steps: what is drawn follows the step inside the graph."""
        return 0

    def forward(self, batches: Mapping[str, Batch], step: int | Tensor) -> StepOutput:
        """The loss, normalized by the number of masked patches, and `mask_top1`, the share of them whose token is
        found."""
        batch = batches["train"]
        images_BCHW = batch.views[0].images_BCHW
        mask_BN = self.mask(batch.sample_ids_B.to(images_BCHW.device), step)
        count = self.masked_count
        place_BM = mask_BN.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        target_BM = self.tokenizer(images_BCHW).gather(1, place_BM)
        patches_BND, out_pooled_BD = self.encode_masked(images_BCHW, mask_BN)
        masked_BMD = patches_BND.gather(1, place_BM[..., None].expand(-1, -1, patches_BND.shape[-1]))
        logits_BMK = wide(self.predict(masked_BMD))
        loss_sum = F.cross_entropy(logits_BMK.flatten(0, 1), target_BM.flatten(), reduction="sum")
        found = (logits_BMK.detach().argmax(-1) == target_BM).float().mean()
        metrics = {
            "mask_top1": found, "feature_std": feature_std(out_pooled_BD), "feature_rank": feature_rank(out_pooled_BD)
        }  # fmt: skip
        return StepOutput(loss_sum, loss_sum.new_tensor(target_BM.numel()), metrics)

    @property
    def masked_count(self) -> int:
        """M, exact for each image."""
        patches = self.model.grid[0] * self.model.grid[1]
        return patches - kept_count(patches, self.config.mask_ratio)

    def mask(self, sample_ids_B: Tensor, step: int | Tensor) -> Tensor:
        """Which patches are masked, bool [B, N]."""
        count_B = torch.full_like(sample_ids_B, self.masked_count)
        return blocks(self.seed, step, 0, sample_ids_B, self.model.grid, count_B)

    def encode_masked(self, images_BCHW: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Patches behind the final norm, [B, N, D], of images with masked patches, and pooled features [B, D] without
        gradient."""
        patches_BND, grid = self.model.embed(images_BCHW)
        shown_BND = torch.where(mask_BN[..., None], self.mask_token.to(patches_BND.dtype), patches_BND)
        out = self.model.encode_tokens(shown_BND, grid)
        return self.model.fc_norm(out.patches_BND), self.model.pool(out).detach()

    def logits(self, images_BCHW: Tensor, mask_BN: Tensor) -> Tensor:
        """Logits of the visual tokens of all patches, [B, N, K], where those of `mask_BN` are masked."""
        return self.predict(self.encode_masked(images_BCHW, mask_BN)[0])

    @torch.no_grad()
    def pictures(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return originals, visible patches and, where codes are of pixels, all codes and those predicted."""
        mask_BN = self.mask(torch.arange(len(images_BCHW), device=images_BCHW.device), 0)
        hidden_B1hw = mask_BN.unflatten(1, self.model.grid)[:, None].to(images_BCHW.dtype)
        hidden_B1HW = F.interpolate(hidden_B1hw, size=images_BCHW.shape[2:]).bool()
        columns = {"original": images_BCHW, "visible patches": images_BCHW.masked_fill(hidden_B1HW, _GRAY)}
        codes_BN = self.tokenizer(images_BCHW)
        if (of_codes_BCHW := self.tokenizer.images(codes_BN)) is None:
            return columns
        predicted_BN = codes_BN.where(~mask_BN, self.logits(images_BCHW, mask_BN).argmax(-1))
        predicted_BCHW = self.tokenizer.images(predicted_BN)
        assert predicted_BCHW is not None
        size = images_BCHW.shape[2:]
        shown = {"visual tokens": of_codes_BCHW, "masked ones predicted": predicted_BCHW}
        return columns | {name: F.interpolate(x, size=size, mode="bilinear") for name, x in shown.items()}

    def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
        """Features that no longer differ between images."""
        if metrics.get("feature_std", 1.0) < 0.01:
            return "collapse: the features of all images are nearly equal (feature_std below 0.01)"
        return None
