"""Fast ways to compute what a PyTorch reference says, beside the reference. Layers that call them are in ``model``."""
