"""The commands of python -m llr_fast."""
