"""Computation: backends that know terms, never a method's name. Imports torch and the encodings."""
