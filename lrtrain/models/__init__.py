"""Networks by name: torchvision's, timm's, one file an architecture of ours, or an import path."""
