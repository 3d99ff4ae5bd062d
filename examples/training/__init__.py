"""Training that survives being killed: the digits of scikit-learn, with PyTorch and with Lightning."""
