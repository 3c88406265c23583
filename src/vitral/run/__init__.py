"""The one place that assembles the parts: configuration to data, model, objective, loop, model folder and report."""
