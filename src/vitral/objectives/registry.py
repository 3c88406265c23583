"""Table of the objectives by kind."""

from vitral.objectives.adversarial import Adversarial
from vitral.objectives.beit import BEiT
from vitral.objectives.consistency import Consistency, MeanTeacher
from vitral.objectives.detection import Detection
from vitral.objectives.dino import Dino
from vitral.objectives.dynamic_vit import DynamicViT
from vitral.objectives.fixmatch import FixMatch, PseudoLabel, SemiViT
from vitral.objectives.ibot import Ibot
from vitral.objectives.igpt import IGPTFinetune, ImageGPT
from vitral.objectives.mae import MAE
from vitral.objectives.masked_patch import MaskedPatch
from vitral.objectives.objective import Objective
from vitral.objectives.pseudo_boxes import PseudoBoxes, SoftTeacher
from vitral.objectives.regression import Regression
from vitral.objectives.supervised import Supervised
from vitral.objectives.tokenizer import Tokenizer
from vitral.objectives.vat import VAT

OBJECTIVES: dict[str, type[Objective]] = {
    "supervised": Supervised,
    "dynamic_vit": DynamicViT,
    "regression": Regression,
    "detection": Detection,
    "pseudo_boxes": PseudoBoxes,
    "soft_teacher": SoftTeacher,
    "adversarial": Adversarial,
    "masked_patch": MaskedPatch,
    "mae": MAE,
    "beit": BEiT,
    "igpt": ImageGPT,
    "igpt_finetune": IGPTFinetune,
    "tokenizer": Tokenizer,
    "dino": Dino,
    "ibot": Ibot,
    "vat": VAT,
    "consistency": Consistency,
    "mean_teacher": MeanTeacher,
    "pseudo_label": PseudoLabel,
    "fixmatch": FixMatch,
    "semi_vit": SemiViT,
}
