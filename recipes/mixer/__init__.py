"""An MLP-Mixer with experts in both MLPs of every block, from a folder of images."""
