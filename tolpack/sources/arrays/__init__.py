"""Plain tables: one array in a `.npy`, an HDF5 file or a `.safetensors`."""
