"""Trained models as files for other programs: ONNX, safetensors, plain torch files, and model cards."""
