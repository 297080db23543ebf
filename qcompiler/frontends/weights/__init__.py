"""A folder as it lies on the disk: tensors that are read exactly, merged, named as left over, or refused."""
