"""More experts, more special ones? Many classes of text and of glyphs, few of images; every measure beside a null."""
