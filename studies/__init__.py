"""Questions answered with the library, one folder and one page of the site each: ``python -m studies NAME``."""
