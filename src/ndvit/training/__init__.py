"""How a model learns: recipes, optimisers, objectives, and the Lightning run around them."""
