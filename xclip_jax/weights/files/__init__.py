"""How are files of PyTorch and safetensors read without PyTorch? By interpreting them as data."""
