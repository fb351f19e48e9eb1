"""Files and block devices, and the crash-safe metadata beside them."""
