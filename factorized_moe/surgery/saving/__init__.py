"""Changed models and single layers written to a folder and read back, without pickle."""
