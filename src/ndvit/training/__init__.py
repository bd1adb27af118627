"""How a model is trained: the plan, the steps, and the run folder around them."""
