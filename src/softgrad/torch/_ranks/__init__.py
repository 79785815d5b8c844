"""The losses over ranks of `torch.distributed` that share the classes, the rows, or both."""
