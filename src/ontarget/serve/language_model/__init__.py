"""A causal language model over HTTP, in the form of OpenAI's API: several requests share each step of the model."""
