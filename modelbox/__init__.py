"""ModelBox: machine-learning models and how they reach the code that uses them."""
