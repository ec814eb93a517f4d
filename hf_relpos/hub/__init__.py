"""Publishing: the code that goes along with a model, and its card."""
