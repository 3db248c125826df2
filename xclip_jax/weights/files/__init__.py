"""How are weight files of PyTorch and safetensors read without PyTorch?"""
