"""Fast ways to compute what a PyTorch reference says, and the references. Layers that call them are one folder up."""
