"""Networks in other formats: ONNX, safetensors, torch.export and Keras files."""
