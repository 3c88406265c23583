"""Perturbations of inputs that change a model's answer: adversarial attacks."""
