"""One to four expert modes at equal parameters, up to a million experts: accuracy, and what every mode does."""
