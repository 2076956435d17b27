"""Attributes of faces predicted from others, corrected for the people that the classifier wrongs: CelebA."""
