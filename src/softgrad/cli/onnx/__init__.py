"""A model as an ONNX file, compared with the model before it is written."""
