"""A classifier of people, corrected for the group that it wrongs by the coefficients of that group's experts."""
