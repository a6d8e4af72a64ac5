"""rise-ray: RISE (Recursive Introspection, arXiv 2407.18219) on Ray, vLLM and DeepSpeed."""

__version__ = "0.1.0"
