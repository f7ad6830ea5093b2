"""A trained system as files that sherpa-onnx runs; ``export_system`` writes and verifies them.

onnx, onnxruntime and sherpa-onnx are needed here only (``pip install 'rnnt-kd[export]'``), and imported
inside functions or by modules that nothing else imports.
"""
