"""Densities: what people hold, of tables and of images."""
