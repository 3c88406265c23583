"""Table of the attacks by kind."""

from __future__ import annotations

from typing import Any

from vitral.attacks.apgd import APGD
from vitral.attacks.attack import Attack
from vitral.attacks.config import AnyAttack, AttackConfig
from vitral.attacks.ensemble import Ensemble
from vitral.attacks.gradient_attacks import FGM, FGSM, FGSMRS, MIFGSM, NFGSM, PGD, RFGSM
from vitral.attacks.square import Square
from vitral.config import Config, build

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "fgm": FGM,
    "rfgsm": RFGSM,
    "fgsm_rs": FGSMRS,
    "nfgsm": NFGSM,
    "pgd": PGD,
    "mifgsm": MIFGSM,
    "apgd": APGD,
    "square": Square,
    "ensemble": Ensemble,
}


class _Keys(Config):
    attack: AnyAttack


def create_attack(kind: str = "pgd", **keys: Any) -> Attack:
    """Return an attack: `create_attack("pgd", eps=8 / 255, steps=20)`. The keys are those of its configuration class in
    `attacks/config.py`; call it with (model, images_BCHW, labels_B). Raises UserError for wrong keys and values."""
    return attack_of(build(_Keys, {"attack": {"kind": kind, **keys}}).attack)


def attack_of(config: AttackConfig) -> Attack:
    """Return the attack of a configuration."""
    return ATTACKS[config.kind](config)
