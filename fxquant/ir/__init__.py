"""The graph substrate on torch.fx: capture, metadata, stages, rewriting, analysis."""
