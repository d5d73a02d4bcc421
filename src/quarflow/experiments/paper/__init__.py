"""The paper's figures and tables as recipes: one small file each, on the frame in ``run``.

Reference:
    | Quasi-Autoregressive Residual (QuAR) Flows (Gopal, 2020)
    | https://arxiv.org/abs/2009.07419
"""
