"""Expert kernels behind one seam: `(x_RD, w1_EFD, w2_EDF, w3_EFD, ends_E) -> y_RD`.

Rows are grouped by expert; `ends_E` (int32, on the device) says where each group ends. Nothing here may wait for the
host.
"""
