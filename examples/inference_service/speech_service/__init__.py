"""An inference service as people write them: FastAPI in front, a model that follows `@prod` behind."""
