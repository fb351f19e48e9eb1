"""Files and block devices, and the crash-safe metadata beside them.

===============  =========================================================================================
``blockfile``    the narrow door to the operating system, and the rule of the failed flush
``linux``        what Linux offers and the standard library does not
``osfile``       the door over real files and block devices
``device``       what a volume's data lies on; ``file`` is the one there is
``metadata``     the file beside a volume, made of ``slots``, ``superblock``, ``journal`` (``records``)
                 and ``bitmap``
``lane``         blocking jobs in order, without blocking the event loop
===============  =========================================================================================
"""
