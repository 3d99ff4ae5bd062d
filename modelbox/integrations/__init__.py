"""What connects ModelBox to the libraries that people train with: one module for each, imported only where it is used.

Without its library, importing a module raises `modelbox.errors.ConfigError`, which names the extra to install.
"""
