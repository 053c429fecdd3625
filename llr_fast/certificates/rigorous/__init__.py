"""Enclosures of margins in real arithmetic."""
