"""What is measured of tensors: histograms, outliers, rows, Hessians, ranges; all of it adds up."""
