"""Builds the container images and runs them as the Kubernetes manifest says, without a Docker engine.

`build.py` executes the Dockerfiles with buildah, over a base that debootstrap makes of Debian's packages; `run.py`
starts the images with podman in a network of their own and holds them to what the manifests promise.
``python -m tools.prove_image --help`` says what it needs; at its end it says what it leaves open.
"""
