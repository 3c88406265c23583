"""Training of image tokenizers: reconstruction, and the codebook of a VQ-VAE, which follows its vectors.

Shape letters: B batch, C channels, H W image height and width, N codes of an image, X vectors, D width of a code's
vector, K codes, U unused ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vitral import distributed
from vitral.data.counter_rng import Stream, uniform_runs, uniforms
from vitral.evaluate.reconstruction import psnr, ssim
from vitral.models.codebook import wide
from vitral.models.image_tokenizer import ImageTokenizer
from vitral.models.model import ImageModel
from vitral.models.patches import unpatchify
from vitral.models.quantizers import VQ, Quantized, Relaxation
from vitral.models.registry import image_tokenizer
from vitral.objectives.objective import Objective, ObjectiveContext
from vitral.objectives.tokenizer_config import TokenizerConfig
from vitral.report.image_tokenizer import CODES
from vitral.structs import Batch, StepOutput

_SMOOTHING = 1e-5  # Laplace's, in uses of a code per image
_ALARM_AFTER = 0.2  # of the run
_LEAST_USED, _LEAST_PERPLEXITY = 0.1, 0.05  # of the codes
_IN_USE = 0.01  # of the mean use: a code below counts as unused
_IMAGES_AT_ONCE = 64
_SHOWN = 1024  # codes


class Tokenizer(Objective):
    """The reconstruction error, plus the quantizer's penalty.

    Buffers change after the update alone: `use_K`, the moving mean of the uses of each code per image, and for vq those
    of uses and of vectors (`counts_K`, `sums_KD`) whose ratio is the codebook (van den Oord et al. 2017, appendix A.1).
    """

    model: ImageTokenizer  # pyright: ignore[reportIncompatibleVariableOverride] - set once, by the constructor
    step_in_graph = True
    use_K: Tensor
    counts_K: Tensor
    sums_KD: Tensor

    def __init__(self, factory: Callable[[], ImageModel], config: TokenizerConfig, context: ObjectiveContext) -> None:
        super().__init__(factory, config, context)
        model = image_tokenizer(factory())
        assert model is not None
        self.model = model  # pyright: ignore[reportIncompatibleVariableOverride] - a narrower one
        self.config, self.context = config, context
        c, quantizer = model.config, model.quantizer
        self.deviation = math.sqrt(sum(std**2 for std in c.std) / len(c.std)) if not c.reads_raw_images else 1.0
        mean_use = torch.full((c.codes,), c.tokens / c.codes, dtype=model.dtype, device=model.device)
        self.register_buffer("use_K", mean_use)
        if isinstance(quantizer, VQ):
            self.register_buffer("counts_K", mean_use.clone())
            self.register_buffer("sums_KD", quantizer.codebook_KD * mean_use[:, None])

    def compile_key(self, step: int) -> int:
        """Nothing depends on the step but random numbers and the temperature."""
        return 0

    def relaxation(self, sample_ids_B: Tensor, step: int | Tensor) -> Relaxation | None:
        """Temperature and noise of a step, of a dVAE."""
        c, config = self.model.config, self.config
        if c.quantizer != "gumbel":
            return None
        (draws_XB,) = uniform_runs(self.context.seed, step, 0, sample_ids_B, (Stream.GUMBEL,), c.tokens * c.codes)
        done = torch.as_tensor(step, dtype=torch.float32).clamp(max=self.context.steps - 1)
        fall = 0.5 * (1 + torch.cos(math.pi * done / max(self.context.steps - 1, 1)))
        temperature = config.temperature_final + (config.temperature - config.temperature_final) * fall
        return Relaxation(temperature.to(draws_XB.device), draws_XB.T.unflatten(1, (c.tokens, c.codes)))

    def forward(self, batches: Mapping[str, Batch], step: int) -> StepOutput:
        """The loss; `train_psnr`, in dB, of what the decoder makes in training; and the penalty."""
        batch, config = batches["train"], self.config
        images_BCHW = wide(self.model.check_images(batch.views[0].images_BCHW))
        out = self.model.quantize(images_BCHW, self.relaxation(batch.sample_ids_B.to(images_BCHW.device), step))
        made_BCHW = self.model.render(out.vectors_BND)
        error_BCHW = (made_BCHW - images_BCHW) / self.deviation
        loss = error_BCHW.square().mean() if config.loss == "l2" else error_BCHW.abs().mean()
        loss = loss + self.penalty_weight * out.penalty
        if config.ssim_weight:
            loss = loss + config.ssim_weight * (1 - ssim(images_BCHW, made_BCHW)).mean()
        metrics = {"train_psnr": psnr(images_BCHW, made_BCHW.detach().clamp(0, 1)).mean()}
        if self.penalty_weight:
            metrics["penalty"] = out.penalty.detach()
        return StepOutput.mean(loss, len(images_BCHW), metrics, self._uses(images_BCHW, out))

    @property
    def penalty_weight(self) -> float:
        """Of the quantizer's penalty in the loss."""
        return {"vq": self.config.commitment, "gumbel": self.config.kl_weight}.get(self.model.config.quantizer, 0.0)

    @torch.no_grad()
    def _uses(self, images_BCHW: Tensor, out: Quantized) -> dict[str, Tensor]:
        """Means over images: uses of each code, and of vq the sums of the vectors with each."""
        codes_X, samples = out.codes_BN.flatten(), len(images_BCHW)
        counts_K = torch.zeros_like(self.use_K).index_add_(0, codes_X, torch.ones_like(codes_X, dtype=self.use_K.dtype))
        found = {"uses": counts_K / samples}
        if isinstance(self.model.quantizer, VQ):
            x_XD = out.encoded_BNE.detach().flatten(0, 1).to(self.sums_KD.dtype)
            found["sums"] = torch.zeros_like(self.sums_KD).index_add_(0, codes_X, x_XD) / samples
        return found

    def before_update(self, step: int) -> None:
        """Mean patches have no gradient: neither it nor weight decay moves them."""
        if self.model.decoder is None:
            for parameter in self.model.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_update(self, step: int, means: Mapping[str, Tensor], found_inf: Tensor) -> None:
        """The moving means follow, and the codebook; in a step that was skipped nothing does."""
        found = dict(zip(means, distributed.mean(means.values()), strict=True))
        weight = 1 - self.config.codebook_decay
        _move(self.use_K, found["uses"], weight, found_inf)
        quantizer = self.model.quantizer
        if isinstance(quantizer, VQ):
            _move(self.counts_K, found["uses"], weight, found_inf)
            _move(self.sums_KD, found["sums"], weight, found_inf)
            _set(quantizer.codebook_KD, self.sums_KD / _smoothed(self.counts_K)[:, None], found_inf)

    @torch.no_grad()
    def after_batch(self, batches: Mapping[str, Batch], step: int, found_inf: Tensor) -> None:
        """Give unused codes of vq vectors of this batch, chosen by (seed, step, code), and the mean use."""
        quantizer, config = self.model.quantizer, self.config
        if not isinstance(quantizer, VQ) or not config.restart_below or (step + 1) % config.restart_every:
            return
        mean_use = self.counts_K.mean()
        is_unused_K = self.counts_K < config.restart_below * mean_use
        new_KD = self._vectors(batches["train"], step).to(quantizer.codebook_KD.dtype)
        _set(self.counts_K, mean_use.where(is_unused_K, self.counts_K), found_inf)
        for own_KD, other_KD in ((quantizer.codebook_KD, new_KD), (self.sums_KD, new_KD * mean_use)):
            _set(own_KD, other_KD.where(is_unused_K[:, None], own_KD), found_inf)

    def _vectors(self, batch: Batch, step: int) -> Tensor:
        """A vector of the encoder for each code, [K, D], drawn from those of the batches of all processes."""
        own, quantizer = len(batch.sample_ids_B), self.model.quantizer
        codes_K = torch.arange(self.model.config.codes, device=self.use_K.device)
        image_K, place_K = uniforms(self.context.seed, step, 0, codes_K, (Stream.RESTART_IMAGE, Stream.RESTART_PLACE))
        image_K = (image_K * own * distributed.world()).long() - distributed.rank() * own
        place_K = (place_K * self.model.config.tokens).long()
        new_KD = self.use_K.new_zeros(len(codes_K), quantizer.decode_width)
        for first in range(0, own, _IMAGES_AT_ONCE):
            images_BCHW = batch.views[0].images_BCHW[first : first + _IMAGES_AT_ONCE]
            chosen_U = ((image_K >= first) & (image_K < first + len(images_BCHW))).nonzero()[:, 0]
            x_BND = wide(self.model.embed(images_BCHW))
            new_KD[chosen_U] = x_BND[image_K[chosen_U] - first, place_K[chosen_U]].to(new_KD.dtype)
        return distributed.all_reduce_sum(new_KD)

    @torch.no_grad()
    def monitor(self, step: int) -> dict[str, Tensor]:
        """Codes in use in the last 100 steps, about: their share, and the perplexity of their use."""
        share_K = self.use_K / self.use_K.sum()
        entropy = -(share_K * share_K.clamp(min=1e-30).log()).sum()
        used = (self.use_K > _IN_USE * self.use_K.mean()).to(self.use_K.dtype).mean()
        return {"codes_used": used, "code_perplexity": entropy.exp()}

    def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
        """A codebook of which little is used, after a fifth of the run."""
        if metrics.get("step", 0) < _ALARM_AFTER * self.context.steps:
            return None
        used, codes = metrics.get("codes_used", 1.0), self.model.config.codes
        perplexity = metrics.get("code_perplexity", float(codes))
        if used >= _LEAST_USED and perplexity >= _LEAST_PERPLEXITY * codes:
            return None
        return (
            f"collapse: {100 * used:.0f} % of {codes} codes are in use, with perplexity {perplexity:.0f}. Restarts "
            "(objective.restart_below), a lower learning rate or model.quantizer=fsq may help"
        )

    @torch.no_grad()
    def pictures(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return originals and reconstructions; and a sheet of one patch for each code, of at most 1,024 codes."""
        model = self.model
        columns = {"original": images_BCHW, "from its codes": model.images(model.codes(images_BCHW))}
        return {**columns, CODES: self._sheet()} if model.config.codes <= _SHOWN else columns

    def _sheet(self) -> Tensor:
        """What is in the middle of an image that has one code everywhere, for each code: [1, C, H, W]."""
        c = self.model.config
        (rows, columns), P = c.grid, c.patch_size
        codes_KN = torch.arange(c.codes, device=self.model.device)[:, None].expand(-1, c.tokens)
        images_KCHW = torch.cat([self.model.images(part_BN) for part_BN in codes_KN.split(_IMAGES_AT_ONCE)])
        top, left = rows // 2 * P, columns // 2 * P
        patches_KCPP = images_KCHW[:, :, top : top + P, left : left + P]
        side = math.ceil(c.codes**0.5)
        blank_UCPP = patches_KCPP.new_ones(-c.codes % side, *patches_KCPP.shape[1:])
        cells_NX = torch.cat([patches_KCPP, blank_UCPP]).permute(0, 2, 3, 1).flatten(1)
        return unpatchify(cells_NX[None], (len(cells_NX) // side, side), c.in_channels)


def _smoothed(counts_K: Tensor) -> Tensor:
    """Laplace's estimate of the uses, none of which is 0, with the same sum."""
    total = counts_K.sum()
    return (counts_K + _SMOOTHING) / (total + len(counts_K) * _SMOOTHING) * total


def _move(own: Tensor, other: Tensor, weight: float, found_inf: Tensor) -> None:
    _set(own, own.lerp(other.to(own.dtype), weight), found_inf)


def _set(own: Tensor, other: Tensor, found_inf: Tensor) -> None:
    """Take over, but not in a step that was skipped."""
    own.copy_(torch.where(found_inf > 0, own, other.to(own.dtype)))
